"""A SID bundle: the same top-10 with plain transformers, away from the repository; vLLM's processor with a stand-in."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from enum import Enum
from types import ModuleType, SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from configs.program import InputError
from data.artifacts import read_sequences
from data.releases.bundle import prompt_parts
from data.sid import read_sids, read_vocab
from infer.engine import DecodeSettings, load_engine
from tests.handmade import call, refuse


@pytest.fixture(scope="module")
def bundle(chain, tmp_path_factory):
    directory = tmp_path_factory.mktemp("bundle") / "bundle"
    call("train.export_bundle", *chain.flags(), "--data", chain.data, "--output_dir", directory)
    return directory


def test_forty_lines_of_transformers_give_the_same_ten_items(chain, bundle, tmp_path):
    (block,) = re.findall(r"```py\n(.*?)```", (bundle / "README.md").read_text(), flags=re.S)
    assert len([line for line in block.splitlines() if line]) <= 40
    (tmp_path / "recommend.py").write_text(block)
    history = max(read_sequences(chain.data)["history"].to_pylist(), key=len)
    done = subprocess.run(
        [sys.executable, "recommend.py", bundle, chain.model, *map(str, history)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    engine = load_engine(chain.model, chain.sids, chain.examples, DecodeSettings(beams=50))
    items = pq.read_table(bundle / "items.parquet").to_pydict()
    wanted = [
        " ".join(str((items["raw_id"][i], items["title"][i])) for i in found.item_ids)
        for found in engine.recommend([history], k=10)[0]
    ]
    assert len(wanted) == 10 and done.stdout.splitlines() == wanted


def test_a_prompt_that_is_no_template_is_refused(chain):
    engine = load_engine(chain.model, chain.sids, chain.examples, DecodeSettings())
    engine.renderer.max_prompt = 12
    assert prompt_parts(engine.histories, [[3, 5], [7]])["max_tokens"] == 12
    engine.renderer.prompt_text = lambda example, mode: "another text"
    with pytest.raises(InputError, match="not one template"):
        prompt_parts(engine.histories, [[3, 5]])


def test_a_model_without_semantic_ids_is_refused(chain, tmp_path):
    flags = chain.flags(model=chain.model.with_name("base"))
    assert "no SID tokens" in refuse(
        "train.export_bundle", *flags, "--data", chain.data, "--output_dir", tmp_path / "x"
    )
    assert not (tmp_path / "x").exists()


class Direction(Enum):
    UNIDIRECTIONAL, SWAP = 0, 1


@pytest.fixture
def processor(bundle, monkeypatch):
    """The copy that the bundle carries, over classes like vLLM's."""
    package = ModuleType("vllm.v1.sample.logits_processor")
    package.LogitsProcessor, package.MoveDirectionality = object, Direction
    for name in ("vllm", "vllm.v1", "vllm.v1.sample"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.syspath_prepend(str(bundle))
    monkeypatch.delitem(sys.modules, "trie_processor", raising=False)
    return importlib.import_module("trie_processor").TrieProcessor


def update(**changes):
    return SimpleNamespace(**{"batch_size": 3, "removed": [], "added": [], "moved": []} | changes)


def test_vllm_rows_are_held_to_the_trie_wherever_they_move(chain, bundle, processor):
    sids, vocab = read_sids(chain.sids), read_vocab(chain.model)
    tokens_NL, stop = (
        vocab.token_ids(sids.codes_NL),
        json.loads((bundle / "bundle.json").read_text())["stop_ids"],
    )
    config = SimpleNamespace(additional_config={"sid_bundle": str(bundle)})
    held = processor(config, torch.device("cpu"), False)

    def asks(**extra):
        return SimpleNamespace(extra_args=extra or None)

    def finite(row):
        kept = torch.isfinite(held.apply(torch.zeros(3, 600))[row])
        return set(kept.nonzero()[:, 0].tolist())

    def legal(prefix):
        inside = (tokens_NL[:, : len(prefix)] == np.array(prefix, int)).all(1)
        return set(tokens_NL[inside, len(prefix)].tolist())

    first, second = tokens_NL[7].tolist(), tokens_NL[20].tolist()
    output: list[int] = []
    added = [
        (0, asks(sid_from=2), [5, 6], output),
        (1, asks(), [5], []),
        (2, asks(sid_from=1), [5, *second[:2]], []),
    ]
    held.update_state(update(added=added))
    assert finite(0) == legal([]) and finite(1) == set(range(600)) and finite(2) == legal(second[:2])
    output.append(first[0])  # the engine extends the list that it gave
    held.update_state(None)
    assert finite(0) == legal(first[:1])
    held.update_state(update(moved=[(0, 2, Direction.SWAP)]))
    assert finite(2) == legal(first[:1]) and finite(0) == legal(second[:2])
    held.update_state(update(removed=[0], moved=[(2, 0, Direction.UNIDIRECTIONAL)]))
    assert finite(0) == legal(first[:1]) and finite(2) == set(range(600))
    output.extend(first[1:])
    assert finite(0) == set(stop)
    output[:] = [3]
    held.update_state(update(removed=[0], added=[(0, asks(sid_from=0), None, output)]))
    assert finite(0) == set(stop), "no semantic ID begins so: the request ends"
    assert not held.is_argmax_invariant()


def test_vllm_options_are_checked_before_a_request_runs(bundle, processor, tmp_path):
    with pytest.raises(ValueError, match="sid_from -1"):
        processor.validate_params(SimpleNamespace(extra_args={"sid_from": -1}))
    processor.validate_params(SimpleNamespace(extra_args=None))
    with pytest.raises(ValueError, match="place is not given"):
        processor(SimpleNamespace(additional_config={}), torch.device("cpu"), False)
    facts = json.loads((bundle / "bundle.json").read_text()) | {"version": 2}
    (tmp_path / "bundle.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="version 2, this reads 1"):
        processor(
            SimpleNamespace(additional_config={"sid_bundle": str(tmp_path)}), torch.device("cpu"), False
        )
