"""The file of --config: TOML keys become settings. Each error is one line that names the file and the key."""

import dataclasses
import difflib
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from policy.command_line import Option, flag
from policy.spec import SpecError, check_name
from serving.config import ConfigError
from serving.policy_settings import NamedPath, PolicySettings, Wanted, parse_path, parse_wanted, usable_path

_TYPES: dict[Any, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float)}  # in TOML; others: str
_NAMES: dict[Any, str] = {bool: "true or false", int: "an integer", float: "a number"}
# The keys of a table of one policy, and `versions`, which is a string or a number.
_OF_POLICY = {
    "path": str,
    "follow": bool,
    "max_batch_rows": int,
    "max_batch_delay_s": float,
    "max_queue_rows": int,
    "device": str,
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of the server that does not come from the command line."""

    key: str  # what messages call it
    words: list[str]  # of a command line: the flag, and its values


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """The settings in a file."""

    settings: Mapping[str, Setting]  # of the server, by name
    policies: tuple[NamedPath, ...] = ()  # of the tables of policies; they are in `settings`, too
    policy_settings: tuple[PolicySettings, ...] = ()  # of the same tables
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])  # of them, and what messages call them


def read(path: Path, known: Mapping[str, Option]) -> ConfigFile:
    """Read the settings in a file.

    Args:
        known: the settings of the server that may be in it, by name.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value has another type.
    """
    content = _load(path)
    tables: dict[str, Any] = content.pop("policies") if isinstance(content.get("policies"), dict) else {}
    if tables and "versions" in content:
        raise ConfigError(f"{_key('versions', path)} is not allowed beside tables; write it into each of them")
    _check_keys(content, known, of="the server", path=path)
    settings = {name: _setting(known[name], value, key=_key(name, path)) for name, value in content.items()}
    policies = [_table(name, table, path=path) for name, table in tables.items()]
    if policies:
        words = [f"{each.name}={each.path}" for each, _ in policies]
        settings["policies"] = Setting(_key("policies", path), [known["policies"].flag, *words])
    own = tuple(settings for _, settings in policies)
    keys = {each.key(field): _key(each.key(field), path) for each in own for field in _OF_POLICY}
    return ConfigFile(settings, tuple(policy for policy, _ in policies), own, keys)


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--config {path} is not valid TOML: {error}") from error


def _table(name: str, table: Any, *, path: Path) -> tuple[NamedPath, PolicySettings]:
    """Return the path and the settings of the policy `name` in the file `path`."""
    try:
        check_name(name)
    except SpecError as error:
        raise ConfigError(f"{_key('policies', path)} has a policy whose name is not allowed: {error}") from error
    own = PolicySettings(name=name)
    if not isinstance(table, dict):
        raise ConfigError(f"{_key(f'policies.{name}', path)} must be a table, got {table!r:.80}")
    _check_keys(table, [*_OF_POLICY, "versions"], of="a policy", path=path, prefix=own.key(""))
    values = {
        field: _checked(table[field], kind, key=_key(own.key(field), path))
        for field, kind in _OF_POLICY.items()
        if field in table
    }
    if "path" not in values:
        raise ConfigError(f"{_key(own.key('path'), path)} is missing; set it to a folder such as runs/first/policies")
    try:
        policy_path = usable_path(parse_path(values.pop("path")), name=_key(own.key("path"), path))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if "versions" in table:
        values["versions"] = _wanted(table["versions"], key=_key(own.key("versions"), path))
    return NamedPath(name, policy_path), dataclasses.replace(own, **values)


def _wanted(value: Any, *, key: str) -> Wanted:
    try:
        return parse_wanted(str(value))
    except ValueError as error:
        raise ConfigError(f"{key} {error}") from error


def _check_keys(content: Mapping[str, Any], known: Collection[str], *, of: str, path: Path, prefix: str = "") -> None:
    """Refuse a key that is not in `known`, the settings of the server or of a policy."""
    for name in content:
        underscored = name.replace("-", "_")
        if name in known:
            continue
        if underscored in known:
            raise ConfigError(f"{_key(prefix + name, path)} must be written with underscores: {underscored}")
        (nearest,) = difflib.get_close_matches(name, known, n=1, cutoff=0)
        raise ConfigError(f"{_key(prefix + name, path)} is not a setting of {of}; did you mean {nearest}?")


def _setting(option: Option, value: Any, *, key: str) -> Setting:
    if not option.types:
        return Setting(key, [option.flag if _checked(value, bool, key=key) else flag(f"no_{option.name}")])
    is_list = option.many or len(option.types) > 1
    if is_list != isinstance(value, list):
        raise ConfigError(f"{key} must be {'an array' if is_list else 'one value, not an array'}, got {value!r:.80}")
    values: list[Any] = value if is_list else [value]
    kinds = option.types * len(values) if option.many else option.types
    words = [str(_checked(each, kind, key=key)) for each, kind in zip(values, kinds, strict=False)]
    if problem := option.problem(words, name=key):
        raise ConfigError(problem)
    return Setting(key, [option.flag, *words])


def _checked(value: Any, kind: Any, *, key: str) -> Any:
    """Return a value of TOML if it is of the type `kind`. An integer is a number, and a boolean is neither."""
    if not isinstance(value, _TYPES.get(kind, (str,))) or isinstance(value, bool) != (kind is bool):
        raise ConfigError(f"{key} must be {_NAMES.get(kind, 'a string')}, got {value!r:.80}")
    return value


def _key(name: str, path: Path) -> str:
    return f"{name} in {path}"
