"""Metrics, logs, and the sample of the answered rows."""
