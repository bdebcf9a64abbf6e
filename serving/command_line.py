"""Flags and environment variables become a ServeConfig. An error names the one of the two that was wrong."""

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from policy.command_line import (
    PREFIX,
    Option,
    asks_for_help,
    flag,
    foreign_variables,
    options,
    unknown_variable,
    usage_problem,
)
from policy.command_line import parse as parse_flags
from serving.config import ConfigError, ServeConfig

_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_FLAG = re.compile(r"--[a-z][a-z-]*")


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> ServeConfig:
    """Read the configuration from `arguments`, and from `environ` for flags that are not given.

    Variables that Kubernetes sets for a Service count as unset.

    Raises:
        ConfigError: a value is not allowed, or a flag or a KILOLAYER_ variable is unknown.
        SystemExit: --help; it has been printed.
    """
    prog = "kilolayer-serve" if Path(sys.argv[0]).stem == "kilolayer-serve" else "python serving/run.py"
    if asks_for_help(arguments):
        return parse_flags(ServeConfig, arguments, fail=ConfigError, prog=prog)
    if problem := usage_problem(arguments, ServeConfig):
        raise ConfigError(problem)
    given = {word.partition("=")[0].replace("_", "-").replace("--no-", "--", 1) for word in arguments}
    variables = {variable: option for variable, option in _by_variable().items() if option.flag not in given}
    words = _words_of_variables(variables, environ)
    try:
        return parse_flags(ServeConfig, [*words, *arguments], fail=ConfigError, prog=prog)
    except ConfigError as error:
        names = {option.flag: name for name, option in variables.items() if environ.get(name)}
        raise ConfigError(_FLAG.sub(lambda found: names.get(found[0], found[0]), str(error))) from error


def _by_variable() -> dict[str, Option]:
    return {PREFIX + name.upper(): option for name, option in options(ServeConfig).items()}


def _words_of_variables(variables: Mapping[str, Option], environ: Mapping[str, str]) -> list[str]:
    """Return the flags that the variables in `environ` stand for, as words of a command line."""
    known = _by_variable()
    if name := unknown_variable(environ, known):
        (nearest,) = difflib.get_close_matches(name, known, n=1, cutoff=0)
        raise ConfigError(f"{name} is not a setting of the server; did you mean {nearest}? --help lists all flags")
    ignored = foreign_variables(environ)
    words: list[str] = []
    for name, option in variables.items():
        if environ.get(name) and name not in ignored:
            words += _words(name, option, environ[name])
    return words


def _words(variable: str, option: Option, value: str) -> list[str]:
    """Return the flag that `variable` sets to `value`, as words of a command line."""
    if not option.types:
        if value.lower() not in _BOOLEANS:
            raise ConfigError(f"{variable} must be true or false, got {value!r}")
        return [option.flag if _BOOLEANS[value.lower()] else flag(f"no_{option.name}")]
    if option.many:
        words = [line.strip() for line in value.splitlines() if line.strip()]
    else:
        words = value.split(":", len(option.types) - 1)
    if problem := option.problem(words, name=variable):
        raise ConfigError(problem)
    return [option.flag, *words]
