"""Draw the curves of several runs with the same setting and different seeds as one picture: mean and band.

    python scripts/curves.py runs/seed0 runs/seed1 runs/seed2 --out curves.png

Each run is a thin line. The thick line is their mean, and the band goes from the lowest to the highest run, over the
steps that all runs cover; between its evaluations a run is interpolated. A single run is drawn with the 95 % intervals
of its evaluations.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policy import bundle
from training.config import title_without_seed
from training.run_dir import config_file, curves
from training.run_dir.metrics_log import MetricsError, read_metrics


class CurvesError(Exception):
    """The runs cannot be drawn in one picture."""


def main(arguments: Sequence[str]) -> int:
    """Draw the picture; return the exit code."""
    options = parse(arguments)
    try:
        print(f"curves in {draw(options.runs, options.out)}")
    except (CurvesError, MetricsError, OSError, config_file.ConfigFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line into `runs` and `out`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG", help="file to write")
    return parser.parse_args(arguments)


def draw(folders: Sequence[Path], out: Path) -> Path:
    """Draw the runs in `folders` into the PNG file `out`; return `out`.

    Raises:
        CurvesError: a folder has no evaluation, or the runs differ in more than the seed, or cover no common steps.
        MetricsError, ConfigFileError: a file of a run cannot be read.
        OSError: a file is missing, or `out` cannot be written.
    """
    if out.suffix.lower() != ".png":
        raise CurvesError(f"--out must be a file name that ends in .png, got {out}")
    configs = [config_file.read(folder) for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        different = config_file.difference(configs[0], config)
        if different:
            raise CurvesError(
                f"{folder} has {different} {config.get(different)!r} and {folders[0]} has "
                f"{configs[0].get(different)!r}; draw runs together that differ in nothing but their seed"
            )
    runs = [read_metrics(folder) for folder in folders]
    for folder, rows in zip(folders, runs, strict=True):
        if not rows:
            raise CurvesError(f"{folder} has no evaluation yet; leave it out")
    if max(rows[0]["env_steps"] for rows in runs) > min(rows[-1]["env_steps"] for rows in runs):
        raise CurvesError(
            "a run ended before another one was first evaluated, so they have no steps in common; draw them one by "
            "one, or train with --max-eval-share 1 and --target-stay-rate inf"
        )
    return curves.draw(runs, out, title=_title(configs), target_entropy=_target_entropy(configs[0], folders))


def _title(configs: Sequence[dict[str, Any]]) -> str:
    """Return environment, baseline, depth, and the seed or the number of seeds."""
    seeds = [config["seed"] for config in configs]
    several = f"mean of {len(seeds)} seeds, band from the lowest to the highest"
    return f"{title_without_seed(configs[0])}, {several if len(seeds) > 1 else f'seed {seeds[0]}'}"


def _target_entropy(config: dict[str, Any], folders: Sequence[Path]) -> float | None:
    """Return the entropy that the runs aim at, in nats; None before a run has published a policy."""
    for folder in folders:
        for version in bundle.versions(folder / "policies"):
            spec = json.loads((folder / "policies" / str(version) / "policy.json").read_bytes())["spec"]
            return len(spec["action_names"]) * config["target_entropy_per_action"]
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
