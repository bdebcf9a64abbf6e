"""The protocols: bytes of requests to work for a batcher, and its results to bytes of replies."""
