"""Flags, environment variables and a file become a ServeConfig. An error names the one of them that was wrong."""

import dataclasses
import difflib
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from policy.command_line import (
    PREFIX,
    Option,
    asks_for_help,
    flag,
    foreign_variables,
    groups,
    local_path,
    options,
    unknown_variable,
    usage_problem,
)
from policy.command_line import parse as parse_flags
from serving.config import ConfigError, ServeConfig
from serving.config_file import ConfigFile, Setting
from serving.config_file import read as read_config_file
from serving.policy_settings import PolicySettings

_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_SETTINGS_FOR_CLIENT_VARIABLES = {
    "KILOLAYER_TLS": "tls_cert",
    "KILOLAYER_TLS_CA": "tls_client_ca",
    "KILOLAYER_TLS_CLIENT_CERT": "tls_cert",
    "KILOLAYER_TLS_CLIENT_KEY": "tls_key",
    "KILOLAYER_TOKEN": "tokens",
    "KILOLAYER_TOKEN_FILE": "tokens",
}
_SETTING = re.compile(r"--[a-z][a-z-]*|policies\.[\w.-]+")  # a flag, or the key of a policy in a file


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> ServeConfig:
    """Read the configuration from `arguments`, `environ` and the file of --config.

    A flag overrides its variable, and both override the file. Variables that Kubernetes sets for a Service count as
    unset.

    Raises:
        ConfigError: a value is not allowed, or a flag, a KILOLAYER_ variable or a key of the file is unknown.
        SystemExit: --help; it has been printed.
    """
    prog = "kilolayer-serve" if Path(sys.argv[0]).stem == "kilolayer-serve" else "python serving/run.py"
    if asks_for_help(arguments):
        return parse_flags(ServeConfig, arguments, fail=ConfigError, prog=prog)
    if problem := usage_problem(arguments, ServeConfig):
        raise ConfigError(problem)
    known = options(ServeConfig)
    flags = {name.replace("--no-", "--", 1) for name, _ in groups(arguments)}
    given = {name for name, option in known.items() if option.flag in flags}
    variables = _settings_of_variables(known.keys() - given, environ)
    file = _config_file([*(variables["config"].words if "config" in variables else ()), *arguments])
    settings = {name: each for name, each in {**file.settings, **variables}.items() if name not in given}
    words = [word for each in settings.values() for word in each.words]
    keys = {**file.keys, **{known[name].flag: each.key for name, each in settings.items()}}
    try:
        config = parse_flags(ServeConfig, [*words, *arguments], fail=ConfigError, prog=prog)
        return _with_tables(config, file, overridden=given | variables.keys())
    except ConfigError as error:
        raise ConfigError(_SETTING.sub(lambda found: keys.get(found[0], found[0]), str(error))) from error


def client_variable_warnings(config: ServeConfig, environ: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable of clients in `environ` that looks like a lock which `config` lacks."""
    unset = {name: each for name, each in _SETTINGS_FOR_CLIENT_VARIABLES.items() if getattr(config, each) is None}
    return [
        f"{name} is read by clients only; the server's setting is {PREFIX}{setting.upper()}"
        for name, setting in unset.items()
        if environ.get(name, "").lower() not in ("", "false")  # KILOLAYER_TLS=false asks for plain text
    ]


def _config_file(arguments: Sequence[str]) -> ConfigFile:
    """Return the settings in the file that the last --config names; none if there is no file."""
    paths = [words[0] for name, words in groups(arguments) if name == "--config"]
    if not paths or paths[-1] == "None":
        return ConfigFile({})
    try:
        path = local_path(Path(paths[-1]), name="--config")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return read_config_file(path, {name: option for name, option in options(ServeConfig).items() if name != "config"})


def _with_tables(config: ServeConfig, file: ConfigFile, *, overridden: Collection[str]) -> ServeConfig:
    """Add the settings of single policies in `file`, except for those that flags and variables override.

    Args:
        overridden: the names of the settings that a flag or a variable gives.
    """
    unset = {field.name: None for field in dataclasses.fields(PolicySettings) if field.name in overridden}
    unset.pop("versions", None)  # --versions names the policies that it is about
    own = tuple(dataclasses.replace(settings, **unset) for settings in file.policy_settings)
    policies = file.policies if file.policies and "policies" not in overridden else config.policies
    return dataclasses.replace(config, policies=policies, policy_settings=own)


def _settings_of_variables(names: Collection[str], environ: Mapping[str, str]) -> dict[str, Setting]:
    """Return those of the settings `names` that the variables in `environ` give, by name."""
    known = options(ServeConfig)
    variables = {name: PREFIX + name.upper() for name in known}
    if unknown := unknown_variable(environ, variables.values()):
        (nearest,) = difflib.get_close_matches(unknown, variables.values(), n=1, cutoff=0)
        raise ConfigError(f"{unknown} is not a setting of the server; did you mean {nearest}? --help lists all flags")
    ignored = foreign_variables(environ)
    given = {name: each for name, each in variables.items() if name in names and environ.get(each)}
    return {
        name: Setting(each, _words(each, known[name], environ[each]))
        for name, each in given.items()
        if each not in ignored
    }


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
