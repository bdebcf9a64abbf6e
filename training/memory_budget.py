"""What a run needs of the device's memory, part by part, so that what does not fit is refused with what would."""

import os
from pathlib import Path
from typing import NamedTuple

import jax

from policy.layers import PRECISIONS
from policy.spec import LAYERS_PER_BLOCK
from training.config import TrainConfig
from training.envs.core.goal_env import GoalEnv

_OPTIMIZER_COPIES = 4  # parameters, gradients and Adam's two moments, float32 each
_KEPT_PER_BLOCK = {"none": 8, "layers": 5, "blocks": 1}  # arrays of [rows, width], see policy.layers
_LOGITS = 5  # arrays of [batch, batch], float32: the scores, their softmax and their slopes
_DRAWS = 4  # of a row: which step and which later one, by age and environment
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_FLOAT = 4
_INT = 4


class Parts(NamedTuple):
    """Bytes, by what they grow with."""

    replay: int  # num_envs x max_replay_size
    parameters: int  # depth x width^2
    activations: int  # batch_size x depth x width
    logits: int  # batch_size^2
    draws: int  # updates_per_unroll x batch_size

    @property
    def total(self) -> int:
        """All of them; the environments' own states, which are small beside, are left out."""
        return sum(self)


def estimate(config: TrainConfig, env: GoalEnv) -> Parts:
    """Bytes that training holds at once, to within some percent of what a compiler makes of it."""
    per_step = _FLOAT * (env.state_size + env.action_size) + _INT
    square = {"actor": config.actor_width**2, "critic": config.critic_width**2}
    layers = config.actor_depth * square["actor"] + 2 * config.critic_depth * square["critic"]
    kept = _KEPT_PER_BLOCK[config.remat] / LAYERS_PER_BLOCK
    # the actor's rows, phi's two sets of rows, psi's rows
    layer_rows = config.actor_depth * config.actor_width + 3 * config.critic_depth * config.critic_width
    # what a product leaves is kept in the chosen precision, a block's input always in float32
    item = _FLOAT if config.remat == "blocks" else PRECISIONS[config.precision].dtype.itemsize
    return Parts(
        replay=config.num_envs * config.max_replay_size * per_step,
        parameters=_OPTIMIZER_COPIES * _FLOAT * layers,
        activations=int(item * kept * config.batch_size * layer_rows),
        logits=_LOGITS * _FLOAT * config.batch_size**2,
        draws=_DRAWS * _INT * config.updates_per_unroll * config.batch_size,
    )


def require_fit(config: TrainConfig, env: GoalEnv, *, available: int | None = None) -> None:
    """Refuse a run that the device has no room for.

    Args:
        available: bytes of device memory; what the device says, if None.

    Raises:
        MemoryError: it does not fit; the message says which setting to lower, and to what.
    """
    available = device_memory() if available is None else available
    parts = estimate(config, env)
    if parts.total > available:
        raise MemoryError(f"this run does not fit on the device; {_advice(config, parts, available)}")


def advice(config: TrainConfig, env: GoalEnv) -> str:
    """What to lower, and to what, for a run that was found not to fit."""
    return _advice(config, estimate(config, env), device_memory())


def device_memory() -> int:
    """Bytes of the first device's memory; of the machine's, or of the container's, where the device is its CPU."""
    limits = jax.local_devices()[0].memory_stats()
    if limits and "bytes_limit" in limits:
        return int(limits["bytes_limit"])
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    contained = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else "max"
    return min(machine, int(contained)) if contained.isdigit() else machine


def _advice(config: TrainConfig, parts: Parts, available: int) -> str:
    """Name the largest part and the values of its settings with which the whole would fit, or half of it."""
    name = max(parts._fields, key=lambda part: getattr(parts, part))
    size = getattr(parts, name)
    share = max(0.0, (0.9 * available - (parts.total - size)) / size)
    share = share if share < 1 else 0.5
    match name:
        case "replay":
            lower = _lowered(config, "max_replay_size", share, least=config.unroll_length)
            lower += f" (and min_replay_size with it), or {_lowered(config, 'num_envs', share, least=1)}"
        case "logits":
            lower = _lowered(config, "batch_size", share**0.5, least=2)  # they grow with its square
        case "activations":
            lower = _lowered(config, "batch_size", share, least=2)
        case "draws":
            lower = _lowered(config, "updates_per_unroll", share, least=1)
        case _:
            shallow = share * min(config.actor_depth, config.critic_depth) < LAYERS_PER_BLOCK
            what, each, least = ("width", share**0.5, 1) if shallow else ("depth", share, LAYERS_PER_BLOCK)
            lower = " and ".join(_lowered(config, f"{part}_{what}", each, least=least) for part in ("critic", "actor"))
    described = ", ".join(f"{part} {getattr(parts, part) / 1e9:.2f} GB" for part in parts._fields)
    remat = "; or keep less for the backward pass with --remat blocks" if config.remat != "blocks" else ""
    return f"{described}, of {available / 1e9:.2f} GB; lower {lower}{remat if name == 'activations' else ''}"


def _lowered(config: TrainConfig, setting: str, share: float, *, least: int) -> str:
    """From what to what a setting is to be lowered; the new value is a multiple of `least`, and at least that."""
    now = getattr(config, setting)
    return f"{setting} from {now} to {max(least, int(now * share) // least * least)}"
