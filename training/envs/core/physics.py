"""MJX's two implementations behind one face: pure JAX, and the kernels of MuJoCo Warp.

Warp keeps the contacts of all worlds together in arrays of a fixed length, and every world's constraint rows in arrays
of another: what does not fit is dropped. How many worlds there are is known only where they step together, so the
arrays that worlds share are made there, long enough for them, and are gone after the step. What stays between two steps
has one entry per world, like all else in a state, and whatever maps over states (`jax.vmap`, resets, snapshots) need
not know of Warp. Of what was dropped a flag stays with the world, which `require_no_overflow` makes an error of.
"""

# MuJoCo and Warp ship no type information that holds; the fields that worlds share are MJX's own secret.
# pyright: reportAttributeAccessIssue=false

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import mjx

from training.envs.core.errors import UnknownNameError

IMPLEMENTATIONS = ("jax", "warp")
_COMMAND = "pip install warp-lang==1.18.0"


@dataclasses.dataclass(frozen=True)
class WarpSizes:
    """What Warp has room for, per world. `benchmarks/contact_sizes.py` measures what an environment needs.

    Raises:
        ValueError: a size is 0, with which Warp leaves out all contacts or constraints and tells nobody.
    """

    contacts: int  # and pairs of geoms near enough to be looked at; a world may use what others leave
    rows: int  # constraint rows: joint limits, equalities, friction, and one to ten per contact

    def __post_init__(self) -> None:
        if self.contacts < 1 or self.rows < 1:
            raise ValueError(f"{self}: both must be at least 1, even where nothing ever touches")


class PhysicsOverflowError(Exception):
    """Warp had no room for a contact or a constraint row and dropped it, so the motion since is wrong."""


class Physics(Protocol):
    """What an environment asks of an implementation. Everything is of one world; `jax.vmap` it."""

    model: mjx.Model
    sizes: WarpSizes | None  # None in JAX, which is as large as its model

    def start(self, qpos: jax.Array, qvel: jax.Array) -> mjx.Data:
        """A world at positions [nq] and velocities [nv]; nothing that follows from them is computed yet."""
        ...

    def step(self, data: mjx.Data, *, substeps: int) -> mjx.Data:
        """Advance so many timesteps."""
        ...

    def forward(self, data: mjx.Data) -> mjx.Data:
        """Compute everything that follows from positions, velocities and controls."""
        ...


def make(model: mujoco.MjModel, *, impl: str, sizes: WarpSizes | None) -> Physics:
    """The physics of `model`.

    Args:
        impl: "jax" or "warp".
        sizes: what Warp shall have room for; None leaves it to MJX, which guesses.

    Raises:
        UnknownNameError: there is no such implementation.
        NotImplementedError: the implementation lacks something that the model uses.
    """
    require_known(impl)
    return WarpPhysics(model, sizes) if impl == "warp" else JaxPhysics(model)


class JaxPhysics:
    """MJX in JAX."""

    sizes: WarpSizes | None = None

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model = mjx.put_model(model, impl="jax")
        self._mujoco_model = model

    def start(self, qpos: jax.Array, qvel: jax.Array) -> mjx.Data:
        """See `Physics`."""
        return mjx.make_data(self._mujoco_model, impl="jax").replace(qpos=qpos, qvel=qvel)

    def step(self, data: mjx.Data, *, substeps: int) -> mjx.Data:
        """See `Physics`."""
        return jax.lax.fori_loop(0, substeps, lambda _, now: mjx.step(self.model, now), data)

    def forward(self, data: mjx.Data) -> mjx.Data:
        """See `Physics`."""
        return mjx.forward(self.model, data)


