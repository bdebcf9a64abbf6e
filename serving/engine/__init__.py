"""Computes a policy: compiled functions, and the device they run on."""
