"""Compare one gradient step with the machine's matrix products, and with the step as it is usually written.

    python benchmarks/train_step.py --depths 4,16,64 --batch 256 --json train_step.json

The measured step is that of training: actor, temperature, critic and Adam, several steps in one compiled loop. In every
round it takes turns with the paper-style step and with a chain of matrix products of the same sizes, which gives the
machine's rate. So other work on the machine affects all three alike. Every figure is a median over rounds. The bound of
a step is the time for its FLOP at that rate; only matrix products count as FLOP (`step_flop`).

The depths of `--compile-depths` are compiled but not run.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import _paper_style
import _record
import jax
import jax.numpy as jnp
import tyro
from tyro.constructors import PrimitiveConstructorSpec

from policy.energy import ENERGIES
from policy.layers import PRECISIONS, Execution
from policy.networks import PolicyParams, ResidualNetwork, init_network
from training.algorithms.crl.losses import CRITIC_LOSSES
from training.algorithms.crl.update import CRL
from training.data.replay_buffer import Batch

LEARNING_RATE, TARGET_ENTROPY_PER_ACTION, LOGSUMEXP_PENALTY = 3e-4, -0.5, 0.1
COMPILE_ROUNDS = 3
OURS, PAPER_STYLE = "ours", "paper"

Depths = Annotated[
    tuple[int, ...],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="DEPTH,DEPTH,...",
        instance_from_str=lambda texts: tuple(int(depth) for depth in texts[0].split(",") if depth),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda depths: [",".join(str(depth) for depth in depths)],
    ),
]


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure time, memory and compilation of one gradient step, against the paper-style step and the matmul rate."""

    json: Path | None = None
    """File for the record."""
    depths: Depths = (4, 16, 64)
    """Depths of the actor and the critic, measured one after another."""
    compile_depths: Depths = (8, 1024)
    """Depths to compare by compile time, the last with the first. An empty list skips the comparison."""
    paper_style_depth: int = 64
    """Largest depth of the paper-style step, which takes minutes to compile when deep; 0 skips it."""
    batch: int = 256
    """Number of rows in a batch."""
    width: int = 256
    """Width of every network."""
    state_dim: int = 29
    """Number of values in a state. The default sizes are those of the ant environment."""
    goal_dim: int = 2
    """Number of values in a goal."""
    action_dim: int = 8
    """Number of values in an action."""
    representation_dim: int = 64
    """Number of values in an encoding."""
    precision: Literal["f32", "bf16"] = "f32"
    """Precision of matrix products in our step and in the rate. The paper-style step uses f32."""
    remat: Literal["none", "layers", "blocks"] = "layers"
    """Which intermediate results our step stores for the backward pass."""
    block_unroll: int = 1
    """Blocks per iteration of our step's loops over blocks."""
    use_cache: bool = False
    """Use JAX's compilation cache if one is configured. The column `build s` then means nothing."""
    repeats: int = 9
    """Number of rounds. Figures are medians over rounds."""
    steps: int = 4
    """Number of steps in the compiled loop."""
    quick: bool = False
    """Small networks, two rounds and no `--compile-depths`: checks that the script works; the figures mean nothing."""


class Sizes(NamedTuple):
    """Sizes that determine the FLOP of a step."""

    batch: int
    width: int
    depth: int
    state_dim: int
    goal_dim: int
    action_dim: int
    representation_dim: int


class Passes(NamedTuple):
    """How often a batch of rows passes each kind of matrix product of a network."""

    forward: int
    input_gradient: int
    weight_gradient: int


class Flow(NamedTuple):
    """The passes of one step, by network."""

    actor: Passes
    state_action_encoder: Passes
    goal_encoder: Passes


FLOWS = {
    OURS: Flow(actor=Passes(1, 1, 1), state_action_encoder=Passes(2, 2, 1), goal_encoder=Passes(1, 1, 1)),
    PAPER_STYLE: Flow(actor=Passes(1, 1, 1), state_action_encoder=Passes(2, 2, 1), goal_encoder=Passes(2, 1, 1)),
}


class Program(NamedTuple):
    """A compiled loop of steps."""

    run: Callable[..., tuple[Any, Any]]  # train_state, batches, keys -> train_state, metrics
    seconds: float  # to trace, lower and compile
    peak_bytes: int


class Step(NamedTuple):
    """A gradient step, with the function that initializes its state."""

    init: Callable[[jax.Array], Any]
    update: Callable[..., tuple[Any, Any]]


class Round(NamedTuple):
    """Measurements of one round: seconds per step by name, and the machine's rate in FLOP per second."""

    seconds: dict[str, float]
    rate: float


