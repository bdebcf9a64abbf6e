"""What makes a model good to look at: sky, floor, light, colours. Nothing here touches or moves anything."""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

import mujoco

UNSEEN = 3  # a group of geoms that is not drawn
ROBOT = (0.93, 0.49, 0.16, 1.0)
WALL = (0.42, 0.50, 0.61, 1.0)
GOAL = (0.13, 0.72, 0.36, 1.0)
PICTURE_WIDTH, PICTURE_HEIGHT = 1920, 1440  # pixels; no picture can be larger than that

_TILES_DARK, _TILES_LIGHT = (0.77, 0.80, 0.84), (0.85, 0.87, 0.90)
_SKY_LOW, _SKY_HIGH = (0.93, 0.95, 0.98), (0.45, 0.62, 0.82)


def add_scenery(spec: mujoco.MjSpec, *, floor: str = "floor", tile_m: float = 1.0) -> None:
    """Give `spec` a sky, light, and a floor of tiles, in place of what of these it has.

    Args:
        floor: the plane that is the floor; added at height 0, where nothing meets it, if there is none of that name.
        tile_m: the edge of a tile in metres.
    """
    for texture in list(spec.textures):
        if texture.type == mujoco.mjtTexture.mjTEXTURE_SKYBOX:
            spec.delete(texture)
    for light in list(spec.lights):
        spec.delete(light)
    add_sky_and_light(spec)
    plane = spec.geom(floor)
    if plane is None:
        plane = spec.worldbody.add_geom(
            name=floor, type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 1], contype=0, conaffinity=0
        )
    plane.material = _add_tiles(spec, tile_m=tile_m)
    plane.rgba = [1, 1, 1, 1]
    spec.visual.global_.offwidth, spec.visual.global_.offheight = PICTURE_WIDTH, PICTURE_HEIGHT


def add_sky_and_light(spec: mujoco.MjSpec) -> None:
    """Give `spec` what of a sky and of light it lacks: without, robots are seen dark in front of black."""
    if not any(texture.type == mujoco.mjtTexture.mjTEXTURE_SKYBOX for texture in spec.textures):
        _add_sky(spec)
    if not spec.lights:
        _add_light(spec)


def paint(body: mujoco.MjsBody, rgba: tuple[float, float, float, float] = ROBOT) -> None:
    """Give everything that hangs on `body` one colour."""
    for geom in body.find_all(mujoco.mjtObj.mjOBJ_GEOM):
        geom.rgba = rgba
        geom.material = ""


def _add_sky(spec: mujoco.MjSpec) -> None:
    spec.add_texture(
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=_SKY_HIGH,
        rgb2=_SKY_LOW,
        width=64,
        height=384,
    )
    spec.visual.rgba.haze = [*_SKY_LOW, 1]
    spec.visual.map.haze = 0.6


def _add_light(spec: mujoco.MjSpec) -> None:
    """A sun that throws shadows, and a weak light at the camera so that no side is black."""
    spec.worldbody.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=[-5, 0, 10],
        dir=[0.5, 0, -1],  # along an axis of MuJoCo's shadow map: aslant to both, a corner of it is full of dark dots
        diffuse=[0.55, 0.55, 0.55],
        specular=[0, 0, 0],
        castshadow=True,
    )
    spec.visual.quality.shadowsize = 2048  # pixels; twice that takes half as long again without a GPU
    spec.visual.headlight.ambient = [0.43, 0.43, 0.43]
    spec.visual.headlight.diffuse = [0.15, 0.15, 0.15]
    spec.visual.headlight.specular = [0, 0, 0]


def _add_tiles(spec: mujoco.MjSpec, *, tile_m: float) -> str:
    """A material of square tiles in two greys; its name."""
    spec.add_texture(
        name="tiles",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=_TILES_DARK,
        rgb2=_TILES_LIGHT,
        width=64,
        height=64,
    )
    material = spec.add_material(name="tiles", texrepeat=[0.5 / tile_m, 0.5 / tile_m], texuniform=True)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "tiles"
    return material.name
