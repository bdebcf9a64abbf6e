"""Role: what a method needs of its caller."""

import enum


class Role(enum.StrEnum):
    """What the token of a caller must allow. The words are those of the file of --tokens, apart from ANYONE."""

    ACT = "act"
    DESCRIBE = "describe"
    REPORT = "report"
    ADMIN = "admin"
    ANYONE = "anyone"
    """No token is needed. No token has this role."""


TOKEN_ROLES = tuple(role for role in Role if role is not Role.ANYONE)
"""The roles that a token may have."""
