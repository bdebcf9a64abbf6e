"""The file of --tokens: TOML with a table for each token. Each error is one line that names the file and the place.

    [tokens.cell-7]
    sha256 = "the SHA-256 of the token, 64 hexadecimal digits"
    roles = ["act", "report"]
    calls_per_second = 200

`token = "..."` in place of `sha256` holds the token itself. No message repeats a value of these two keys.
"""

import difflib
import hashlib
import re
import shlex
import stat
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from serving.access.roles import TOKEN_ROLES, Role
from serving.access.tokens import Token
from serving.errors import StartupError, echo

_MAX_FILE_BYTES = 1 << 20
_MAX_TOKENS = 1000  # each is compared in every call
_MIN_TOKEN_BYTES, _MAX_TOKEN_BYTES = 16, 1024
_MAX_RATE = 1e6
_KEYS = ("token", "sha256", "roles", "calls_per_second")
_TABLE = "tokens"
_NAME = re.compile(r"(?=.*[A-Za-z0-9])[A-Za-z0-9._-]{1,64}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_NOTHING = hashlib.sha256(b"").digest()
_PLAIN = re.compile(r"[!-~]+")  # what a header can hold, without spaces


def read(path: Path) -> bytes:
    """Return the content of the file.

    Raises:
        StartupError: it cannot be read, is larger than 1 MiB, or is not a file.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe could last for ever
            raise StartupError(f"--tokens {path} must be a file")
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StartupError(f"--tokens {path} cannot be read: {error.strerror}") from error
    if len(content) > _MAX_FILE_BYTES:
        raise StartupError(f"--tokens {path} is larger than {_MAX_FILE_BYTES} bytes")
    return content


def warnings(path: Path) -> list[str]:
    """Return warnings about the file, one line each.

    Raises:
        StartupError: it cannot be read, or breaks a rule.
    """
    parse(read(path), path)
    if path.stat().st_mode & stat.S_IROTH:
        command = f"chmod 600 {shlex.quote(str(path))}"
        return [f"--tokens {path} can be read by every user of this machine; run {command}"]
    return []


def parse(content: bytes, path: Path) -> tuple[Token, ...]:
    """Return the tokens in `content`, which `path` holds.

    Raises:
        StartupError: a rule is broken. The message is one line that names the file and the line or the table.
    """
    tables = _tables(content, path)
    names: dict[bytes, str] = {}
    tokens: list[Token] = []
    for name, table in tables.items():
        token = _token(name, table, where=f"{_TABLE}.{name} in --tokens {path}")
        if (other := names.setdefault(token.digest, name)) != name:
            raise StartupError(f"{_TABLE}.{name} in --tokens {path} has the same token as {_TABLE}.{other}")
        tokens.append(token)
    return tuple(tokens)


def _tables(content: bytes, path: Path) -> Mapping[str, Any]:
    try:
        document = tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise StartupError(f"--tokens {path} is not UTF-8 text: line {line}") from error
    except (ValueError, RecursionError) as error:
        raise StartupError(f"--tokens {path} is not valid TOML: {error}") from error
    for key in document:
        if key != _TABLE:
            raise StartupError(f"{echo(key)} in --tokens {path} is not allowed; a token is a table [{_TABLE}.NAME]")
    tables = document.get(_TABLE, {})
    if not isinstance(tables, dict) or not tables:
        raise StartupError(f"--tokens {path} has no tokens; add a table such as [{_TABLE}.cell-7]")
    if len(tables) > _MAX_TOKENS:
        raise StartupError(f"--tokens {path} must have at most {_MAX_TOKENS} tokens, got {len(tables)}")
    for name in tables:
        if not _NAME.fullmatch(name):
            raise StartupError(
                f"a name in --tokens {path} must be 1 to 64 letters, digits, - _ or ., with a letter or a digit, got"
                f" {echo(name)}"
            )
    return tables


def _token(name: str, table: Any, *, where: str) -> Token:
    if not isinstance(table, dict):
        raise StartupError(f"{where} must be a table [{_TABLE}.{name}]")
    for key in table:
        if key not in _KEYS:
            (nearest,) = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0)
            raise StartupError(f"{where} has the unknown key {echo(key)}; did you mean {nearest}?")
    return Token(
        name,
        _digest(table, where=where),
        frozenset(_roles(table.get("roles"), where=where)),
        _rate(table.get("calls_per_second"), where=where),
    )


def _digest(table: Mapping[str, Any], *, where: str) -> bytes:
    token, sha256 = table.get("token"), table.get("sha256")
    if (token is None) == (sha256 is None):
        raise StartupError(f"{where} must have either token or sha256")
    if token is None:
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise StartupError(f"sha256 of {where} must be a string of 64 hexadecimal digits")
        digest = bytes.fromhex(sha256)
        if digest == _NOTHING:
            raise StartupError(f"sha256 of {where} is that of an empty token")
        return digest
    if not isinstance(token, str) or not _PLAIN.fullmatch(token):
        raise StartupError(f"token of {where} must be a string of printable ASCII characters without spaces")
    if not _MIN_TOKEN_BYTES <= len(token) <= _MAX_TOKEN_BYTES:
        raise StartupError(
            f"token of {where} must have {_MIN_TOKEN_BYTES} to {_MAX_TOKEN_BYTES} bytes, got {len(token)}"
        )
    return hashlib.sha256(token.encode()).digest()


def _roles(words: Any, *, where: str) -> Iterator[Role]:
    allowed = ", ".join(TOKEN_ROLES)
    if not isinstance(words, list) or not words:
        raise StartupError(f"roles of {where} must be an array of one word or more of: {allowed}")
    for word in words:
        if word not in TOKEN_ROLES:
            raise StartupError(f"roles of {where} has the unknown role {echo(_shown(word))}; there are: {allowed}")
        yield Role(word)


def _rate(rate: Any, *, where: str) -> float | None:
    if rate is None:
        return None
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise StartupError(f"calls_per_second of {where} must be a number")
    if not 0 < rate <= _MAX_RATE:
        raise StartupError(
            f"calls_per_second of {where} must be above 0, at most {_MAX_RATE:.0f}, got {_shown(rate):.20}"
        )
    return float(rate)


def _shown(value: Any) -> str:
    try:
        return str(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits, which TOML may have in hexadecimal
        return "a huge integer"
