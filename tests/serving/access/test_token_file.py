"""The file of --tokens: what it may hold, and the line that says what is wrong with it."""

import hashlib
import os
from pathlib import Path

import pytest

from serving.access import token_file
from serving.access.roles import Role
from serving.errors import StartupError
from tests.docs.blocks import ROOT, blocks
from tests.serving.server_process import fail

SECRET = "0123456789abcdef"
DIGEST = hashlib.sha256(SECRET.encode()).hexdigest()
PATH = Path("t.toml")


def test_a_token_is_given_by_itself_or_by_its_digest() -> None:
    text = f"""
        [tokens.cell-7]
        sha256 = "{DIGEST.upper()}"
        roles = ["act", "report"]
        calls_per_second = 200
        [tokens.console]
        token = "another-token-of-32-bytes-or-so!"
        roles = ["describe", "admin"]
    """
    first, second = token_file.parse(text.encode(), PATH)
    assert (first.name, first.digest.hex(), first.roles) == ("cell-7", DIGEST, {Role.ACT, Role.REPORT})
    assert first.calls_per_second == 200.0
    assert second.digest == hashlib.sha256(b"another-token-of-32-bytes-or-so!").digest()
    assert (second.roles, second.calls_per_second) == ({Role.DESCRIBE, Role.ADMIN}, None)


def test_the_file_in_the_documentation_is_valid() -> None:
    (block,) = [each for each in blocks(ROOT / "docs/security.md") if "[tokens." in each.text]
    tokens = token_file.parse(block.text.encode(), PATH)
    assert [(each.name, sorted(each.roles), each.calls_per_second) for each in tokens] == [
        ("cell-7", ["act", "describe", "report"], 200),
        ("console", ["admin", "describe"], None),
    ]


