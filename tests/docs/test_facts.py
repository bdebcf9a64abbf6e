"""Lists in the documentation are those of the code: flags, environments, metrics, reasons, exceptions."""

import argparse
import dataclasses
import importlib
import itertools
import re
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

import kilolayer
from clients.sim.run import DriveConfig
from serving.access.refusals import Cause
from serving.admin import parser as admin_parser
from serving.api.http.events import Refusal
from serving.config import ServeConfig
from serving.policies.episode_reports import EpisodeReports
from serving.policies.report_metrics import ReportsCollector
from serving.policies.sequential_test import Verdict
from serving.policies.status import PolicyStatus
from serving.policies.trial_metrics import TrialsCollector
from serving.telemetry.metrics import Metrics
from tests.docs.blocks import PAGES, ROOT
from training.config import TrainConfig
from training.envs import registry
from training.presets.published import PUBLISHED
from training.presets.settings import PAPER_BUDGETS

CODE = ("policy", "training", "serving", "clients")
METRICS = "| metric | meaning |"
REASONS = {
    "policy.proto": ("docs/serving.md", "| reason | status | meaning |"),
    "admin.proto": ("docs/operations.md", "| reason of PolicyAdmin | status | meaning |"),
}
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
# Flags that no configuration has, and flags of other programs: pip, tensorboard, docker, perf_analyzer, sbatch.
OTHER_FLAGS = {
    *("--check", "--dry-run", "--help", "--list-envs", "--stopped-exit-code"),
    *("--find-links", "--no-index", "--only-binary", "--requeue", "--signal"),
    *("--cacert", "--cert", "--key"),
    *("--build-arg", "--concurrency-range", "--gpus", "--logdir", "--no-deps", "--require-hashes", "--target"),
}


def text(page: str) -> str:
    """The text of a page, named from the root of the repository."""
    return (ROOT / page).read_text()


def cells(page: str, header: str) -> list[list[str]]:
    """The rows of the table with this header, without the header."""
    below = text(page).split(f"{header}\n")[1].splitlines()[1:]
    rows = itertools.takewhile(lambda line: line.startswith("|"), below)
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def flags(config: type) -> Iterator[str]:
    """The flags that tyro makes of a dataclass."""
    for field in dataclasses.fields(config):
        name = field.name.replace("_", "-")
        yield f"--{name}"
        yield f"--no-{name}"


def policy_flags() -> Iterator[str]:
    """The flags of the subcommands of kilolayer-policy, which are modules of one package."""
    for path in (ROOT / "training" / "policy_command").glob("[a-z]*.py"):
        subcommand = importlib.import_module(f"training.policy_command.{path.stem}")
        if hasattr(subcommand, "HELP"):
            parser = argparse.ArgumentParser()
            subcommand.add_arguments(parser)
            yield from FLAG.findall(parser.format_help())


def test_every_flag_in_a_text_is_one_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    options = [importlib.import_module(path.stem).Options for path in (ROOT / "benchmarks").glob("[a-z]*.py")]
    known = set(FLAG.findall(admin_parser().format_help())) | set(policy_flags()) | {"--json"}
    known |= {flag for config in (TrainConfig, ServeConfig, DriveConfig, *options) for flag in flags(config)}
    for page in PAGES:
        shown = {flag for flag in FLAG.findall(page.read_text()) if not flag.endswith("-")}
        assert shown - known <= OTHER_FLAGS, page


def test_the_readme_counts_the_environments() -> None:
    assert f"* **Environments.** {len(registry.built_in().entries)} environments:" in text("README.md")


@pytest.mark.slow  # builds every environment
def test_the_table_of_environments_is_the_registrys() -> None:
    header = "| name | state | goal | action | control period | success radius | episode |"
    shown: dict[str, list[str]] = {}
    for names, *facts in cells("docs/environments.md", header):
        first, *others = re.findall(r"`(\w+)`", names)
        for name in [first, *others]:
            shown[name] = facts
        if "..." in names:  # `ant_u2_maze` ... `ant_u7_maze`
            shown |= {f"ant_u{length}_maze": facts for length in range(2, 8)}
    actual: dict[str, list[str]] = {}
    for name in registry.built_in().entries:
        if name.endswith("_eval"):
            continue
        env = registry.make(name)
        sizes = [str(size) for size in (env.state_size, env.goal_size, env.action_size)]
        period, radius = f"{env.control_period_s:g} s", f"{env.spec.success_radius:g} m"
        actual[name] = [*sizes, period, radius, f"{env.spec.episode_length} steps"]
    assert shown == actual


class NoTrials:
    def status(self) -> tuple[PolicyStatus, ...]:
        return ()

    def verdicts(self) -> dict[tuple[str, Verdict], int]:
        return {}


def test_the_metrics_are_those_of_the_server() -> None:
    metrics = CollectorRegistry()
    Metrics(metrics)
    metrics.register(ReportsCollector(EpisodeReports()))
    metrics.register(TrialsCollector(NoTrials()))
    actual = {f"{family.name}_total" if family.type == "counter" else family.name for family in metrics.collect()}
    with_a_port_workers_or_devices = {
        *("kilolayer_connections", "kilolayer_http_connections", "kilolayer_workers"),
        *("kilolayer_device_memory_bytes", "kilolayer_admin_actions_total"),
    }
    shown = re.findall(r"`(kilolayer_\w+)", " ".join(row[0] for row in cells("docs/serving.md", METRICS)))
    assert sorted(shown) == sorted(actual | with_a_port_workers_or_devices)


@pytest.mark.parametrize("proto", REASONS)
def test_the_reasons_are_those_of_the_contract(proto: str) -> None:
    table = text(f"protos/kilolayer/v1/{proto}").split("// reason   ")[1]
    actual = re.findall(r"^// (\w+) +([A-Z_]+)  +\w", table, flags=re.MULTILINE)
    shown = [(reason.strip("`"), status.strip("`")) for reason, status, _ in cells(*REASONS[proto])]
    assert len(actual) > 3
    assert shown == actual