class WarpPhysics:
    """MuJoCo Warp, called from JAX.

    Args:
        sizes: per world.
    """

    def __init__(self, model: mujoco.MjModel, sizes: WarpSizes | None) -> None:
        _quieten()
        put: Any = mjx.put_model(model, impl="warp")
        private = put.opt._impl.replace(warn_overflow=0)  # else it prints, even of the few iterations asked for
        self.model = put.replace(opt=put.opt.replace(_impl=private))
        wanted: dict[str, Any] = {"naconmax": sizes.contacts, "njmax": sizes.rows} if sizes else {}
        self._one_world: Any = mjx.make_data(model, impl="warp", **wanted)
        self.sizes: WarpSizes | None = WarpSizes(
            contacts=self._one_world._impl.naconmax, rows=self._one_world._impl.njmax
        )

    def start(self, qpos: jax.Array, qvel: jax.Array) -> mjx.Data:
        """See `Physics`."""
        return self._without_shared(self._one_world).replace(qpos=qpos, qvel=qvel)

    def step(self, data: mjx.Data, *, substeps: int) -> mjx.Data:
        """See `Physics`."""
        one_step = jax.vmap(functools.partial(mjx.step, self.model))
        return self._together(lambda worlds: jax.lax.fori_loop(0, substeps, lambda _, now: one_step(now), worlds), data)

    def forward(self, data: mjx.Data) -> mjx.Data:
        """See `Physics`."""
        return self._together(jax.vmap(functools.partial(mjx.forward, self.model)), data)

    def _together(self, run: Callable[[Any], Any], data: Any, *, axes: tuple[int, ...] = ()) -> Any:
        """`run`, which takes all worlds in a row, on `data` with the leading `axes`; however often it is mapped over.

        Every `jax.vmap` around it comes out as one more axis, so that by the time `run` is called, all are counted.
        """

        @jax.custom_batching.custom_vmap
        def call(data: Any) -> Any:
            worlds = math.prod(axes)
            row = jax.tree.map(lambda leaf: leaf.reshape(worlds, *leaf.shape[len(axes) :]), data)
            done = self._without_shared(run(self._with_shared(row, worlds=worlds)))
            return jax.tree.map(lambda leaf: leaf.reshape(*axes, *leaf.shape[1:]), done)

        @call.def_vmap
        def call_mapped(size: int, mapped: Any, data: Any) -> Any:  # pyright: ignore[reportUnusedFunction]
            def along_axis(leaf: jax.Array, is_mapped: bool) -> jax.Array:
                return leaf if is_mapped else jnp.broadcast_to(leaf, (size, *leaf.shape))

            done = self._together(run, jax.tree.map(along_axis, data, mapped[0]), axes=(size, *axes))
            return done, jax.tree.map(lambda _: True, done)

        return call(data)

    def _with_shared(self, data: Any, *, worlds: int) -> Any:
        """Add the arrays that all worlds share. Of contacts, all are alike before the first is found."""
        shared = {name: getattr(self._one_world._impl, name) for name in self._shared}
        for name, array in shared.items():
            if name.startswith("contact__") and array.size:
                rows = worlds * self._one_world._impl.naconmax
                shared[name] = jnp.broadcast_to(jnp.asarray(array[:1]), (rows, *array.shape[1:]))
        limits = {name: worlds * getattr(self._one_world._impl, name) for name in ("naconmax", "naccdmax")}
        return data.replace(_impl=data._impl.replace(**shared, **limits))

    def _without_shared(self, data: Any) -> Any:
        """Leave out what worlds share."""
        limits = {name: getattr(self._one_world._impl, name) for name in ("naconmax", "naccdmax")}
        return data.replace(_impl=data._impl.replace(**dict.fromkeys(self._shared), **limits))

    @functools.cached_property
    def _shared(self) -> tuple[str, ...]:
        from mujoco.mjx.warp import types

        fields = sorted(types.DATA_NON_VMAP)
        return tuple(name for name in fields if not isinstance(getattr(self._one_world._impl, name), int))


def overflow(data: Any) -> jax.Array:
    """What Warp has dropped in each world since it was made, as bits; 0 in JAX, which drops nothing unasked."""
    if not _is_warps(data):
        return jnp.int32(0)
    from mujoco.mjx.third_party.mujoco_warp import OverflowType as Bit

    return data._impl.overflow & ~(Bit.ITERATIONS | Bit.LS_ITERATIONS)  # few iterations are asked for


def keep_overflow(begun: Any, *, ended: Any) -> Any:
    """The worlds `begun`, with the flags of the `ended` ones that they replace: what was dropped stays dropped."""
    if not _is_warps(begun):
        return begun
    return begun.replace(_impl=begun._impl.replace(overflow=begun._impl.overflow | ended._impl.overflow))


def require_no_overflow(flags: np.ndarray, *, env: str, family: str, sizes: WarpSizes) -> None:
    """Make an error of what `overflow` tells of the worlds of the environment `env`, if it is anything.

    Args:
        family: the class that sets `sizes`.

    Raises:
        PhysicsOverflowError: Warp has dropped contacts or constraint rows.
    """
    from mujoco.mjx.third_party.mujoco_warp import OverflowType as Bit

    meanings = {"contacts": Bit.BROADPHASE | Bit.NARROWPHASE | Bit.CCD, "rows": Bit.NEFC | Bit.NJMAX_NNZ}
    dropped = Bit(int(np.bitwise_or.reduce(flags, axis=None)))
    short = {limit: getattr(sizes, limit) for limit, bits in meanings.items() if dropped & bits}
    if short:
        needed = " and ".join(f"{size} {limit} per world" for limit, size in short.items())
        raise PhysicsOverflowError(
            f"{env}: Warp has room for {needed}, needed more and dropped it; raise {' and '.join(short)} in "
            f"{family}.warp_sizes to what `python benchmarks/contact_sizes.py --envs {env}` measures, or use "
            "--impl jax"
        )
    if dropped:
        raise PhysicsOverflowError(
            f"{env}: Warp could not complete its collisions ({dropped.name}), and there is no setting for that; use "
            "--impl jax"
        )


def require_known(impl: str) -> None:
    """Refuse an implementation that there is none of.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if impl not in IMPLEMENTATIONS:
        raise UnknownNameError("physics implementation", str(impl), IMPLEMENTATIONS)


def require_installed() -> None:
    """Say what to install, if it is not there.

    Raises:
        ImportError: there is no warp-lang.
    """
    try:
        import warp  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise ImportError(f'the physics implementation "warp" needs warp-lang: {_COMMAND}') from error


def _is_warps(data: Any) -> bool:
    return isinstance(data, mjx.Data) and data.impl == mjx.Impl.WARP


def _quieten() -> None:
    """Warp greets and tells of every kernel it compiles, minutes of them the first time; keep to its warnings."""
    import warp

    warp.config.log_level = max(warp.config.log_level, warp.LOG_WARNING)
