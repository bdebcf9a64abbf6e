"""Adapters of the wire protocols: bytes of requests to calls of a batcher, and its results to bytes of replies."""
