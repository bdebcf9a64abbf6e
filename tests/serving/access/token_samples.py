"""Tokens for tests: one for each role, and a file of them."""

import hashlib

from serving.access.roles import TOKEN_ROLES, Role
from serving.access.tokens import Token


def secret(name: str) -> str:
    """The token of this name."""
    return f"the-secret-of-{name}-0123456789"


def token(name: str, *roles: Role, calls_per_second: float | None = None) -> Token:
    """A token, as a server keeps it."""
    return Token(name, hashlib.sha256(secret(name).encode()).digest(), frozenset(roles), calls_per_second)


ONE_FOR_EACH_ROLE = tuple(token(f"of-{role}", role) for role in TOKEN_ROLES)


def bearer(name: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call with the token of this name."""
    return (("authorization", f"Bearer {secret(name)}"),)