GOOD = f'sha256 = "{DIGEST}"\nroles = ["act"]\n'
A = "tokens.a in --tokens t.toml"
ALLOWED = "act, describe, report, admin"
WRONG = {
    "": "--tokens t.toml has no tokens; add a table such as [tokens.cell-7]",
    "# nothing\n[tokens]": "--tokens t.toml has no tokens; add a table such as [tokens.cell-7]",
    "tokens = 3": "--tokens t.toml has no tokens; add a table such as [tokens.cell-7]",
    f"[a]\n{GOOD}": "'a' in --tokens t.toml is not allowed; a token is a table [tokens.NAME]",
    "tokens.a = 3": f"{A} must be a table [tokens.a]",
    f"[tokens.'a b']\n{GOOD}": "a name in --tokens t.toml must be 1 to 64 letters, digits, - _ or ., with a letter or a"
    " digit, got 'a b'",
    f"[tokens.a]\n{GOOD}calls_per_second = 0x{4000 * 'f'}": f"calls_per_second of {A} must be above 0, at most 1000000,"
    " got a huge integer",
    f"[tokens.a]\nsha256 = '{DIGEST}'\nroles = [0x{4000 * 'f'}]": f"roles of {A} has the unknown role 'a huge integer';"
    f" there are: {ALLOWED}",
    f"[tokens.a]\n{GOOD}role = 1": f"{A} has the unknown key 'role'; did you mean roles?",
    "[tokens.a]\nroles = ['act']": f"{A} must have either token or sha256",
    f"[tokens.a]\n{GOOD}token = '{SECRET}'": f"{A} must have either token or sha256",
    f"[tokens.a]\nroles = ['act']\ntoken = '{SECRET[:15]}'": f"token of {A} must have 16 to 1024 bytes, got 15",
    f"[tokens.a]\nroles = ['act']\ntoken = '{1025 * 'x'}'": f"token of {A} must have 16 to 1024 bytes, got 1025",
    f"[tokens.a]\nroles = ['act']\ntoken = '{SECRET} '": f"token of {A} must be a string of printable ASCII characters"
    " without spaces",
    f"[tokens.a]\nroles = ['act']\ntoken = '{SECRET}é'": f"token of {A} must be a string of printable ASCII characters"
    " without spaces",
    f"[tokens.a]\nroles = ['act']\nsha256 = '{DIGEST[:-1]}'": f"sha256 of {A} must be a string of 64 hexadecimal"
    " digits",
    "[tokens.a]\nroles = ['act']\nsha256 = 5": f"sha256 of {A} must be a string of 64 hexadecimal digits",
    f"[tokens.a]\nroles = ['act']\nsha256 = '{hashlib.sha256(b'').hexdigest()}'": f"sha256 of {A} is that of an empty"
    " token",
    f"[tokens.a]\nsha256 = '{DIGEST}'": f"roles of {A} must be an array of one word or more of: {ALLOWED}",
    f"[tokens.a]\nroles = []\nsha256 = '{DIGEST}'": f"roles of {A} must be an array of one word or more of: {ALLOWED}",
    f"[tokens.a]\nroles = 'act'\nsha256 = '{DIGEST}'": f"roles of {A} must be an array of one word or more of:"
    f" {ALLOWED}",
    f"[tokens.a]\nroles = ['anyone']\nsha256 = '{DIGEST}'": f"roles of {A} has the unknown role 'anyone'; there are:"
    f" {ALLOWED}",
    f"[tokens.a]\nroles = [['act']]\nsha256 = '{DIGEST}'": f"roles of {A} has the unknown role \"['act']\"; there are:"
    f" {ALLOWED}",
    f"[tokens.a]\n{GOOD}calls_per_second = '9'": f"calls_per_second of {A} must be a number",
    f"[tokens.a]\n{GOOD}calls_per_second = true": f"calls_per_second of {A} must be a number",
    f"[tokens.a]\n{GOOD}calls_per_second = 0": f"calls_per_second of {A} must be above 0, at most 1000000, got 0",
    f"[tokens.a]\n{GOOD}calls_per_second = nan": f"calls_per_second of {A} must be above 0, at most 1000000, got nan",
    f"[tokens.a]\n{GOOD}calls_per_second = 1{400 * '0'}": f"calls_per_second of {A} must be above 0, at most 1000000,"
    f" got 1{19 * '0'}",
    f"[tokens.a]\n{GOOD}[tokens.b]\n{GOOD}": "tokens.b in --tokens t.toml has the same token as tokens.a",
    f"[tokens.a]\n{GOOD}[tokens.b]\ntoken = '{SECRET}'\nroles = ['act']": "tokens.b in --tokens t.toml has the same"
    " token as tokens.a",
    f"[tokens.a]\n{GOOD}\n[tokens.a]\n{GOOD}": "--tokens t.toml is not valid TOML: Cannot declare ('tokens', 'a') twice"
    " (at line 5, column 10)",
    f"{SECRET}\n": "--tokens t.toml is not valid TOML: Expected '=' after a key in a key/value pair (at line 1,"
    " column 17)",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_a_broken_rule_is_one_line_without_the_secret(text: str, message: str) -> None:
    with pytest.raises(StartupError) as error:
        token_file.parse(text.encode(), PATH)
    assert str(error.value) == message
    assert SECRET not in message
    assert DIGEST not in message


def test_what_is_not_text_is_named_by_its_line() -> None:
    with pytest.raises(StartupError, match=r"^--tokens t.toml is not UTF-8 text: line 2$"):
        token_file.parse(b"# x\n\xff", PATH)


def test_the_number_of_tokens_is_limited() -> None:
    text = "".join(f"[tokens.t{number}]\nroles = ['act']\ntoken = '{SECRET}{number}'\n" for number in range(1001))
    with pytest.raises(StartupError, match=r"^--tokens t.toml must have at most 1000 tokens, got 1001$"):
        token_file.parse(text.encode(), PATH)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "large"])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "t.toml"
    message = f"--tokens {path} must be a file"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "large":
        path.write_bytes(bytes(2**20 + 1))
        message = f"--tokens {path} is larger than 1048576 bytes"
    else:
        message = f"--tokens {path} cannot be read: No such file or directory"
    with pytest.raises(StartupError) as error:
        token_file.read(path)
    assert str(error.value) == message


@pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_file_that_every_user_can_read_is_a_warning(tmp_path: Path, mode: int, warns: bool) -> None:
    path = tmp_path / "t s.toml"
    path.write_text(f"[tokens.a]\n{GOOD}")
    path.chmod(mode)
    text = f"--tokens {path} can be read by every user of this machine; run chmod 600 '{path}'"
    assert token_file.warnings(path) == ([text] if warns else [])


def test_a_server_with_a_broken_file_does_not_start(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    code, lines = fail("--tokens", str(path), "--policies", str(tmp_path))
    assert code == 1
    (line,) = lines
    assert f"ERROR --tokens {path} cannot be read: No such file or directory" in line


def test_a_server_with_a_good_file_says_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text(f"[tokens.a]\n{GOOD}")
    path.chmod(0o600)
    _, lines = fail("--tokens", str(path), "--policies", str(tmp_path / "none"))
    (line,) = lines
    assert "ERROR" in line
    assert "none" in line
