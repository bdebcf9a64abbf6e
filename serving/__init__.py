"""Serve policies: load, verify and compile them, batch requests, and answer over gRPC."""
