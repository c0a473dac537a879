"""infer.grade: every number by hand; a judge that fails gives no score, and one that is a rule says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from configs.program import InputError
from data import artifacts
from data.store.output import open_output, read_manifest
from infer.metrics import instructions as measures
from tests import handmade

NUT = "A brass nut on dark oak, side light."
ROWS = [  # example, user, target item, predicted terms, items of them, instruction, status
    (1, 0, 1, ["Nut", "steel"], [1, 7], NUT, "ok"),
    (2, 0, 2, ["washer", "nut"], [], "A washer.", "cut"),
    (3, 1, 10, ["glue"], [10, 11], "Drops of glue on oak, side light.", "repaired"),
    (4, None, 5, [], [], "", "unreadable"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("grade")
    data = handmade.write_data(root / "data")
    columns = dict(zip(("example_id", "user_id", "target_item", "terms", "item_ids", "instruction", "status"),
                       map(list, zip(*ROWS, strict=True)), strict=True))  # fmt: skip
    columns |= {"thought": [""] * 4, "constrained": [False] * 4, "forced_close": [True, False, False, False]}
    schema = artifacts.INSTRUCTIONS
    types = schema.required | schema.optional
    table = pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})
    directory = root / "instructions"
    with open_output(
        handmade.Made(), "instruct", version=1, inputs={"data": data}, directory=directory
    ) as out:
        out.write_table(schema.file, table)
        out.facts |= {"split": "test", "mode": "two_stage", "constrained": False, "model": "m"}
    return directory, handmade.write_tids(root / "tids", data=data)


def grade(made: tuple[Path, Path], out: Path, *more: object) -> dict:
    directory, tids = made
    handmade.call("infer.grade", "--instructions", directory, "--tids", tids, "--output_dir", out, *more)
    return json.loads((out / "metrics.json").read_text())


def test_metrics_by_hand(made, tmp_path, capsys):
    metrics = grade(made, tmp_path / "out")
    assert "instructions, 4 rows; quality/* is about the 3 with an instruction" in capsys.readouterr().out
    assert read_manifest(tmp_path / "out")["counts"]["with_instruction"] == 3
    found = {name: entry["value"] for name, entry in metrics.items() if name != "protocol"}
    # targets: (nut, steel), (washer, brass), (glue), (nut, brass)
    assert found == pytest.approx(
        {
            "parse/strict": 0.5, "parse/repaired": 0.25, "parse/unreadable": 0.25, "parse/cut": 0.25,
            "parse/forced_close": 0.25,
            "tid/precision": (1 + 0.5 + 1 + 0) / 4, "tid/recall": (1 + 0.5 + 1 + 0) / 4,
            "tid/f1": (1 + 0.5 + 1 + 0) / 4, "tid/exact": 0.5, "tid/item": (0.5 + 0.5) / 4, "tid/legal": 0.25,
            # brass nut dark oak side light; washer; drops glue oak side light
            "quality/specificity": (6 + 1 + 5) / 25 / 3,
            # nut of nut, steel; washer of washer, nut; glue
            "quality/term_coverage": (0.5 + 0.5 + 1) / 3,
            # nut of (nut, steel); washer of (washer, brass); glue
            "quality/concealment": (0.5 + 0.5 + 0) / 3,
            # runs of two: 7, of which "oak side" and "side light" are shared; 1; 6, the same two
            "quality/self_overlap": (2 / 7 + 0 + 2 / 6) / 3,
            "quality/distinct_1": 12 / 17, "quality/distinct_2": 12 / 14,
        },
        abs=1e-6,
    )  # fmt: skip
    assert metrics["tid/f1"]["low"] < metrics["tid/f1"]["value"] < metrics["tid/f1"]["high"]
    assert metrics["protocol"]["judge"] is None and metrics["protocol"]["mode"] == "two_stage"
    header, values = (tmp_path / "out/metrics.tsv").read_text().splitlines()
    assert dict(zip(header.split("\t"), values.split("\t"), strict=True))["tid/exact"] == "0.5000"


def test_the_numbers_of_the_docstrings():
    scores = measures.term_scores(["Nut", "steel", "m4"], ["steel", "nut", "brass", "small"])
    assert scores == pytest.approx({"precision": 2 / 3, "recall": 0.5, "f1": 4 / 7, "exact": 0})
    assert measures.specificity("A nice photo of a brass nut on dark oak, on oak") == 0.16
    assert measures.term_coverage(
        "Bolts of steel in a workshop", ["steel bolt", "workshop"]
    ) == pytest.approx(2 / 3)
    assert measures.quoted_terms("Two armchairs at a party, art deco", ["chair", "art", "art deco"]) == [
        "art",
        "art deco",
    ]
    assert measures.concealment("An art fair", ["art", "chair"]) == 0.5
    texts = ["a red nut", "a red bolt", "oak"]
    assert measures.distinct_n(texts[:2], 2) == 0.75 and measures.distinct_n(texts[:2], 1) == pytest.approx(
        4 / 6
    )
    assert measures.distinct_n(texts[:2], 2, draws=2) == pytest.approx((5 / 6 + 1 / 2 + 1 / 2) / 2)
    assert measures.distinct_n([], 1) == 0
    np.testing.assert_allclose(measures.self_overlap(texts), [0.5, 0.5, 0])
    assert measures.names("A Desk-lamp.", "desk lamp") and not measures.names("A party", "art")
    assert not measures.names("a", "++")


def test_distinct_runs_do_not_depend_on_the_number_of_texts():
    """Texts of a hundred words, drawn alike: over all runs ten times the texts have a tenth of the share."""
    rng = np.random.default_rng(0)
    many = [" ".join(f"w{word}" for word in rng.integers(0, 100, 20)) for _ in range(2000)]
    few, plain = (
        many[:200],
        [len({w for t in some for w in t.split()}) / 20 / len(some) for some in (many[:200], many)],
    )
    assert measures.distinct_n(few, 1) == pytest.approx(measures.distinct_n(many, 1), rel=0.01)
    assert plain[1] == pytest.approx(plain[0] / 10)
    drawn = [
        len({many[i // 20].split()[i % 20] for i in rng.permutation(40_000)[:1000]}) / 1000 for _ in range(20)
    ]
    assert measures.distinct_n(many, 1) == pytest.approx(np.mean(drawn), rel=0.01)


def test_a_rule_as_judge_says_so_and_only_judges_when_asked(made, tmp_path):
    metrics = grade(made, tmp_path / "rule", "--judge.client.backend", "heuristic", "--judge.max_rows", 2)
    assert metrics["judge/graded"]["value"] == 1 and metrics["protocol"]["judge"] == [
        "heuristic:word_overlap"
    ]
    assert 0 < metrics["judge/semantic"]["value"] < 1
    assert read_manifest(tmp_path / "rule")["counts"]["graded"] == 2


@pytest.mark.parametrize(("option", "value"), [("batch", 8), ("seed", 1), ("max_rows", 2)])
def test_options_of_a_judge_without_one_are_refused(made, tmp_path, option, value):
    with pytest.raises(InputError, match=f"judge.{option} {value} is read only with a judge.client.backend"):
        grade(made, tmp_path / "no", f"--judge.{option}", value)


def test_a_judge_that_fails_gives_no_score(made, tmp_path):
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"key": "1", "text": "no JSON"}) + "\n")
    flags = ["--judge.client.backend", "recorded", "--judge.client.recording", answers, "--judge.batch", 1]
    metrics = grade(made, tmp_path / "failed", *flags, "--judge.client.stop_after", 0, "--judge.max_rows", 1)
    assert metrics["judge/graded"]["value"] == 0 and "judge/semantic" not in metrics


def test_a_judge_without_its_key_stops_before_any_call(made, tmp_path, monkeypatch):
    monkeypatch.delenv("SOME_JUDGE_KEY", raising=False)
    client = [
        "--judge.client.backend",
        "openai",
        "--judge.client.model",
        "m",
        "--judge.client.base_url",
        "http://localhost:9/v1",
    ]
    directory, tids = made
    line = handmade.refuse("infer.grade", "--instructions", directory, "--tids", tids, "--output_dir", tmp_path / "no",
                           *client, "--judge.client.api_key_env", "SOME_JUDGE_KEY")  # fmt: skip
    assert "SOME_JUDGE_KEY" in line and not (tmp_path / "no").exists()
