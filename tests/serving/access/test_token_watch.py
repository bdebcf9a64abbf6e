"""A file of tokens that changes while the server serves."""

import asyncio
import contextlib
import logging
from pathlib import Path

import pytest

from serving.access import token_watch
from serving.access.token_watch import TokenWatch
from tests.serving.access.token_samples import secret
from tests.serving.batcher_bench import WaitUntil


def text_of(*names: str) -> str:
    return "".join(f'[tokens.{name}]\ntoken = "{secret(name)}"\nroles = ["act"]\n' for name in names)


def names_in(watch: TokenWatch) -> list[str]:
    return [name for name in "abc" if watch.tokens.find(secret(name).encode())]


def kubernetes_volume(folder: Path, version: str, text: str) -> None:
    """Write what a volume with a Secret holds: a link to a folder, which is replaced by another one."""
    (folder / version).mkdir()
    (folder / version / "tokens.toml").write_text(text)
    (folder / "new").symlink_to(version)
    (folder / "new").replace(folder / "..data")
    if not (folder / "tokens.toml").is_symlink():
        (folder / "tokens.toml").symlink_to("..data/tokens.toml")


async def test_a_file_that_is_replaced_through_links_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    monkeypatch.setattr(token_watch, "POLL_S", 0.001)
    kubernetes_volume(tmp_path, "1", text_of("a", "b"))
    watch = TokenWatch(tmp_path / "tokens.toml")
    assert names_in(watch) == ["a", "b"]
    running = asyncio.create_task(watch.run())
    kubernetes_volume(tmp_path, "2", text_of("b", "c"))
    await wait_until(lambda: names_in(watch) == ["b", "c"])
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


def test_a_broken_file_keeps_the_tokens_and_is_one_line_for_each_content(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "t.toml"
    path.write_text(text_of("a"))
    watch = TokenWatch(path)
    gone = f"--tokens {path} cannot be read: No such file or directory"
    for content in (b"x", b"x", gone, gone, b"", text_of("a").encode(), text_of("b").encode(), text_of("b").encode()):
        watch.take(content)
        assert len(names_in(watch)) == 1
    assert names_in(watch) == ["b"]
    kept, taken = "the tokens stay as they are: ", "the tokens were read again; 1 are accepted"
    assert caplog.messages == [
        f"{kept}--tokens {path} is not valid TOML: Expected '=' after a key in a key/value pair (at end of document)",
        kept + gone,
        f"{kept}--tokens {path} has no tokens; add a table such as [tokens.cell-7]",
        taken,
        taken,
    ]


async def test_a_machine_without_threads_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
) -> None:
    asked = 0

    async def fail(*_: object) -> None:
        nonlocal asked
        asked += 1
        raise RuntimeError("can't start new thread")

    path = tmp_path / "t.toml"
    path.write_text(text_of("a"))
    watch = TokenWatch(path)
    monkeypatch.setattr(token_watch, "POLL_S", 0.0)
    monkeypatch.setattr(token_watch, "run_in_thread", fail)
    running = asyncio.create_task(watch.run())
    await wait_until(lambda: asked > 2)
    running.cancel()
    assert caplog.messages == [f"the tokens stay as they are: --tokens {path} cannot be read: can't start new thread"]
    assert names_in(watch) == ["a"]
