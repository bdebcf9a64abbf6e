"""Turns concurrent requests into batches."""
