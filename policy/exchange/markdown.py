"""Write Markdown and YAML with text from a policy: its labels and its provenance may contain any character."""

import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

Yaml: TypeAlias = Mapping[str, Any] | Sequence[Any] | str | int | float

_SPECIAL = re.compile(r"[\\`*|~$]|(?<=!)\[|(?<=\])\(|(?<![^\W_])_|_(?![^\W_])")
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def plain(text: str) -> str:
    """Return `text` in one line, with all characters escaped that mean something in Markdown or HTML.

    Characters that do not print are replaced: line breaks by a space, others by U+FFFD.
    """
    line = "".join(char if char.isprintable() else _UNKNOWN for char in " ".join(text.split()))
    return html.escape(_SPECIAL.sub(r"\\\g<0>", line), quote=False)


def table(header: Sequence[str], rows: Iterable[Sequence[str | int | float]]) -> str:
    """Return a table. Strings of `rows` are shown as they are, numbers with up to six digits."""
    lines = [header, ["---"] * len(header), *([_cell(value) for value in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def yaml(value: Yaml) -> str:
    """Return nested mappings, lists, strings and finite numbers as a YAML document that all versions of YAML read."""
    return "".join(f"{line}\n" for line in _yaml_lines(value))


def _cell(value: str | int | float) -> str:
    return plain(value) if isinstance(value, str) else number(value)


def number(value: float) -> str:
    """Return a number with at most six significant digits; integers in full."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _yaml_lines(value: Yaml) -> list[str]:
    if isinstance(value, str | int | float):
        return [_scalar(value)]
    entries = value.items() if isinstance(value, Mapping) else (("-", each) for each in value)
    lines: list[str] = []
    for key, each in entries:
        mark = key if key == "-" else f"{_key(key)}:"
        inner = _yaml_lines(each)
        if isinstance(each, str | int | float):
            lines.append(f"{mark} {inner[0]}")
        elif mark == "-":
            lines += [f"{'  ' if index else '- '}{line}" for index, line in enumerate(inner)]
        else:
            lines += [mark, *(f"  {line}" for line in inner)]
    return lines


def _key(key: str) -> str:
    assert _KEY.fullmatch(key), key
    return key


def _scalar(value: str | float) -> str:
    if isinstance(value, str):
        return f'"{"".join(map(_yaml_char, value))}"'
    assert math.isfinite(value), value
    text = json.dumps(value)
    mantissa, exponent, power = text.partition("e")
    return f"{mantissa}.0e{power}" if exponent and "." not in mantissa else text  # YAML 1.1 reads 1e-05 as a string


def _yaml_char(char: str) -> str:
    if "\ud800" <= char <= "\udfff":  # a byte that is not UTF-8
        return _UNKNOWN
    if char in '"\\':
        return f"\\{char}"
    return char if char.isprintable() else f"\\U{ord(char):08x}"
