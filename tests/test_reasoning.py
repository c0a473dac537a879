"""Texts of a teacher: placeholders that survive, rows that are refused, kinds that are told apart."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.program import InputError
from data.reasoning import (
    TaughtText,
    escaped,
    placeholder,
    read_reasoning,
    reasoning_table,
    rendered,
)
from data.store.output import open_output
from tests.handmade import Made

ROW = TaughtText(
    key=100, kind="identifier", split="train", text="I see [[item:3]], so bolt.", teacher="openai:m", prompt_sha256="ab",
    status="ok", attempts=1, history_terms=[["nut"]], target_terms=["bolt"], user_id=0, target=1,
)  # fmt: skip
NONE = dataclasses.replace(ROW, key=101, text="", status="refused")


def written(directory, *rows):
    with open_output(Made(), "reason_identifiers", version=1, inputs={}, directory=directory) as out:
        out.write_table("reasoning.parquet", reasoning_table(rows))
    return directory


@given(st.lists(st.one_of(st.sampled_from(["[[item:", "\\", "7", "]]", "[", "item:"]), st.text(max_size=4))))
def test_raw_text_survives_and_holds_no_placeholder(parts):
    raw = "".join(parts)
    assert rendered(escaped(raw), lambda item: "LOST") == raw


def test_placeholders_become_what_an_item_is_called():
    text = f"after {placeholder(12)}, " + escaped("not [[item:12]]") + f" but {placeholder(0)}"
    assert rendered(text, lambda item: f"<{item}>") == "after <12>, not [[item:12]] but <0>"


def test_a_directory_comes_back(tmp_path):
    table = read_reasoning(written(tmp_path / "r", ROW, NONE), kind="identifier", num_items=4)
    assert table["text"].to_pylist() == ["I see [[item:3]], so bolt.", ""]
    assert table["history_terms"].to_pylist()[0] == [["nut"]] and table["target"].to_pylist() == [1, 1]
    with pytest.raises(InputError, match="kind identifier, not instruction"):
        read_reasoning(tmp_path / "r", kind="instruction")
    with pytest.raises(InputError, match=r"key 100: its text names item 3, outside 0..2"):
        read_reasoning(tmp_path / "r", num_items=3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "thought"}, "kind 'thought' is none of identifier"),
        ({"split": "all"}, "split 'all'"),
        ({"status": "fine"}, "status 'fine'"),
        ({"text": " "}, "status ok with a text of 1"),
        ({"status": "failed"}, "status failed with a text"),
    ],
)
def test_rows_that_are_none_are_refused(change, said):
    with pytest.raises(InputError, match=said):
        reasoning_table([dataclasses.replace(ROW, **change)])


def test_a_key_has_one_text():
    with pytest.raises(InputError, match="key 100 comes twice"):
        reasoning_table([ROW, ROW])