def test_the_causes_of_refused_calls_are_those_of_the_server() -> None:
    shown = [row[0].strip("`") for row in cells("docs/security.md", "| reason of a refused call | meaning |")]
    assert shown == list(Cause)


def test_the_reasons_of_http_are_those_of_the_server() -> None:
    shown = [row[0].strip("`") for row in cells("docs/serving.md", "| reason of HTTP | HTTP | when |")]
    assert shown == list(Refusal)


def test_the_exceptions_are_those_of_the_client() -> None:
    header = "| exception | inherits from | meaning | what to do |"
    shown = {row[0].strip("`"): row[1].strip("`") for row in cells("clients/python/README.md", header)}
    public = [getattr(kilolayer, name) for name in kilolayer.__all__]
    errors = [each for each in public if isinstance(each, type) and issubclass(each, kilolayer.KilolayerError)]
    assert shown == {each.__name__: ", ".join(base.__name__ for base in each.__bases__) for each in errors}


def test_the_tree_names_what_exists() -> None:
    tree = text("docs/architecture.md").split("## The tree")[1].split("```text\n")[1].split("```")[0]
    folders: list[str] = []
    for line in filter(None, tree.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [line.split()[0]]
        path = ROOT.joinpath(*folders)
        assert path.is_dir() if folders[-1].endswith("/") else path.is_file(), path


def test_the_places_to_change_things_exist() -> None:
    for _, place, guard in cells("docs/architecture.md", "| to change | edit | test that guards it |"):
        assert missing_names(place) == []
        assert missing_names(guard) == []
        tests = re.findall(r"`([^`]+\.py)`", guard)
        assert tests, f"no test guards {place}"
        assert all(re.fullmatch(r"tests/.*/test_\w+\.py", test) for test in tests), tests


def test_a_missing_name_is_noticed() -> None:
    assert missing_names("`serving/config.py`: `ServeConfig.max_batch_delay_s`, `--listen`, `ServeConfig.lisen`") == [
        "ServeConfig.lisen"
    ]
    assert missing_names("`serving/config.py`: `ServeConfig`; `policy/spec.py`: `ServeConfig`") == ["ServeConfig"]


def missing_names(place: str) -> list[str]:
    """The names between backticks that the file named before them does not define; flags are checked elsewhere."""
    missing, source = [], ""
    for name in re.findall(r"`([^`]+)`", place):
        if name.endswith(".py"):
            source = (ROOT / name).read_text()
        elif not name.startswith("--"):
            last = name.rpartition(".")[2]
            defined = rf"^ *(async )?(def|class) {last}\b|^{last}(:| =)|^    {last}: "  # the last one is a field
            missing += [] if re.search(defined, source, flags=re.MULTILINE) else [name]
    return missing


def test_the_vocabulary_is_that_of_the_code() -> None:
    sources = "\n".join(path.read_text() for folder in CODE for path in (ROOT / folder).rglob("*.py"))
    for words, _ in cells("docs/architecture.md", "| word | meaning |"):
        for name in re.findall(r"`(\w+)`", words):
            assert re.search(rf"\b{name}\b", sources), f"{name} is in no source"


def test_contributing_lists_the_make_targets() -> None:
    shown = [target.strip("`").removeprefix("make ") for target, _ in cells("CONTRIBUTING.md", "| target | does |")]
    assert sorted(shown) == sorted(re.findall(r"^([a-z-]+):", text("Makefile"), flags=re.MULTILINE))


def test_the_keys_of_the_metrics_log_are_those_of_training() -> None:
    rows = cells("docs/training.md", "| key in `metrics.jsonl` | meaning |")
    shown = {key for row in rows for key in re.findall(r"`([\w/]+)`", row[0])}
    sources = [*(ROOT / "training").glob("*.py"), *(ROOT / "training/algorithms/crl").glob("*.py")]
    logged = {
        key for path in sources for key in re.findall(r'"((?:eval|loss|contrast|physics|time)/\w+)"', path.read_text())
    }
    assert shown == logged | {"env_steps", "temperature", "entropy"}


def test_the_three_ways_through_the_code_are_short_and_visit_no_file_twice() -> None:
    tables = text("docs/architecture.md").split("| file | does |\n")[1:]
    ways = [re.findall(r"^\| `([\w/]+\.py)` \|", table.split("\n\n")[0], flags=re.MULTILINE) for table in tables]
    assert len(ways) == 3
    for way in ways:
        assert 3 < len(way) <= 9
        assert len(set(way)) == len(way)
        assert all((ROOT / file).is_file() for file in way)


def test_the_published_figures_are_those_of_a_dry_run() -> None:
    for preset, facts in (("paper", " environment steps | evaluated on |"), ("training_layouts", "")):
        header = f"| `--preset {preset} --env` |{facts} 4 | 8 | 16 | 32 | 64 |"
        shown = {row[0].strip("`"): row[1:] for row in cells("docs/training.md", header)}
        assert shown.keys() == PUBLISHED[preset].keys()
        for env, figures in PUBLISHED[preset].items():
            assert shown[env][-5:] == [f"{figure:g}" for figure in figures.time_at_goal.values()]
    for env, (steps, layout) in PAPER_BUDGETS.items():
        header = "| `--preset paper --env` | environment steps | evaluated on | 4 | 8 | 16 | 32 | 64 |"
        row = next(row for row in cells("docs/training.md", header) if row[0] == f"`{env}`")
        assert row[1:3] == [f"{steps // 1_000_000} million", f"`{layout}`" if layout else "the same"]
