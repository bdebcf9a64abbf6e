"""Environments whose robot moves around: point, ant, humanoid and cheetah."""
