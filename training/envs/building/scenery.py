"""Scenery for pictures: sky, floor, light and colors. It does not affect the physics."""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

import math

import mujoco
import numpy as np

UNSEEN = 3  # group of geoms that are not drawn
ROBOT = (0.93, 0.49, 0.16, 1.0)
WALL = (0.42, 0.50, 0.61, 1.0)
GOAL = (0.13, 0.72, 0.36, 1.0)
PICTURE_WIDTH, PICTURE_HEIGHT = 1920, 1440  # pixels; the largest picture

_TILES_DARK, _TILES_LIGHT = (0.77, 0.80, 0.84), (0.85, 0.87, 0.90)
_POSES = 64  # sampled to find the lowest point of a model without a floor
_SKY_LOW, _SKY_HIGH = (0.93, 0.95, 0.98), (0.45, 0.62, 0.82)


def add_scenery(spec: mujoco.MjSpec, *, floor: str = "floor", tile_m: float = 1.0) -> None:
    """Replace the sky, the lights and the material of the floor of `spec`.

    Args:
        floor: name of the plane that is the floor. If there is none, a floor without contacts is added at height 0.
        tile_m: edge of a tile, in meters.
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
    plane.size = [0, 0, 1]  # drawn infinitely large
    plane.material = _add_tiles(spec, tile_m=tile_m)
    plane.rgba = [1, 1, 1, 1]
    spec.visual.global_.offwidth, spec.visual.global_.offheight = PICTURE_WIDTH, PICTURE_HEIGHT


def add_sky_and_light(spec: mujoco.MjSpec) -> None:
    """Add a sky and a light to `spec` where they are missing. Without them, robots are dark on black."""
    if not any(texture.type == mujoco.mjtTexture.mjTEXTURE_SKYBOX for texture in spec.textures):
        _add_sky(spec)
    if not spec.lights:
        _add_light(spec)


def add_floor_below(spec: mujoco.MjSpec) -> None:
    """Add a tiled floor without contacts at the lowest point of `spec`, unless it has a plane or terrain."""
    own = (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_HFIELD)
    if any(geom.type in own for geom in spec.geoms):
        return
    model = spec.copy().compile()
    height = _lowest_m(model)
    spec.worldbody.add_geom(
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        pos=[0, 0, height],
        size=[0, 0, 1],
        contype=0,
        conaffinity=0,
        material=_add_tiles(spec, tile_m=10.0 ** round(math.log10(model.stat.extent / 4))),
    )


def _lowest_m(model: mujoco.MjModel) -> float:
    """Return the lowest height of any geom, at the start and in random poses within the joint limits."""
    data = mujoco.MjData(model)
    random = np.random.default_rng(0)
    hinges = model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE
    limited = (model.jnt_limited != 0) & (hinges | (model.jnt_type == mujoco.mjtJoint.mjJNT_SLIDE))
    turning = hinges & ~limited
    low, high = model.jnt_range.T
    low, high = np.where(turning, -np.pi, low), np.where(turning, np.pi, high)
    chosen = limited | turning
    lowest = math.inf
    for pose in range(_POSES):
        if pose > 0:
            data.qpos[model.jnt_qposadr[chosen]] = random.uniform(low[chosen], high[chosen])
        mujoco.mj_kinematics(model, data)
        middle, half = np.split(model.geom_aabb, 2, axis=1)
        down = data.geom_xmat.reshape(-1, 3, 3)[:, 2]  # the vertical, in the frame of each geom
        heights = data.geom_xpos[:, 2] + (down * middle).sum(axis=1) - (np.abs(down) * half).sum(axis=1)
        lowest = min(lowest, float(heights.min()))
    return lowest


def paint(body: mujoco.MjsBody, rgba: tuple[float, float, float, float] = ROBOT) -> None:
    """Give `body` and everything attached to it one color."""
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
    """Add a sun that casts shadows, and a weak light at the camera so that no side is black."""
    spec.worldbody.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=[-5, 0, 10],
        dir=[0.5, 0, -1],  # along an axis of MuJoCo's shadow map; other directions give dark dots in a corner
        diffuse=[0.55, 0.55, 0.55],
        specular=[0, 0, 0],
        castshadow=True,
    )
    spec.visual.quality.shadowsize = 2048  # pixels; twice as many take 1.5 times as long without a GPU
    spec.visual.headlight.ambient = [0.43, 0.43, 0.43]
    spec.visual.headlight.diffuse = [0.15, 0.15, 0.15]
    spec.visual.headlight.specular = [0, 0, 0]


def _add_tiles(spec: mujoco.MjSpec, *, tile_m: float) -> str:
    """Add a material of square tiles in two grays; return its name."""
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
