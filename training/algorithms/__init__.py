"""Algorithms: contrastive RL, and the baselines that it is compared with."""
