"""Any text in Markdown tables and YAML, read back by independent parsers."""

from typing import Any

import pytest
import yaml as pyyaml
from hypothesis import given, strategies

from policy.exchange import markdown
from tests.policy.exchange.exports import cells

HOSTILE = (
    "a|b",
    "`code`",
    "``",
    "<script>alert(1)</script>",
    "<!-- comment",
    "&amp; &lt;",
    "*bold* **x** _under_ __x__ a_b",
    "[text](https://example.org)",
    "![image](x.png)",
    "x [m]",
    "~~gone~~",
    "$x$ $$y$$",
    "back\\slash \\| \\",
    "# heading",
    "- item",
    "---",
    "```",
    "quote \" and ' # no comment: {a: 1}, [b], %c, @d, !e",
    "übung 練習 🤖",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_shows_exactly_the_text_that_it_was_given(text: str) -> None:
    assert cells(markdown.table(("one", "two"), [(text, "end")])) == [[text, "end"]]


@given(strategies.text())
def test_a_row_stays_one_row_whatever_is_in_it(text: str) -> None:
    ((first, second),) = cells(markdown.table(("one", "two"), [(text, "end")]))
    shown = "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))
    assert (first, second) == (shown, "end")


def test_line_breaks_become_spaces_and_other_characters_that_do_not_print_are_replaced() -> None:
    assert markdown.plain("one\ntwo\r\n three\x1b[0m \udcff \u202e") == "one two three\ufffd[0m \ufffd \ufffd"


def test_numbers_have_six_digits_and_integers_all() -> None:
    assert markdown.table(("a", "b"), [(0.123456789, 12345678)]).splitlines()[2] == "| 0.123457 | 12345678 |"


@pytest.mark.parametrize(
    "value",
    [
        *HOSTILE,
        "",
        "yes",
        "1e3",
        "null",
        "a\nb\tc\x00\x7f\x85\u2028\ufeff",
        0,
        -1.5,
        1e-05,
        1e300,
        12345678901234567890,
        {"a": {"b": [1, [2, {"c": "d", "e": 2.5}], {"f-g": ["h"]}]}, "i": "j"},
        ["---", {"a": "---"}],
    ],
)
def test_yaml_reads_back(value: Any) -> None:
    text = markdown.yaml(value)
    assert pyyaml.safe_load(text) == value
    assert not any(line.startswith("---") for line in text.splitlines())  # it would end front matter


def test_bytes_that_are_not_utf_8_are_replaced_in_yaml() -> None:
    assert pyyaml.safe_load(markdown.yaml("a\udcffb").encode()) == "a\ufffdb"
