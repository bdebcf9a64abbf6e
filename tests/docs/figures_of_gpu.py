"""Figures of one H200."""

from collections.abc import Sequence

from tests.docs.figures import Record, Texts, find, line, record, significant

PAGE = "benchmarks/results/gpu.md"
RESULTS = "docs/results.md"
FLOOR = {(512, 4): ".02", (512, 16): ".08", (512, 64): ".31", (512, 256): "1.2", (512, 1024): "4.9", (2048, 64): ".55"}
PUBLISHED = {4: "0.9", 16: "3.7", 64: "14.7", 256: "59", 1024: "236"}  # ms at batch 512, from the paper's hours


def gradient_step() -> Texts:
    """One gradient step."""
    plain, rounded, plain_2048, rounded_2048, unrolled = (each["rows"] for each in record("gpu/train_step.json"))
    for batch, f32, bf16 in ((512, plain, rounded), (2048, plain_2048, rounded_2048)):
        for depth in (4, 16, 64, 256, 1024):
            ours = find(f32, depth=depth, step="ours")
            paper = [row["ms"] for row in f32 if row["depth"] == depth and row["step"] == "paper"]
            yield (
                PAGE,
                line(
                    batch,
                    depth,
                    milliseconds(ours["ms"]),
                    milliseconds(find(bf16, depth=depth)["ms"]),
                    significant(paper[0]) if paper else "not built",
                    f"{ours['to paper']:.2f}" if paper else None,
                    PUBLISHED[depth] if batch == 512 else None,
                    FLOOR.get((batch, depth)),
                ),
            )
    steps = {depth: find(plain, depth=depth, step="ours") for depth in (4, 64, 1024)}
    each = " / ".join(milliseconds(row["ms"]) for row in steps.values())
    ratios = " / ".join(f"{steps[depth]['to paper']:.2f}" for depth in (4, 64))
    yield RESULTS, f"{each} ms"
    yield RESULTS, f"{ratios} of its time"
    saved = max(
        1 - find(bf16, depth=depth)["ms"] / find(f32, depth=depth, step="ours")["ms"]
        for f32, bf16 in ((plain, rounded), (plain_2048, rounded_2048))
        for depth in (4, 16, 64, 256, 1024)
    )
    yield "docs/training.md", f"saves up to {round(saved, 1):.0%}".replace("%", " %")
    yield PAGE, f"(`--block-unroll 4`), depth 64 takes {find(unrolled, depth=64)['ms']:.1f} ms"


def kernels() -> Texts:
    """Kernels of one gradient step."""
    rows = record("gpu/step_kernels.json")["rows"]
    ours, paper = (find(rows, depth=64, step=step) for step in ("ours", "paper"))
    yield PAGE, f"launches {ours['kernels']:,.0f} kernels and {ours['copies']:,.0f} copies"
    yield PAGE, f"the paper-style step launches {paper['kernels']:,.0f}"
    yield PAGE, f"the paper-style step took {paper['ms']:.2f} ms"


def physics() -> Texts:
    """Both implementations of the physics."""
    found = record("gpu/physics.json")
    rates = {
        ("warp" if " --physics warp " in each["command"] else "jax", row["environment"], row["worlds"]): row["steps/s"]
        for each in found
        for row in each["rows"]
    }
    for env in ("point_u_maze", "ant", "ant_big_maze", "humanoid", "arm_push_easy"):
        columns = [(impl, worlds) for worlds in (512, 4096) for impl in ("jax", "warp")]
        yield PAGE, line(env, *(thousands(rates[impl, env, worlds]) for impl, worlds in columns))
    arm, point, ant = (
        rates["warp", env, 512] / rates["jax", env, 512] for env in ("arm_push_easy", "point_u_maze", "ant_big_maze")
    )
    yield PAGE, f"arms ({arm:.1f} times)"
    yield "docs/environments.md", f"{arm:.1f} times as fast for `arm_push_easy`, {point:.1f} times for `point_u_maze`"
    yield PAGE, f"points ({point:.1f})"
    yield PAGE, f"ants in mazes ({ant:.2f})"


def loop() -> Texts:
    """The whole training loop."""
    rows = record("gpu/train_loop_ant.json")["rows"]
    published = {4: 18_500, 64: 2_500}
    for row in rows:
        ratio = f"{row['steps/s'] / published[row['depth']]:.1f}"
        collect, learn = f"{row['collect s']:.3f}", significant(row["learn s"])
        yield PAGE, line(row["depth"], significant(row["steps/s"]), ratio, collect, learn)
    share = [row["learn s"] / (row["learn s"] + row["collect s"]) for row in rows]
    yield (
        PAGE,
        f"Learning takes {share[0]:.0%} of the time at depth 4 and {share[1]:.0%} at depth 64".replace("%", " %"),
    )
    each = " and ".join(significant(1000 * row["learn s"] / 793, 2) or "" for row in rows)
    yield PAGE, f"793 gradient steps of {each} ms"
    shallow, deep = (significant(row["steps/s"]) for row in rows)
    yield RESULTS, f"{shallow} / {deep} environment steps/s"
    yield "docs/training.md", f"{shallow} environment steps per second on `ant` at depth 4, and {deep} at depth 64"


def serving() -> Texts:
    """Calls of few and of many rows."""
    rows = record("gpu/serve_batches.json")["rows"]
    for row in rows:
        times = (f"{row[name]:,.0f}" for name in ("p50", "p99", "compiled p50", "echo p50"))
        rates = (thousands(row[name]) for name in ("rows/s", "compiled rows/s"))
        yield PAGE, line(row["depth"], row["rows"], *times, f"{row['overhead']:.2f}", *rates)
    large = {row["depth"]: row for row in rows if row["rows"] == 4096}
    ratios = {depth: f"{row['of compiled']:.2f}" for depth, row in large.items()}
    yield PAGE, f"{ratios[64]}, {ratios[256]} and {ratios[1024]} of the rate of the compiled call"
    rates = " / ".join(thousands(large[depth]["rows/s"]) for depth in (64, 1024))
    yield RESULTS, f"{ratios[64]} / {ratios[1024]} of its rows/s ({rates})"


def xla_flags() -> Texts:
    """A gradient step by XLA's flags."""
    rows = record("gpu/xla_flags.json")["rows"]
    names = {
        "none": "none",
        "no command buffers": "no command buffers",
        "buffers of loops": "command buffers of loops",
        "buffers of unrolled loops": "the same, loops unrolled in them",
        "double buffering": "double buffering of loops",
        "no triton gemm": "no Triton products",
    }
    for flags, name in names.items():
        yield PAGE, line(name, *(both(rows, flags, depth) for depth in (16, 64)))


def both(rows: Sequence[Record], flags: str, depth: int) -> str:
    """Return the milliseconds of both runs."""
    row = find(rows, flags=flags, depth=depth)
    return ", ".join(milliseconds(row[run]) for run in ("ms", "ms again"))


def milliseconds(figure: float) -> str:
    """Return three significant digits, but two decimals below 1 ms."""
    return f"{figure:.2f}" if figure < 1 else significant(figure) or ""


def thousands(figure: float) -> str:
    """Return three significant digits, without decimals."""
    return f"{float(f'{figure:.3g}'):,.0f}"


ALL = (gradient_step, kernels, physics, loop, serving, xla_flags)
