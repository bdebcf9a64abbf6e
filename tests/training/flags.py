"""The run of conftest.py as flags of the command line, without its folder."""

TINY_RUN = [
    *("--env=point_u_maze", "--preset=paper", "--num-envs=8", "--unroll-length=5", "--episode-length=20"),
    *("--updates-per-unroll=3", "--batch-size=16", "--max-replay-size=23", "--min-replay-size=10", "--num-evals=2"),
    *("--actor-width=16", "--critic-width=16", "--representation-dim=8", "--eval-episodes=4", "--rows-per-episode=1"),
    *("--resample-goal-probability=0.1", "--total-env-steps=240"),
]
