"""Baselines to compare contrastive RL with: SAC and PPO from brax, on our networks, environments and evaluation."""

from training.algorithms.baselines.train import train

__all__ = ["train"]
