"""The folder of a training run: its lock, configuration, metrics, snapshots and published policies."""
