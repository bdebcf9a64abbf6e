"""Report retired names in the files of the current folder: one line for each use, FILE:LINE: NAME is retired, say WORD.

A retired name is an old name of a class, function, field, flag, metric or file; docs/architecture.md has the words that
replaced them. Many of these names are also plain English words ("the parent folder"), so sentences are not searched.
Searched are identifiers in Python, text between backticks, and names that their form identifies (--flags,
kilolayer_metrics, files.py). CHANGELOG.md and the recorded results describe the past and are not searched.
"""

import argparse
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Retired(NamedTuple):
    """Retired names, as a regular expression of the whole name, and their replacement."""

    pattern: str
    instead: str


IDENTIFIERS = (
    Retired(r"_?(WaitingLine|waiting_line)", "RequestQueue"),
    Retired(r"_Tick|_Job", "QueuedRequest"),
    Retired(r"_?(UnderWay|under_way|UNDER_WAY)", "InFlightBatch"),
    Retired(r"_?(Lanes?|lanes?|full_lanes|max_lanes)", "max_concurrency, InFlightBatches"),
    Retired(r"_?(Pace|pace)", "batch delay"),
    Retired(r"_?(Doorway|doorway)", "admission"),
    Retired(r"_?(Offers|offers)", "PolicyRegistry"),
    Retired(r"_?(Settlement|settlement|settle)", "complete"),
    Retired(r"_?(Shed|shed|\w+_shed|shed_\w+)", "reject, Rejection"),
    Retired(r"_?(judge|judges|Judge|judge_\w+|JUDGE)", "admit for load, evaluate for policies, SCORE for a kind"),
    Retired(r"_?Computation", "Executor"),
    Retired(r"_?(crowd|crowded|is_crowded)", "load"),
    Retired(r"_?(company|wait_for_company)", "batch delay"),
    Retired(r"DRAW", "SAMPLE"),
    Retired(r"_?(Learner|learner)", "TrainState"),
    Retired(r"_?(Updater|updater)", "CRL"),
    Retired(r"_?Moments", "StepIndex"),
    Retired(r"EnvFacts", "EnvSpec"),
    Retired(r"TrainerState", "RunState"),
    Retired(r"OutputFolderError", "RunDirError"),
    Retired(r"publish_once", "publish"),
    Retired(r"policy_name", "name, published_name"),
    Retired(r"deterministic_action", "act"),
    Retired(r"preset_config", "TrainConfig"),
    Retired(r"stop_at_success_rate", "target_stay_rate"),
    Retired(r"success_any", "eval/touched"),
    Retired(r"min_share_reached", "min_stay_rate"),
    Retired(r"_?(Question|Questions|PendingQuestion|Slot)", "PendingRequest"),
    Retired(r"Rule", "VersionRule for --versions and --follow, DecisionRule for a canary"),
    Retired(r"_?(look_at|look_now)|LOOK_S|RETRY_LOOKS|pause_looks", "poll, poll_now, RETRY_POLLS, pause_polls"),
    Retired(r"(parse|usable)_place|PolicyPlace", "parse_path, usable_path, PolicyPath"),
    Retired(r"_?(Offer|Door|Crowd|Computer|Computed|Tally|Tallies)", "the words in docs/architecture.md"),
    Retired(r"_?(Parent|Child)", "Supervisor, WorkerProcess"),
    Retired(r"(start_)?(give|giving)_way", "lower_priority, start_at_lower_priority"),
    Retired(r"draw_columns", "noise_columns"),
    Retired(r"join_address", "parse_address"),
    Retired(r"require_devices|DeviceError", "jax_settings.device_problem"),
    Retired(r"compile_policy", "PolicyCompiler"),
    Retired(r"describe_policy", "published_name"),
    Retired(r"make_updater", "CRL"),
    Retired(r"redraw_goals", "resample_goals"),
)
ANYWHERE = (
    Retired(r"--unroll(?![\w-])", "--unroll-length"),
    Retired(r"--goal-redraw-probability", "--resample-goal-probability"),
    Retired(r"--at-goal-redraw-probability", "--resample-at-goal-probability"),
    Retired(r"--policy-name", "--name"),
    Retired(r"--replay-capacity", "--max-replay-size"),
    Retired(r"--replay-min(?![\w-])", "--min-replay-size"),
    Retired(r"--stop-at-share|--stop-at-success-rate", "--target-stay-rate"),
    Retired(r"eval/success_any", "eval/touched"),
    Retired(r"\bRestart(?=\()", "RestartPlan"),
    Retired(r"--host(?![\w-])|KILOLAYER_HOST", "--listen"),
    Retired(r"--max-wait-s", "--max-batch-delay-s"),
    Retired(r"--max-rows(?![\w-])", "--max-batch-rows, --max-call-rows"),
    Retired(r"--wait-s(?![\w-])", "--wait-for-server-s"),
    Retired(r"--min-share(?![\w-])", "--min-stay-rate"),
    Retired(r"--epochs(?![\w-])", "--num-evals"),
    Retired(r"--bf16-on-cpu", "--allow-bf16-on-cpu"),
    Retired(r"--at-once(?![\w-])", "--concurrency"),
    Retired(r"--steps-per-update", "--steps-per-gradient-step"),
    Retired(r"--min-share-reached", "--min-stay-rate"),
    Retired(r"--snapshot-replay (?:on|off)", "--snapshot-replay, --no-snapshot-replay"),
    Retired(r"kilolayer_(?:\w+_)?(?:shed|judged|offers)(?:_\w+)?", "rejected, policies"),
    Retired(
        r"\b(?:parent|child|cores|niceness|scrapes|computation|doorway|lanes|pace|waiting|settlement|offers|tallies|wire"
        r"|questions|replies|relabel|bodies|long_chains|address|calls|pipe|stopping|ordered|descriptions|inference|streams"
        r"|facts|models|elements|mjcf|point|own|evaluate|memory|publication|report|snapshot|wheelhouse|aio)\.py\b",
        "the file names in docs/architecture.md",
    ),
)
SKIPPED = ("CHANGELOG.md", "benchmarks/results", "scripts/check_names.py", "tests/scripts/test_check_names.py")


