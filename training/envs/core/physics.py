"""MJX's two implementations behind one interface: pure JAX, and the kernels of MuJoCo Warp.

Warp stores the contacts of all worlds in shared arrays of a fixed length, and the constraint rows of each world in
arrays of another fixed length. Contacts and rows that do not fit are dropped. The number of worlds is known only when
they are stepped together, so the shared arrays are created for a step, long enough for all worlds, and discarded after
it. Between steps, a state has one entry per world, so code that maps over states (`jax.vmap`, resets, snapshots) works
with both implementations. Each world has a flag that is set when something is dropped; `require_no_overflow` raises an
error for it.
"""

# MuJoCo and Warp ship no reliable type information; the fields that worlds share are private to MJX.
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
    """Sizes of Warp's arrays, per world. `benchmarks/contact_sizes.py` measures what an environment needs.

    Raises:
        ValueError: a size is 0: Warp would silently leave out all contacts or constraints.
    """

    contacts: int  # also pairs of geoms close enough to check; all worlds share the sum
    rows: int  # constraint rows: joint limits, equalities, friction, and one to ten per contact

    def __post_init__(self) -> None:
        if self.contacts < 1 or self.rows < 1:
            raise ValueError(f"contacts and rows must be 1 or more, even if nothing collides, got {self}")


class PhysicsOverflowError(Exception):
    """Warp dropped a contact or a constraint row that did not fit into its arrays, so the motion since is wrong."""


class Physics(Protocol):
    """What an environment needs of an implementation. Every function works on one world; use `jax.vmap` for several."""

    model: mjx.Model
    sizes: WarpSizes | None  # None in JAX, whose arrays fit the model

    def start(self, qpos: jax.Array, qvel: jax.Array) -> mjx.Data:
        """Return a world at positions [nq] and velocities [nv]; nothing is computed from them yet."""
        ...

    def step(self, data: mjx.Data, *, substeps: int) -> mjx.Data:
        """Advance `substeps` timesteps."""
        ...

    def forward(self, data: mjx.Data) -> mjx.Data:
        """Compute everything that depends on positions, velocities and controls."""
        ...


def make(model: mujoco.MjModel, *, impl: str, sizes: WarpSizes | None) -> Physics:
    """Return the physics of `model`.

    Args:
        impl: "jax" or "warp".
        sizes: of Warp's arrays; None leaves them to MJX's guess.

    Raises:
        UnknownNameError: no such implementation.
        NotImplementedError: the implementation does not support something that the model uses.
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
        private = put.opt._impl.replace(warn_overflow=0)  # it would print even for iteration limits that are intended
        self.model = put.replace(opt=put.opt.replace(_impl=private))
        options: dict[str, Any] = {"naconmax": sizes.contacts, "njmax": sizes.rows} if sizes else {}
        self._one_world: Any = mjx.make_data(model, impl="warp", **options)
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
        """Call `run`, which takes worlds along one axis, on `data` with the leading `axes`, under any number of vmaps.

        Every `jax.vmap` around it adds an axis, so the number of all worlds is known when `run` is called.
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
        """Add the arrays that all worlds share. Before a step, all contacts are equal."""
        shared = {name: getattr(self._one_world._impl, name) for name in self._shared}
        for name, array in shared.items():
            if name.startswith("contact__") and array.size:
                rows = worlds * self._one_world._impl.naconmax
                shared[name] = jnp.broadcast_to(jnp.asarray(array[:1]), (rows, *array.shape[1:]))
        limits = {name: worlds * getattr(self._one_world._impl, name) for name in ("naconmax", "naccdmax")}
        return data.replace(_impl=data._impl.replace(**shared, **limits))

    def _without_shared(self, data: Any) -> Any:
        """Remove what worlds share."""
        limits = {name: getattr(self._one_world._impl, name) for name in ("naconmax", "naccdmax")}
        return data.replace(_impl=data._impl.replace(**dict.fromkeys(self._shared), **limits))

    @functools.cached_property
    def _shared(self) -> tuple[str, ...]:
        from mujoco.mjx.warp import types

        fields = sorted(types.DATA_NON_VMAP)
        return tuple(name for name in fields if not isinstance(getattr(self._one_world._impl, name), int))