def main() -> None:
    """Measure, and write the record."""
    options = tyro.cli(Options)
    if options.quick:
        options = dataclasses.replace(options, depths=(4, 8), compile_depths=(), width=64, batch=64, repeats=2)
    about = _record.machine()
    jax.config.update("jax_enable_compilation_cache", options.use_cache)
    compile_program(options, our_step(options, 4))  # the first compilation of a process takes longer
    rows = [row for depth in options.depths for row in measure(options, depth)]
    notes = (
        f"batch {options.batch}, width {options.width}, {options.precision}, remat {options.remat}, "
        f"block unroll {options.block_unroll}, medians of {options.repeats} rounds; build: trace and compile; "
        "rate: GFLOP/s of matrix products alone, same rounds; ratio: time / (GFLOP / rate); share: 1 / ratio"
    )
    if options.compile_depths:
        compiled, ratio = compare_compilation(options)
        rows += compiled
        notes += f"; build s at depth {options.compile_depths[-1]} / at {options.compile_depths[0]}: {ratio:.2f}"
    _record.report("one gradient step", rows, about=about, json_file=options.json, notes=notes)


def step_flop(sizes: Sizes, flow: Flow, *, logits_by_product: bool) -> int:
    """Return the FLOP of the matrix products that one step needs: 2 * rows * in * out for each.

    With unit(i, o) = 2 B i o for a batch of B rows, and width W, depth D, state S, goal G, action A, encoding R, and
    with f, i and w the `Passes` of a network:

        blocks       (f + i + w) D unit(W, W) for each network
        outputs      (f + i + w) unit(W, 2A) for the actor, (f + i + w) unit(W, R) for phi and psi
        inputs       (f + w) unit(S + G, W) for the actor, (f + w) unit(S + A, W) for phi, (f + w) unit(G, W) for psi,
                     and unit(A, W): the gradient of the actor's own action, the only input that needs one
        logits       3 * 2 B B R: forward, and the gradients of both factors

    Ours comes to 3 + 5 + 3 = 11 units per layer of the blocks, the paper-style step to 12.

    Args:
        logits_by_product: whether the logits are computed as a matrix product. Differences do not count as FLOP.
    """
    batch, width, depth, state, goal, action, representation = sizes

    def unit(inputs: int, outputs: int) -> int:
        return 2 * batch * inputs * outputs

    networks = (
        (flow.actor, state + goal, 2 * action),
        (flow.state_action_encoder, state + action, representation),
        (flow.goal_encoder, goal, representation),
    )
    flop = unit(action, width)
    for passes, inputs, outputs in networks:
        flop += sum(passes) * (depth * unit(width, width) + unit(width, outputs))
        flop += (passes.forward + passes.weight_gradient) * unit(inputs, width)
    return flop + (3 * unit(batch, representation) if logits_by_product else 0)


def measure(options: Options, depth: int) -> list[dict[str, Any]]:
    """Return one row per step at this depth."""
    steps = {OURS: our_step(options, depth)}
    if depth <= options.paper_style_depth:
        steps[PAPER_STYLE] = paper_style_step(options, depth)
    programs = {name: compile_program(options, step) for name, step in steps.items()}
    rounds = take_turns(options, steps, programs)
    return [row(options, depth, name, program=program, rounds=rounds) for name, program in programs.items()]


def row(options: Options, depth: int, name: str, *, program: Program, rounds: list[Round]) -> dict[str, Any]:
    """Return one row of the table. Without rounds, the program was only compiled."""
    sizes = Sizes(
        options.batch,
        options.width,
        depth,
        options.state_dim,
        options.goal_dim,
        options.action_dim,
        options.representation_dim,
    )
    flop = step_flop(sizes, FLOWS[name], logits_by_product=name == OURS)

    def median(figure: Callable[[Round], float]) -> float | None:
        return statistics.median(figure(each) for each in rounds) if rounds else None

    compared = name == OURS and bool(rounds) and PAPER_STYLE in rounds[0].seconds
    return {
        "depth": depth,
        "step": name,
        "build s": program.seconds,
        "ms": median(lambda each: 1e3 * each.seconds[name]),
        "MiB": program.peak_bytes / 2**20,
        "GFLOP": flop / 1e9,
        "rate": median(lambda each: each.rate / 1e9),
        "share": median(lambda each: flop / (each.seconds[name] * each.rate)),
        "ratio": median(lambda each: each.seconds[name] * each.rate / flop),
        "to paper": median(lambda each: each.seconds[OURS] / each.seconds[PAPER_STYLE]) if compared else None,
    }


def take_turns(options: Options, steps: dict[str, Step], programs: dict[str, Program]) -> list[Round]:
    """Run every program and then the matrix products, in every round. The first round is a warm-up."""
    batches, keys = inputs(options)
    multiply = matrix_products(options)
    train_states = {name: step.init(jax.random.key(2)) for name, step in steps.items()}
    rounds: list[Round] = []
    for _ in range(options.repeats + 1):
        seconds: dict[str, float] = {}
        for name, program in programs.items():
            began = time.perf_counter()
            train_states[name], _ = jax.block_until_ready(program.run(train_states[name], batches, keys))
            seconds[name] = (time.perf_counter() - began) / options.steps
        rounds.append(Round(seconds, rate=multiply(at_least_s=min(seconds.values()))))
    return rounds[1:]


