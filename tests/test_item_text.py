"""Printed lists never reach the encoder, and no code in a data line runs."""

from __future__ import annotations

import pytest

from data.adapters.item_text import clean_text, description_text, parse_list, without_controls


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("['one', 'two']", "one two"),
        ('["one", "two"]', "one two"),
        ("['it's not escaped', 'and goes on']", "it's not escaped and goes on"),
        (["<b>one</b>", "", "two &amp; three"], "one two & three"),
        ("[1] a footnote", "[1] a footnote"),
        ("", ""),
        (None, ""),
    ],
)
def test_descriptions_become_one_text(value, text):
    assert description_text(value) == text


def test_nothing_is_blanked_for_length_or_executed(tmp_path):
    assert len(clean_text("word " * 5000)) == 24999
    line = f"[__import__('pathlib').Path('{tmp_path}/ran').touch()]"
    assert parse_list(line) == [line]
    assert not (tmp_path / "ran").exists()


def test_what_no_later_stage_can_hold_is_cleaned():
    assert clean_text("a\0b\x1b[31mc\x85d \ud800 &#0;") == "a b [31mc d ? \ufffd"
    assert without_controls("kept\tas it\n is é") == "kept\tas it\n is é"