class Use(NamedTuple):
    """A retired name in a text."""

    line: int  # from 1
    name: str
    instead: str


def uses(text: str, *, python: bool) -> list[Use]:
    """Find every use of a retired name in `text`, in order of lines."""
    found = {
        Use(line, name, retired.instead)
        for line, name in _identifiers(text, python=python)
        for retired in IDENTIFIERS
        if re.fullmatch(retired.pattern, name)
    }
    for retired in ANYWHERE:
        for match in re.finditer(retired.pattern, text):
            found.add(Use(text.count("\n", 0, match.start()) + 1, match[0], retired.instead))
    return sorted(found)


def uses_in_path(path: str) -> list[Use]:
    """Find a retired name in the path of a file, as a use in line 1."""
    return uses(f"`{Path(path).stem}` {Path(path).name}", python=False)


def _identifiers(text: str, *, python: bool) -> Iterator[tuple[int, str]]:
    """Yield line and name of all names in Python, and of those between backticks in comments and documents."""
    if python:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME:
                yield token.start[0], token.string
    for number, line in enumerate(text.splitlines(), start=1):
        for quoted in re.findall(r"`([^`]+)`", line):
            for name in re.findall(r"[A-Za-z_]\w*", quoted):
                yield number, name


def _files() -> Iterator[Path]:
    """Yield the project's files, without hidden folders, runs, the website and files that Python builds."""
    for top in sorted(Path().iterdir()):
        if not top.name.startswith(".") and top.name not in {"runs", "site"}:
            for path in [top] if top.is_file() else sorted(top.rglob("*")):
                if path.is_file() and not re.search(r"__pycache__|\.egg-info", str(path)):
                    yield path


def main(arguments: Sequence[str]) -> int:
    """Search the files of the current folder; the exit code is 1 if any name was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.parse_args(arguments)
    count = 0
    for path in _files():
        if str(path).startswith(SKIPPED):
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:  # a picture
            text = ""
        for use in sorted(uses_in_path(str(path)) + uses(text, python=path.suffix in {".py", ".pyi"})):
            print(f"{path}:{use.line}: {use.name} is retired, say {use.instead}")
            count += 1
    if count:
        print(f"error: {count} uses of retired names", file=sys.stderr)
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
