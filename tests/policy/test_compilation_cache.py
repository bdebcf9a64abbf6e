"""Compiled programs are kept in the user's cache folder, of a bounded size, unless JAX is told another one."""

import os
import types
from pathlib import Path

import pytest

from policy import compilation_cache


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What JAX is told."""
    told: dict[str, object] = {}
    config = types.SimpleNamespace(update=told.__setitem__)
    monkeypatch.setattr(compilation_cache, "jax", types.SimpleNamespace(config=config))
    return told


def test_the_folder_is_in_the_users_cache(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for environ, folder in (
        ({}, home / ".cache/kilolayer/jax"),
        ({"XDG_CACHE_HOME": ""}, home / ".cache/kilolayer/jax"),
        ({"XDG_CACHE_HOME": "relative"}, home / ".cache/kilolayer/jax"),
        ({"XDG_CACHE_HOME": "/var/caches"}, Path("/var/caches/kilolayer/jax")),
    ):
        assert compilation_cache.default_folder(environ, home=home) == folder


def test_jax_keeps_programs_there(settings: dict[str, object], tmp_path: Path) -> None:
    assert compilation_cache.enable({"XDG_CACHE_HOME": str(tmp_path)}) == ""
    folder = tmp_path / "kilolayer" / "jax"
    assert folder.is_dir()
    assert settings == {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
    }


def test_jaxs_own_variables_win(settings: dict[str, object], tmp_path: Path) -> None:
    assert compilation_cache.enable({"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": "/elsewhere"}) == ""
    assert settings == {}
    assert list(tmp_path.iterdir()) == []
    variables = {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "3"}
    compilation_cache.enable(variables)
    assert "jax_persistent_cache_min_compile_time_secs" not in settings


def test_a_folder_that_cannot_be_written_is_a_warning(settings: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    warning = compilation_cache.enable({"XDG_CACHE_HOME": str(tmp_path / "file")})
    assert warning.startswith("compiled programs are not kept for the next start: ")
    assert warning.endswith("set JAX_COMPILATION_CACHE_DIR to a folder that can be written")
    assert settings == {}


def test_the_entries_used_longest_ago_are_deleted(tmp_path: Path) -> None:
    for name, used in (("a", 3000), ("b", 1000), ("c", 2000)):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (used, 500))
    compilation_cache.trim(tmp_path, most_bytes=300)
    assert {entry.name for entry in tmp_path.iterdir()} == {"a", "b", "c"}
    compilation_cache.trim(tmp_path, most_bytes=250)
    assert {entry.name for entry in tmp_path.iterdir()} == {"a", "c"}
    compilation_cache.trim(tmp_path, most_bytes=100)
    assert {entry.name for entry in tmp_path.iterdir()} == {"a"}
