"""A published policy in one's own process, without a server."""
