"""Whether a run to resume has nothing left to do, from its files alone: without building or compiling anything."""

from policy import bundle
from training import evaluation
from training.config import TrainConfig
from training.run_dir import checkpoint, elapsed
from training.run_dir.metrics_log import read_metrics


def describe(config: TrainConfig) -> str:
    """Return why the run in `config.out` is finished and how to continue it; empty if it is not finished.

    With `resume` auto, a run that ended because of its time limit is finished, too. With `resume` alone it is not: a
    resumed run then starts to count again.

    Raises:
        MetricsError: the metrics or the time cannot be read.
    """
    if config.resume == "auto" and config.max_minutes <= elapsed.read(config.out).ended_at_minutes:
        return (
            f"{config.out} is finished: it has trained for max_minutes {config.max_minutes:g}; raise --max-minutes to "
            "go on, or use --resume without auto for as many minutes again"
        )
    iteration = checkpoint.latest(config.out / "snapshots")
    if iteration is None:
        return ""
    steps = iteration * config.steps_per_iteration
    if steps not in bundle.versions(config.out / "policies"):  # killed before the last publication, or within a round
        return ""
    if iteration >= config.iterations:
        return (
            f"{config.out} is finished: it has taken its {steps:,} environment steps; raise --total-env-steps to go on"
        )
    rows = [row for row in read_metrics(config.out) if row["env_steps"] <= steps]
    if evaluation.target_met(rows, config.target_stay_rate):
        return (
            f"{config.out} is finished: two evaluations in a row have an eval/stay of target_stay_rate "
            f"{config.target_stay_rate:g} or more; raise --target-stay-rate to go on, or set it to inf"
        )
    return ""
