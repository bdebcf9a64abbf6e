"""Estimate the device memory that a run needs, part by part, and say what to lower if it does not fit."""

import os
from pathlib import Path
from typing import NamedTuple

import jax

from policy.layers import PRECISIONS
from policy.spec import LAYERS_PER_BLOCK
from training.config import TrainConfig
from training.envs.core.goal_env import GoalEnv

_OPTIMIZER_COPIES = 4  # parameters, gradients and Adam's two moments, float32 each
_ARRAYS_PER_BLOCK = {"none": 8, "layers": 5, "blocks": 1}  # stored arrays [rows, width], see policy.layers
_LOGITS = 5  # arrays [batch, batch], float32: the energies, their softmax and their gradients
_INDICES = 4  # of a row: of its step and of the later one, age and environment each
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_FLOAT = 4
_INT = 4
RESTORED_BYTES = 1 << 25  # of a snapshot, in memory at a time: a part of an array, on the host and on the device


class MemoryEstimate(NamedTuple):
    """Bytes of each part, and what the part grows with."""

    replay: int  # num_envs x max_replay_size
    parameters: int  # depth x width^2
    activations: int  # batch_size x depth x width
    logits: int  # batch_size^2
    indices: int  # updates_per_unroll x batch_size, and the commanded goals
    restored: int  # while the run is resumed: parts of the snapshot, which is read into the replay buffer itself

    @property
    def total(self) -> int:
        """The sum. The states of the environments are not included, because they are small in comparison."""
        return sum(self)


def estimate(config: TrainConfig, env: GoalEnv) -> MemoryEstimate:
    """Estimate the bytes that training needs at one time, within a few percent of what the compiler allocates."""
    per_step = _FLOAT * (env.state_size + env.action_size) + _INT
    square = {"actor": config.actor_width**2, "critic": config.critic_width**2}
    layers = config.actor_depth * square["actor"] + 2 * config.critic_depth * square["critic"]
    stored = _ARRAYS_PER_BLOCK[config.remat] / LAYERS_PER_BLOCK
    # the actor's rows, two sets of rows of the state-action encoder, the goal encoder's rows
    layer_rows = config.actor_depth * config.actor_width + 3 * config.critic_depth * config.critic_width
    # products are stored in the chosen precision, a block's input always in float32
    item = _FLOAT if config.remat == "blocks" else PRECISIONS[config.precision].dtype.itemsize
    replay = config.num_envs * config.max_replay_size * per_step
    return MemoryEstimate(
        replay=replay,
        parameters=_OPTIMIZER_COPIES * _FLOAT * layers,
        activations=int(item * stored * config.batch_size * layer_rows),
        logits=_LOGITS * _FLOAT * config.batch_size**2,
        indices=config.updates_per_unroll
        * (_INDICES * _INT * config.batch_size + _FLOAT * env.goal_size * config.commanded_rows),
        restored=min(RESTORED_BYTES, replay),
    )


def require_fit(config: TrainConfig, env: GoalEnv, *, available: int | None = None) -> None:
    """Refuse a run that does not fit into the device's memory.

    Args:
        available: bytes of device memory; None asks the device.

    Raises:
        MemoryError: it does not fit; the message says which setting to lower, and to what value.
    """
    available = device_memory() if available is None else available
    parts = estimate(config, env)
    if parts.total > available:
        raise MemoryError(f"this run does not fit on the device; {_advice(config, parts, available)}")


def advice(config: TrainConfig, env: GoalEnv) -> str:
    """Return which setting to lower, and to what value, for a run that ran out of memory."""
    return _advice(config, estimate(config, env), device_memory())


def device_memory() -> int:
    """Return the bytes of the first device's memory; for a CPU, those of the machine or the container."""
    limits = jax.local_devices()[0].memory_stats()
    if limits and "bytes_limit" in limits:
        return int(limits["bytes_limit"])
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    container = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else "max"
    return min(machine, int(container)) if container.isdigit() else machine


def _advice(config: TrainConfig, parts: MemoryEstimate, available: int) -> str:
    """Name the settings of the largest part, and lower values of them with which the run fits."""
    name = max(parts._fields, key=lambda part: getattr(parts, part))
    size = getattr(parts, name)
    share = max(0.0, (0.9 * available - (parts.total - size)) / size)
    share = share if share < 1 else 0.5
    match name:
        case "replay":
            lower = _lowered(config, "max_replay_size", share, least=config.unroll_length)
            lower += f" (and min_replay_size with it), or {_lowered(config, 'num_envs', share, least=1)}"
        case "logits":
            lower = _lowered(config, "batch_size", share**0.5, least=2)  # logits grow with its square
        case "activations":
            lower = _lowered(config, "batch_size", share, least=2)
        case "indices":
            lower = _lowered(config, "updates_per_unroll", share, least=1)
        case _:
            shallow = share * min(config.actor_depth, config.critic_depth) < LAYERS_PER_BLOCK
            what, each, least = ("width", share**0.5, 1) if shallow else ("depth", share, LAYERS_PER_BLOCK)
            lower = " and ".join(_lowered(config, f"{part}_{what}", each, least=least) for part in ("critic", "actor"))
    described = ", ".join(f"{part} {getattr(parts, part) / 1e9:.2f} GB" for part in parts._fields)
    remat = "; or store less for the backward pass with --remat blocks" if config.remat != "blocks" else ""
    needs = f"the run needs {described}, and the device has {available / 1e9:.2f} GB"
    return f"{needs}; lower {lower}{remat if name == 'activations' else ''}"


def _lowered(config: TrainConfig, setting: str, share: float, *, least: int) -> str:
    """Return the old and the new value of a setting in words. The new one is a positive multiple of `least`."""
    now = getattr(config, setting)
    return f"{setting} from {now} to {max(least, int(now * share) // least * least)}"
