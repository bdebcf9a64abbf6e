"""A file of tokens that changes while the server serves."""

import asyncio
import contextlib
import logging
import threading
from pathlib import Path

import pytest

from serving.access import token_file, token_watch
from serving.access.token_watch import TokenWatch
from serving.access.tokens import Token
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


async def test_a_file_is_taken_when_two_polls_have_read_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
) -> None:
    half = text_of("b", "c").encode()[: len(text_of("b"))]  # valid, but not the whole file
    contents = [text_of("a").encode(), half, text_of("b", "c").encode()]
    accepted: list[list[str]] = []

    def read(_path: Path) -> bytes:
        accepted.append(names_in(watch))
        return contents.pop(0) if len(contents) > 1 else contents[0]

    path = tmp_path / "t.toml"
    path.write_text(text_of("a"))
    watch = TokenWatch(path)
    monkeypatch.setattr(token_watch, "POLL_S", 0.0)
    monkeypatch.setattr(token_watch.token_file, "read", read)
    running = asyncio.create_task(watch.run())
    await wait_until(lambda: len(accepted) > 4)
    running.cancel()
    assert accepted[:5] == [["a"]] * 4 + [["b", "c"]]
    assert caplog.messages == []


async def test_a_bug_in_the_parser_is_one_line_without_a_token_and_the_next_file_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.toml"
    path.write_text(text_of("a"))
    watch = TokenWatch(path)
    parse = token_file.parse

    def fail(content: bytes, _path: Path) -> tuple[Token, ...]:
        if threading.current_thread() is threading.main_thread():
            return ()  # the event loop must not parse
        if b"the-secret-of-b" in content:
            raise KeyError(content)
        return parse(content, path)

    monkeypatch.setattr(token_watch, "POLL_S", 0.0)
    monkeypatch.setattr(token_watch.token_file, "parse", fail)
    running = asyncio.create_task(watch.run())
    path.write_text(text_of("b"))
    await wait_until(lambda: len(caplog.messages) > 0)
    assert names_in(watch) == ["a"]
    path.write_text(text_of("c"))
    await wait_until(lambda: names_in(watch) == ["c"])
    running.cancel()
    assert caplog.messages == [f"the tokens stay as they are: --tokens {path} cannot be read: KeyError"]
