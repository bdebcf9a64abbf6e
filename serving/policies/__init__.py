"""Policies: on disk, compiled, and served."""
