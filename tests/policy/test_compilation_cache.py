"""Compiled programs are kept in the user's cache folder, of a bounded size, unless JAX is told another one."""

import os
import re
import resource
import subprocess
import sys
import types
from pathlib import Path

import pytest

from policy import compilation_cache

ROOT = Path(__file__).parents[2]


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


def test_a_server_keeps_programs_that_compile_quickly_too(settings: dict[str, object], tmp_path: Path) -> None:
    compilation_cache.enable({"XDG_CACHE_HOME": str(tmp_path)}, worth_saving_s=0.0)
    assert settings["jax_persistent_cache_min_compile_time_secs"] == 0.0


def test_jaxs_own_variables_win(settings: dict[str, object], tmp_path: Path) -> None:
    own = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "elsewhere")}
    assert compilation_cache.enable(own) == ""
    assert settings == {}
    assert [entry.name for entry in tmp_path.iterdir()] == ["elsewhere"]
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert compilation_cache.enable({"JAX_COMPILATION_CACHE_DIR": "gs://bucket/programs"}) == ""
    assert settings == {}
    variables = {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "3"}
    compilation_cache.enable(variables)
    assert "jax_persistent_cache_min_compile_time_secs" not in settings


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"])
@pytest.mark.parametrize(
    ("folder", "reason"), [("file", "Not a directory|File exists"), ("/proc/programs", "No such file or directory")]
)
def test_a_folder_that_cannot_be_written_is_a_warning_and_jax_uses_none(
    settings: dict[str, object], tmp_path: Path, variable: str, folder: str, reason: str
) -> None:
    (tmp_path / "file").write_text("")
    warning = compilation_cache.enable({variable: str(tmp_path / folder)})
    require_warning(warning, reason)
    assert settings == {"jax_compilation_cache_dir": None}


def test_a_full_disk_is_a_warning_too(settings: dict[str, object], tmp_path: Path) -> None:
    """A limit on the size of files stands for a disk that has room for a folder, and for no program."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        warning = compilation_cache.enable({"XDG_CACHE_HOME": str(tmp_path)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    require_warning(warning, "File too large")
    assert settings == {"jax_compilation_cache_dir": None}
    assert list((tmp_path / "kilolayer" / "jax").iterdir()) == []


def require_warning(warning: str, reason: str) -> None:
    assert re.search(reason, warning), warning
    assert warning.startswith("compiled programs are not kept for the next start: ")
    assert warning.endswith("; set JAX_COMPILATION_CACHE_DIR to a folder that can be written")
    assert "\n" not in warning


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"])
def test_jax_itself_goes_on_without_the_folder_and_says_nothing(tmp_path: Path, variable: str) -> None:
    (tmp_path / "file").write_text("")
    code = (
        "from policy import compilation_cache; import jax; warned = compilation_cache.enable()\n"
        "print(jax.jit(lambda x: x + 1)(1), len(warned.splitlines()))"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XDG_"))}
    environ |= {variable: str(tmp_path / "file"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environ |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=400)  # noqa: PLW1510
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "2 1\n", "")


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
