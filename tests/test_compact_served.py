"""A compact generator behind infer.trace and infer.serve."""

from __future__ import annotations

import json
import signal

import pytest

from data.predictions import read_predictions
from data.sid import read_sids
from infer.engine import DecodeSettings
from infer.models.retrievers.engines import open_engine
from tests.handmade import call, refuse, succeed
from tests.test_serve import start, stop
from tests.test_train_compact import trained


def test_it_is_traced_and_served_like_any_model(chain, tmp_path):
    """The trace's list is the one that infer.recommend stores, and so is the server's; both need score space trie."""
    model, answers = tmp_path / "run/baselines/compact", tmp_path / "run/eval/compact.test"
    trained(chain, model, "--model.users", 5)
    flags = [*chain.flags(model=model), "--device", "cpu"]
    trie = ["--decode.score_space", "trie", "--decode.beams", "6"]
    call("infer.recommend", *flags, *trie, "--split", "test", "--output_dir", answers)
    stored, _ = read_predictions(answers)
    example = int(stored.example_ids_R[0])
    traced = ("infer.trace", example, "--data", chain.data, *flags)
    assert "score_space trie" in refuse(*traced)
    text = succeed(*traced, "--predictions", answers, "--json", tmp_path / "trace.json")
    facts = json.loads((tmp_path / "trace.json").read_text())
    assert "the same list in the same order" in text and facts["stored"]["differs"] is False
    assert facts["prompt"]["ids"][0] > 0 and not facts["prompt"]["served_alike"], "serving knows no user"
    codes = read_sids(chain.sids).codes_NL
    target = facts["items"][-1]["item_id"]
    assert facts["prompt"]["answer_ids"] == [codes[target, 0], 8 + codes[target, 1], 16 + codes[target, 2]]
    levels = facts["search"]["levels"]
    assert len(levels) == 3 and all(level["beams"] for level in levels)
    best = levels[-1]["beams"][0]
    assert best["score"] == pytest.approx(float(stored.score_E[0]), abs=1e-4)
    assert best["score"] == pytest.approx(sum(step["score"] for step in best["path"]), abs=1e-4)

    served = ("infer.serve", *flags, "--data", chain.data, "--port", "0")
    assert "score_space trie" in refuse(*served)
    server = start(chain, "--model", str(model), *trie)
    history = [3, 17, 5]
    found = server.recommend(history=history, k=6)["recommendations"]
    stop(server, signal.SIGTERM)
    engine = open_engine(
        model, chain.sids, chain.examples, DecodeSettings(beams=6, score_space="trie"), device="cpu"
    )
    expected = engine.recommend([history], 6)[0]
    assert [line["codes"] for line in found] == [list(one.codes) for one in expected]
    assert [line["score"] for line in found] == pytest.approx([one.score for one in expected], abs=1e-3)