def overflow(data: Any) -> jax.Array:
    """Return flags of what Warp has dropped in each world since its reset, as bits; always 0 in JAX."""
    if not _is_warps(data):
        return jnp.int32(0)
    from mujoco.mjx.third_party.mujoco_warp import OverflowType as Bit

    return data._impl.overflow & ~(Bit.ITERATIONS | Bit.LS_ITERATIONS)  # low iteration limits are intended


def diverged_joint(model: mujoco.MjModel, data: mjx.Data) -> jax.Array:
    """Return the index of the first joint whose position or velocity has diverged, int32; `njnt` if none has.

    Diverged means NaN, infinite or beyond 1e10, as in MuJoCo's own check: a value that large is wrong already, and the
    next one may be infinite.
    """
    if not model.njnt:
        return jnp.int32(0)
    joint_of_position = np.repeat(np.arange(model.njnt), np.diff([*model.jnt_qposadr, model.nq]))
    broken = (
        jnp.where(diverged(values), jnp.asarray(joints, jnp.int32), model.njnt).min()
        for values, joints in ((data.qpos, joint_of_position), (data.qvel, model.dof_jntid))
    )
    return jnp.minimum(*broken).astype(jnp.int32)


def diverged(values: jax.Array) -> jax.Array:
    """Return where `values` are NaN, infinite or beyond MuJoCo's limit, a boolean array of the same shape."""
    return ~(jnp.abs(values) <= mujoco.mjMAXVAL)


def keep_overflow(new: Any, *, ended: Any) -> Any:
    """Return the worlds `new` with the overflow flags of the `ended` worlds that they replace."""
    if not _is_warps(new):
        return new
    return new.replace(_impl=new._impl.replace(overflow=new._impl.overflow | ended._impl.overflow))


def require_no_overflow(flags: np.ndarray, *, env: str, family: str, sizes: WarpSizes) -> None:
    """Raise an error if any of the `overflow` flags of worlds of the environment `env` is set.

    Args:
        family: the class whose `warp_sizes` are `sizes`.

    Raises:
        PhysicsOverflowError: Warp has dropped contacts or constraint rows.
    """
    from mujoco.mjx.third_party.mujoco_warp import OverflowType as Bit

    meanings = {"contacts": Bit.BROADPHASE | Bit.NARROWPHASE | Bit.CCD, "rows": Bit.NEFC | Bit.NJMAX_NNZ}
    dropped = Bit(int(np.bitwise_or.reduce(flags, axis=None)))
    short = {limit: getattr(sizes, limit) for limit, bits in meanings.items() if dropped & bits}
    if short:
        limits = ", ".join(f"{limit}={size}" for limit, size in short.items())
        raise PhysicsOverflowError(
            f"{env}: Warp's limits per world ({limits}) are too low, so contacts or constraints were dropped; raise "
            f"{' and '.join(short)} in {family}.warp_sizes to what `python benchmarks/contact_sizes.py --envs {env}` "
            "measures, or use --impl jax"
        )
    if dropped:
        raise PhysicsOverflowError(
            f"{env}: Warp could not compute all collisions ({dropped.name}), and no setting changes that; use "
            "--impl jax"
        )


def require_known(impl: str) -> None:
    """Refuse an unknown implementation.

    Raises:
        UnknownNameError: no such implementation.
    """
    if impl not in IMPLEMENTATIONS:
        raise UnknownNameError.of("physics implementation", str(impl), IMPLEMENTATIONS)


def require_installed() -> None:
    """Require that warp-lang is installed.

    Raises:
        ImportError: it is not installed; the message has the command.
    """
    try:
        import warp  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise ImportError(f'the physics implementation "warp" needs warp-lang: {_COMMAND}') from error


def _is_warps(data: Any) -> bool:
    return isinstance(data, mjx.Data) and data.impl == mjx.Impl.WARP


def _quieten() -> None:
    """Show only Warp's warnings, not its start message and a line for each kernel that it compiles."""
    import warp

    warp.config.log_level = max(warp.config.log_level, warp.LOG_WARNING)
