"""What training and serving share of a command line: usage errors in one line, environment variables, and paths.

tyro parses the flags and prints the help. Its errors are boxes of many lines, which do not fit into a log, and they
cannot name an environment variable. So the words are checked here before tyro reads them.
"""

import contextlib
import dataclasses
import difflib
import io
import re
import shlex
import sys
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import tyro

PREFIX = "KILOLAYER_"
# The server's settings, which training does not read. They may be set in a shell in which both are started.
SERVER_VARIABLES = frozenset(
    {
        *("KILOLAYER_POLICIES", "KILOLAYER_STRICT", "KILOLAYER_DEFAULT_POLICY", "KILOLAYER_LISTEN"),
        *("KILOLAYER_METRICS", "KILOLAYER_METRICS_PORT", "KILOLAYER_MAX_BATCH_ROWS", "KILOLAYER_SERVE_WHEN"),
        *("KILOLAYER_MAX_CALL_ROWS", "KILOLAYER_MAX_QUEUE_ROWS", "KILOLAYER_MAX_QUEUE_AGE_S", "KILOLAYER_WORKERS"),
        *("KILOLAYER_MAX_BATCH_DELAY_S", "KILOLAYER_OUT_OF_RANGE", "KILOLAYER_LOG_ROWS", "KILOLAYER_LOG_ROWS_MB"),
        *("KILOLAYER_MAX_HELD_MB", "KILOLAYER_MAX_STREAMS", "KILOLAYER_MAX_COMPUTE_S", "KILOLAYER_GRACE_S"),
        *("KILOLAYER_TRACING", "KILOLAYER_LOG_FORMAT", "KILOLAYER_VERSIONS", "KILOLAYER_FOLLOW", "KILOLAYER_KEEP"),
        *("KILOLAYER_STATE_DIR", "KILOLAYER_DEVICE", "KILOLAYER_ADMIN", "KILOLAYER_CONFIG", "KILOLAYER_HTTP_PORT"),
        *("KILOLAYER_TLS_CERT", "KILOLAYER_TLS_KEY", "KILOLAYER_TLS_CLIENT_CA", "KILOLAYER_TOKENS"),
        *("KILOLAYER_INSECURE", "KILOLAYER_REFLECTION", "KILOLAYER_METRICS_HOST"),
    }
)
# Kubernetes sets such variables in every pod for each Service whose name is "kilolayer" or begins with "kilolayer-".
_SERVICE_LINK = re.compile(
    r"KILOLAYER_(\w+_)?"
    r"(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=.*|PORT_\d+_[A-Z]+(_\w+)?=.*|PORT=(tcp|udp|sctp)://.*)"
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # at least two letters; a Path has one slash of the two
_HELP = frozenset({"--help", "-h"})
_OF_TYRO = "--tyro-"  # flags for the completion of a shell
_BOX = re.compile(r"[╭╮╰╯│─]+")
_KINDS = {int: "an integer", float: "a number"}

CLIENT_VARIABLES = frozenset(
    {
        *("KILOLAYER_TLS", "KILOLAYER_TLS_CA", "KILOLAYER_TLS_CLIENT_CERT", "KILOLAYER_TLS_CLIENT_KEY"),
        *("KILOLAYER_SERVER_NAME", "KILOLAYER_TOKEN", "KILOLAYER_TOKEN_FILE"),
    }
)
"""The Python client's settings. They may be set in a shell in which a server or training is started."""

NO_FLAG: Mapping[str, bool] = MappingProxyType({"flag": False})
"""Metadata of a field of a configuration that is not set by a flag."""

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Option:
    """One setting: the words that it takes.

    Args:
        name: of the field.
        types: of its words; empty: it is true or false, and its flag takes no word.
        many: whether it takes any number of words, all of the only type.
        default: its value without the flag.
        optional: whether the single word None stands for no value.
    """

    name: str
    types: tuple[Any, ...]
    many: bool
    default: object
    optional: bool

    @property
    def flag(self) -> str:
        """The flag, such as --max-batch-rows."""
        return flag(self.name)

    def problem(self, words: Sequence[str], *, name: str = "") -> str:
        """Return what is wrong with `words` as its value, in one line; empty if nothing is.

        Args:
            words: the value.
            name: what the message calls it; empty: its flag.
        """
        name = name or self.flag
        if self.optional and list(words) == ["None"]:
            return ""
        if len(words) != len(self.types) and not self.many:
            example = f", such as {name} {self.default}" if isinstance(self.default, int | float) else ""
            count = "a value" if len(self.types) == 1 else f"{len(self.types)} values"
            got = f", got {' '.join(words)!r}" if words else ""
            return f"{name} needs {count}{example}{got}; --help describes it"
        types_of_words = self.types * len(words) if self.many else self.types
        problems = (self._problem_of(word, kind, name) for word, kind in zip(words, types_of_words, strict=True))
        return next(filter(None, problems), "")

    def _problem_of(self, word: str, kind: Any, name: str) -> str:
        if typing.get_origin(kind) is Literal:
            *others, last = map(str, typing.get_args(kind))
            allowed = f"{', '.join(others)} or {last}" if others else last
            return "" if word in (*others, last) else f"{name} must be {allowed}, got {word!r}"
        if kind not in _KINDS:
            return ""
        try:
            kind(word)
        except ValueError:
            example = f", such as {self.default}" if isinstance(self.default, int | float) else ""
            return f"{name} must be {_KINDS[kind]}{example}, got {word!r}"
        return ""


def flag(name: str) -> str:
    """Return the flag of the field `name`."""
    return "--" + name.replace("_", "-")


def options(config: type) -> dict[str, Option]:
    """Return the settings of a dataclass, by the name of the field."""
    hints = typing.get_type_hints(config)
    fields = (field for field in dataclasses.fields(config) if field.metadata.get("flag", True))
    return {field.name: _option(field, hints[field.name]) for field in fields}


def _option(field: "dataclasses.Field[Any]", hint: Any) -> Option:
    # Before Python 3.14, a union with a Literal is a typing.Union and not a types.UnionType.
    is_union = typing.get_origin(hint) in {types.UnionType, typing.Union}
    kinds = typing.get_args(hint) if is_union else (hint,)
    kind, *others = (each for each in kinds if each is not type(None))
    words, many = (kind,), False
    if others:
        words = (hint,)  # one word of any of these types
    elif kind is bool:
        words = ()
    elif typing.get_origin(kind) is tuple:
        words = typing.get_args(kind)
        many = words[-1] is Ellipsis
        words = words[:1] if many else words
    return Option(field.name, words, many, field.default, optional=type(None) in kinds)


def usage_problem(arguments: Sequence[str], config: type, *, other_flags: Collection[str] = ()) -> str:
    """Return the first thing that is wrong with a command line, in one line; empty if nothing is found.

    Args:
        arguments: the words of the command line.
        config: the dataclass whose fields are the flags.
        other_flags: flags without a value that are no fields.
    """
    known = {option.flag: option for option in options(config).values()}
    negated = {flag(f"no_{option.name}") for option in known.values() if not option.types}
    for name, words in groups(arguments):
        if name in negated or name in other_flags or (name in known and not known[name].types):
            problem = _no_value(name, words)
        elif name in known:
            problem = _problem_of_flag(known[name], words)
        elif not name:
            problem = f"{words[0]!r} belongs to no flag; --help lists all flags"
        else:
            (nearest,) = difflib.get_close_matches(name, [*known, *negated, *other_flags], n=1, cutoff=0)
            problem = f"{name} is not a flag; did you mean {nearest}? --help lists all flags"
        if problem:
            return problem
    return ""


def groups(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each flag with the words after it; first the words before the first flag, if any, with an empty name."""
    name, words = "", list[str]()
    for word in arguments:
        if not word.startswith("--") or word.startswith(_OF_TYRO):
            words.append(word)
            continue
        if name or words:
            yield name, words
        name, equals, value = word.partition("=")
        name, words = name.replace("_", "-"), [value] if equals else []
    if name or words:
        yield name, words


def _no_value(name: str, words: Sequence[str]) -> str:
    return f"{name} takes no value, got {words[0]!r}; --help describes it" if words else ""


def _problem_of_flag(option: Option, words: list[str]) -> str:
    count = len(words) if option.many else len(option.types)
    if len(words) > count:
        return f"{words[count]!r} belongs to no flag; --help lists all flags"
    return option.problem(words)


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Return whether a command line asks for the help or for a shell's completion, and not for the program."""
    return any(word in _HELP or word.startswith(_OF_TYRO) for word in arguments)


def parse(config: type[Config], arguments: Sequence[str], *, fail: type[Exception], **settings: Any) -> Config:
    """Return the configuration that tyro reads from `arguments`.

    Args:
        config: a dataclass.
        arguments: the words of the command line, which `usage_problem` has accepted.
        fail: is raised, with one line, for what tyro refuses nevertheless.
        settings: of `tyro.cli`.

    Raises:
        SystemExit: the help was printed.
    """
    if asks_for_help(arguments):
        return tyro.cli(config, args=arguments, **settings)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed = tyro.cli(config, args=arguments, **settings)
    except SystemExit as error:
        raise fail(" ".join(_BOX.sub(" ", printed.getvalue()).split())) from error
    if text := printed.getvalue():  # of a module that the configuration imports
        print(text, end="", file=sys.stderr)
    return parsed


def foreign_variables(environ: Mapping[str, str]) -> list[str]:
    """Return the KILOLAYER_ variables that Kubernetes sets for a Service, sorted. No program of ours reads them."""
    return sorted(name for name, value in environ.items() if _SERVICE_LINK.fullmatch(f"{name}={value}"))


def unknown_variable(environ: Mapping[str, str], known: Collection[str]) -> str:
    """Return the first KILOLAYER_ variable that is unknown; empty if there is none.

    It is not in `known` and belongs neither to the client nor to Kubernetes.
    """
    others = CLIENT_VARIABLES.union(foreign_variables(environ))
    names = (name for name in environ if name.startswith(PREFIX) and name not in known and name not in others)
    return next(names, "")


def quoted(path: Path) -> str:
    """Return `path` as a word of a shell's command line."""
    return shlex.quote(str(path))


def local_path(path: Path, *, name: str) -> Path:
    """Return `path` with a leading ~ replaced by the user's home folder.

    Args:
        path: of a file or a folder.
        name: of the setting, for the message of an error.

    Raises:
        ValueError: it is a URL, or there is no such home folder. The message is one line.
    """
    text = str(path)
    if _URL.match(text):
        address = text.replace(":/", "://", 1)
        raise ValueError(
            f"{name} must be a path on this machine, got the URL {address}; use a folder such as runs/first"
        )
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name} is {text}, and this user has no such home folder; use an absolute path") from error