def matrix_products(options: Options) -> Callable[..., float]:
    """Return a function that multiplies [batch, width] by [width, width] repeatedly and returns FLOP per second."""
    chain = 32
    kind = PRECISIONS[options.precision]
    key, weights_key = jax.random.split(jax.random.key(3))
    values = jax.random.normal(key, (options.batch, options.width), kind)
    # orthogonal: the values of a long chain neither grow nor vanish
    weights = jnp.linalg.qr(jax.random.normal(weights_key, (options.width, options.width)))[0].astype(kind)

    @jax.jit
    def run(values: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, chain, lambda _, values: values @ weights, values)

    jax.block_until_ready(run(values, weights))

    def rate(*, at_least_s: float) -> float:
        products, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < at_least_s or not products:
            jax.block_until_ready(run(values, weights))
            products += chain
        return products * 2 * options.batch * options.width**2 / spent

    return rate


def compare_compilation(options: Options) -> tuple[list[dict[str, Any]], float]:
    """Return a row for every depth of `compile_depths`, and the ratio of the last build time to the first."""
    depths = options.compile_depths
    rounds = [[compile_program(options, our_step(options, depth)) for depth in depths] for _ in range(COMPILE_ROUNDS)]
    rows: list[dict[str, Any]] = []
    for index, depth in enumerate(depths):
        seconds = statistics.median(each[index].seconds for each in rounds)
        rows.append(row(options, depth, OURS, program=rounds[0][index]._replace(seconds=seconds), rounds=[]))
    return rows, statistics.median(each[-1].seconds / each[0].seconds for each in rounds)


def compile_program(options: Options, step: Step) -> Program:
    """Compile a loop of `options.steps` steps that donates the memory of its train state."""

    def loop(train_state: Any, batches: Batch, keys: jax.Array) -> tuple[Any, Any]:
        def one(train_state: Any, inputs: tuple[Batch, jax.Array]) -> tuple[Any, Any]:
            batch, key = inputs
            return step.update(train_state, batch, key=key)

        return jax.lax.scan(one, train_state, (batches, keys))

    shapes: Any = jax.eval_shape(lambda: (step.init(jax.random.key(2)), *inputs(options)))
    began = time.perf_counter()
    compiled = jax.jit(loop, donate_argnums=0).lower(*shapes).compile()
    seconds = time.perf_counter() - began
    memory: Any = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
    peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return Program(compiled, seconds, peak)


def inputs(options: Options) -> tuple[Batch, jax.Array]:
    """Draw a batch and a key for every step of the loop: leaves [steps, batch, ...]."""
    state_key, future_key, action_key, keys_key = jax.random.split(jax.random.key(1), 4)
    shape = (options.steps, options.batch)
    batches = Batch(
        state=jax.random.normal(state_key, (*shape, options.state_dim)),
        action=jnp.tanh(jax.random.normal(action_key, (*shape, options.action_dim))),
        future_state=jax.random.normal(future_key, (*shape, options.state_dim)),
    )
    return batches, jax.random.split(keys_key, options.steps)


def our_step(options: Options, depth: int) -> Step:
    """Return the gradient step of training."""
    crl = CRL(
        achieved_goal=lambda state: state[:, : options.goal_dim],
        actor_learning_rate=LEARNING_RATE,
        critic_learning_rate=LEARNING_RATE,
        temperature_learning_rate=LEARNING_RATE,
        target_entropy=TARGET_ENTROPY_PER_ACTION * options.action_dim,
        critic_loss=CRITIC_LOSSES["forward"],
        energy=ENERGIES["l2"],
        logsumexp_penalty=LOGSUMEXP_PENALTY,
        execution=Execution(precision=options.precision, remat=options.remat, unroll=options.block_unroll),
    )
    state, goal, action = options.state_dim, options.goal_dim, options.action_dim
    ends = (
        (state + goal, 2 * action),
        (state + action, options.representation_dim),
        (goal, options.representation_dim),
    )

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, len(ends))
        actor, *encoders = (
            init_network(key, ResidualNetwork(depth, options.width, out_dim), in_dim=in_dim)
            for key, (in_dim, out_dim) in zip(keys, ends, strict=True)
        )
        return crl.init(PolicyParams(actor, state_action_encoder=encoders[0], goal_encoder=encoders[1]))

    return Step(jax.jit(init), crl.update)


def paper_style_step(options: Options, depth: int) -> Step:
    """Return the step of `_paper_style`, with the same hyperparameters."""
    crl = _paper_style.CRL(
        depth=depth,
        width=options.width,
        action_dim=options.action_dim,
        representation_dim=options.representation_dim,
        achieved_goal=lambda state: state[:, : options.goal_dim],
        learning_rate=LEARNING_RATE,
        target_entropy=TARGET_ENTROPY_PER_ACTION * options.action_dim,
        logsumexp_penalty=LOGSUMEXP_PENALTY,
    )

    def init(key: jax.Array) -> Any:
        return crl.fresh(key, state_dim=options.state_dim, goal_dim=options.goal_dim)

    return Step(init, crl.update)


if __name__ == "__main__":
    main()
