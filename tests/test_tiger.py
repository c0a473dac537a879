"""TIGER: the trainer of encoder-decoders as a user runs it, its losses against plain forwards, its scores against search."""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import InputError, Interrupted
from data import artifacts
from data.predictions import prediction_files
from data.rows import read_rows
from data.sid import read_sids
from data.store.output import read_manifest
from infer.engine import DecodeSettings, load_engine
from infer.models import contract
from infer.search.trie import SCORE_SPACES
from tests import handmade, store
from tests.chain import Chain, build_chain
from tests.handmade import call, refuse
from train.scratch import loop
from train.scratch.tiger import EncoderDecoderTask, HistoryRows, batches

SHAPE = ["--kind", "t5", "--vocab_size", 263, "--t5.hidden_size", 32, "--t5.encoder_layers", 1, "--t5.decoder_layers", 1,
         "--t5.num_heads", 2, "--t5.head_dim", 8, "--t5.feedforward", 32]  # fmt: skip
SMALL = ["--loop.rows", 64, "--loop.epochs", 2, "--loop.optimizer", "adamw", "--precision", "float32"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Chain:
    """The store with examples of bare codes and hashed users, and a T5 with their tokens."""
    made = build_chain(tmp_path_factory.mktemp("tiger"))
    examples, base = made.data / "examples/codes", made.model.with_name("t5")
    words = ["--wording", "codes", "--tasks", "[history_to_sid]"]
    call("preprocess.build_examples", "--data", made.data, "--sids", made.sids, "--output_dir", examples, *words,
         "--signals", "[user_bucket]", "--user_buckets", 7)  # fmt: skip
    call("preprocess.init_base_model", "--data", made.data, "--output_dir", base, *words, *SHAPE)
    model = made.model.with_name("t5_vocab")
    call("preprocess.expand_vocab", "--model", base, "--sids", made.sids, "--output_dir", model,
         "--add_tokens_list", examples / "signals.json")  # fmt: skip
    return Chain(made.data, made.sids, examples, model)


def flags(chain: Chain, directory: Path, *more: object, **changes: Path) -> list[object]:
    return [*chain.flags(**changes), "--output_dir", directory, *SMALL, *more]


def trained(chain: Chain, directory: Path, *more: object, **changes: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    call("train.train_tiger", *flags(chain, directory, *more, **changes))
    return load_file(directory / "model.safetensors")


def lines(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def learned(chain, tmp_path_factory) -> Path:
    """A model that has learned the walks."""
    directory = tmp_path_factory.mktemp("learned") / "tiger"
    call("train.train_tiger", *flags(chain, directory, "--loop.epochs", 25, "--loop.learning_rate", 0.01,
                                     "--loop.schedule", "cosine", "--score_space", "trie", "--dropout", 0.05,
                                     "--loop.patience", 6))  # fmt: skip
    return directory


def test_it_learns_the_walks_and_recommend_runs_it(chain, learned, tmp_path):
    found, manifest = lines(learned), read_manifest(learned)
    best = max(found, key=lambda line: line["eval_ndcg@10"])
    assert best["eval_ndcg@10"] > 0.3 and found[-1]["loss"] < 0.9 * found[0]["loss"]
    assert (
        manifest["facts"]["best_ndcg@10"] == best["eval_ndcg@10"]
        and manifest["facts"]["selected_on"] == "valid"
    )
    assert manifest["counts"]["histories_cut"] == 0
    call("infer.recommend", "--model", learned, "--sids", chain.sids, "--examples", chain.examples, "--split", "valid",
         "--output_dir", tmp_path / "eval", "--decode.score_space", "trie", "--decode.beams", 50)  # fmt: skip
    (file,) = prediction_files(tmp_path / "eval")
    table = artifacts.read_file(file)
    sids = read_sids(chain.sids)
    codes = np.array(table["codes"].to_pylist(), np.int32)
    assert (sids.find(codes) >= 0).all(), "no item is invented"
    model, rows = contract.load(learned), read_rows(chain.data, "valid", num_items=store.ITEMS)
    score_RN = model.score(rows)
    top = table.filter(pc.equal(table["rank"], 1))
    first = dict(zip(top["example_id"].to_pylist(), top["score"].to_pylist(), strict=True))
    assert np.allclose([first[row] for row in rows.example_ids_R.tolist()], score_RN.max(1), atol=1e-4)
    before_R = contract.target_places(score_RN, rows.target_R).before_R
    ndcg = np.where(before_R < 10, 1 / np.log2(before_R + 2), 0).mean()
    assert ndcg == pytest.approx(best["eval_ndcg@10"], abs=0.02), "the whole ranking, and 20 beams of it"


def test_scores_are_exact_whole_or_of_some_items(chain, learned):
    """All items sum to one under the legal codes; some items of each row have the scores that they have among all."""
    model, rows = contract.load(learned), read_rows(chain.data, "test", num_items=store.ITEMS)
    score_RN = model.score(rows)
    assert np.allclose(np.exp(score_RN.astype(float)).sum(1), 1, atol=1e-4)
    some_RC = np.random.default_rng(0).integers(0, store.ITEMS, (len(rows), 5))
    assert np.allclose(model.score(rows, some_RC), np.take_along_axis(score_RN, some_RC, 1), atol=1e-4)
    other = model.score(handmade_users(rows))
    assert np.abs(other - score_RN).max() > 1e-4, "the user's token is read"
    nothing = rows.take(np.arange(2))
    nothing = type(nothing)(
        nothing.example_ids_R, nothing.users_R, np.zeros(3, np.int64), nothing.history_H[:0], nothing.target_R
    )
    assert np.allclose(model.score(nothing), -math.log(store.ITEMS))


def test_it_is_a_row_of_the_tables_like_any_item_model(chain, learned, tmp_path):
    call(
        "infer.run_baselines",
        "--models",
        json.dumps([str(learned)]),
        "--data",
        chain.data,
        "--output_root",
        tmp_path / "eval",
    )
    found = artifacts.read_file(prediction_files(tmp_path / "eval" / f"{learned.name}.test")[0])
    rows = read_rows(chain.data, "test", num_items=store.ITEMS)
    best = found.filter(pc.equal(found["example_id"], int(rows.example_ids_R[0])))
    first = contract.ranked_lists(contract.load(learned).score(rows.take(np.arange(1))), 1)
    assert best["item_ids"].to_pylist()[0] == first.item_E[:1].tolist()


def handmade_users(rows):
    """The same rows as those of other users."""
    return type(rows)(rows.example_ids_R, rows.users_R + 1, rows.offsets, rows.history_H, rows.target_R)


SWITCHES = {
    "score space": ["--score_space", "full"],
    "dropout": ["--dropout", 0.4],
    "smoothing": ["--label_smoothing", 0.2],
    "schedule": ["--loop.schedule", "cosine"],
    "seed": ["--seed", 1],
}


@pytest.fixture(scope="module")
def base(chain, tmp_path_factory) -> dict[str, torch.Tensor]:
    return trained(chain, tmp_path_factory.mktemp("base") / "m")


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_changes_what_is_learned(chain, base, tmp_path, switch):
    weights = trained(chain, tmp_path / "m", *SWITCHES[switch])
    assert max(float((weights[name] - base[name]).abs().max()) for name in base) > 1e-6
    if switch == "dropout":
        assert json.loads((tmp_path / "m/config.json").read_text())["dropout_rate"] == 0.4


def test_a_killed_run_ends_with_the_same_weights(chain, base, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    step = loop.Run.step_on

    def stepped(run, batch):
        step(run, batch)
        if run.state.step == 7:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop.Run, "step_on", stepped)
    with pytest.raises(Interrupted):
        trained(chain, tmp_path / "m")
    assert list((tmp_path / "m").glob("checkpoint-*")) and not (tmp_path / "m/model.safetensors").exists()
    monkeypatch.setattr(loop.Run, "step_on", step)
    again = trained(chain, tmp_path / "m")
    assert all(torch.equal(again[name], base[name]) for name in base)


def test_the_rate_falls_to_nothing_at_the_end():
    """Half way of 4 epochs of 10 batches the cosine is at one half; the last step has cos(pi 39 / 40)."""
    from train.scratch.options import EpochOptions

    run = object.__new__(loop.Run)
    run.options, run.batches = (
        EpochOptions(epochs=4, learning_rate=0.1, schedule="cosine", warmup_steps=2),
        10,
    )
    rates = []
    for step, epoch, batch in ((0, 0, 0), (20, 2, 0), (39, 3, 9)):
        run.state = loop.RunState(step=step, epoch=epoch, batch=batch)
        rates.append(run.learning_rate)
    assert rates == pytest.approx([0.05, 0.05, 0.05 * (1 + math.cos(math.pi * 39 / 40))])


@pytest.fixture(scope="module")
def engine(chain):
    return load_engine(chain.model, chain.sids, chain.examples, DecodeSettings(beams=10), device="cpu")


def history_rows(engine, chain, count: int = 24) -> HistoryRows:
    table = artifacts.read(chain.examples, artifacts.EXAMPLES, file="train.parquet").slice(0, count)
    from data.tasks import from_row

    prompts = engine.renderer.prompts([from_row(row) for row in table.to_pylist()])
    lengths = np.array([len(prompt) for prompt in prompts])
    codes = np.array([answer["sid"] for answer in table["answer"].to_pylist()])
    return HistoryRows(np.concatenate([np.array(p) for p in prompts]), np.cumsum(lengths) - lengths, lengths, codes,
                       np.ones(len(lengths), np.float32), np.arange(len(lengths)))  # fmt: skip


@pytest.mark.parametrize("space", SCORE_SPACES)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_that_of_a_plain_forward(chain, engine, space, smoothing):
    """Rows one by one through the whole model and its whole output layer, softmax by hand; then in one padded batch."""
    from dataclasses import replace

    engine.settings = replace(engine.settings, score_space=space)
    rows = history_rows(engine, chain)
    task = EncoderDecoderTask(engine, rows, dict, rows=8, smoothing=smoothing)
    model, vocab, sids = engine.model.eval(), engine.renderer.vocab, engine.sids
    expected = []
    for row in range(len(rows)):
        ids = torch.from_numpy(rows.token_H[rows.starts_R[row] :][: rows.lengths_R[row]])[None]
        answer = [
            int(level.token_ids[code]) for level, code in zip(vocab.levels, rows.codes_RL[row], strict=True)
        ]
        fed = torch.tensor([[model.config.decoder_start_token_id, *answer[:-1]]])
        with torch.no_grad():
            logits_LV = model(input_ids=ids, decoder_input_ids=fed).logits[0]
        total = 0.0
        for level, code in enumerate(rows.codes_RL[row]):
            same = (sids.sids_SL[:, :level] == rows.codes_RL[row][:level]).all(1)
            legal = torch.from_numpy(np.unique(sids.sids_SL[same, level])).long()
            block = torch.from_numpy(vocab.levels[level].token_ids)
            columns = {"full": torch.arange(logits_LV.shape[1]), "level": block, "trie": block[legal]}[space]
            log_p = logits_LV[level] - logits_LV[level][columns].logsumexp(0)
            total -= (1 - smoothing) * float(log_p[block[code]]) + smoothing * float(
                log_p[block[legal]].mean()
            )
        expected.append(total)
    found = task.row_losses(np.arange(len(rows)))
    assert len(set(rows.lengths_R.tolist())) > 2, "rows of several lengths are padded together"
    assert np.allclose(found.detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_padded_batch_has_the_gradients_of_its_rows(chain, engine):
    rows = history_rows(engine, chain)
    task = EncoderDecoderTask(engine, rows, dict, rows=8)
    parameters = [p for p in engine.model.eval().parameters() if p.requires_grad]
    whole = torch.autograd.grad(task.row_losses(np.arange(len(rows))).sum(), parameters)
    parts = [torch.zeros_like(p) for p in parameters]
    for row in range(len(rows)):
        for total, one in zip(
            parts, torch.autograd.grad(task.row_losses(np.array([row])).sum(), parameters), strict=True
        ):
            total += one
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60),
    rows=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=50)
def test_batches_hold_every_row_once_with_similar_lengths(lengths, rows, seed):
    lengths_R = np.array(lengths)
    parts = batches(lengths_R, rows=rows, rng=np.random.default_rng(seed))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(lengths)))
    assert all(len(part) <= rows for part in parts) and sum(len(part) < rows for part in parts) <= 1
    spans = sorted((lengths_R[part].min(), lengths_R[part].max()) for part in parts)
    assert all(first[1] <= second[0] for first, second in zip(spans, spans[1:], strict=False))


def test_long_histories_are_cut_and_counted(chain, tmp_path):
    base, model = tmp_path / "t5", tmp_path / "vocab"
    call("preprocess.init_base_model", "--data", chain.data, "--output_dir", base, "--wording", "codes", *SHAPE,
         "--t5.max_positions", 16)  # fmt: skip
    call("preprocess.expand_vocab", "--model", base, "--sids", chain.sids, "--output_dir", model,
         "--add_tokens_list", chain.examples / "signals.json")  # fmt: skip
    trained(chain, tmp_path / "m", model=model)
    lengths = np.diff(read_rows(chain.data, "train", num_items=store.ITEMS).offsets)
    # 16 positions less 3 codes of the answer: a user's token and four items of three codes
    assert read_manifest(tmp_path / "m")["counts"]["histories_cut"] == (lengths > 4).sum() > 0
    rows = read_rows(chain.data, "test", num_items=store.ITEMS)
    assert max(map(len, contract.load(tmp_path / "m").prompts(rows))) == 13


def test_what_it_refuses(chain, learned, tmp_path):
    out = ["--output_dir", tmp_path / "m"]
    causal = chain.model.with_name("vocab")
    signals = json.loads((chain.examples / "signals.json").read_text())["tokens"]
    other = handmade.write_sids(
        tmp_path / "sids", data=chain.data, codes=read_sids(chain.sids).codes_NL[::-1].copy(), sizes=(8, 8, 4)
    )
    assert "was expanded with other semantic IDs" in refuse(
        "train.train_tiger", *chain.flags(sids=other), *out
    )
    plain = tmp_path / "plain"
    call(
        "preprocess.build_examples",
        "--data",
        chain.data,
        "--sids",
        chain.sids,
        "--output_dir",
        plain,
        "--tasks",
        "[title_to_sid]",
    )
    assert "no history_to_sid rows" in refuse("train.train_tiger", *chain.flags(examples=plain), *out)
    assert "is a causal LM -> train.sft" in refuse(
        "train.train_tiger", *chain.flags(model=causal, examples=plain), *out
    )
    assert f"use the token {signals[0]}" in refuse("train.train_tiger", *chain.flags(model=causal), *out)
    assert "one of ndcg@10, hr@10" in refuse(
        "train.train_tiger", *chain.flags(), *out, "--loop.select_by", "ndcg@20"
    )
    for option, value in (("dropout", 1), ("label_smoothing", -0.1)):
        assert f"{option} {float(value)} must lie in [0, 1)" in refuse(
            "train.train_tiger", *chain.flags(), *out, f"--{option}", value
        )
    assert not (tmp_path / "m").exists() or not list((tmp_path / "m").glob("*.safetensors"))
    copy = shutil.copytree(learned, tmp_path / "copy")
    codes = np.load(copy / "codes.npy")
    np.save(copy / "codes.npy", codes[::-1])
    handmade.resign(copy)
    with pytest.raises(InputError, match="are not the semantic IDs of its vocabulary"):
        contract.load(copy)


def test_code_rows_start_at_the_vectors_of_their_items(chain, tmp_path):
    """Through the program: rows of codes are those of the embeddings, whatever the noise's seed."""
    from data.store.models import load_weights

    vectors, base = tmp_path / "embeddings", chain.model.with_name("t5")
    call(
        "rq.embed_items",
        "--data",
        chain.data,
        "--output_dir",
        vectors,
        "--parts",
        "[{method: tfidf_svd, dim: 8}]",
    )
    flags = ["--model", base, "--sids", chain.sids, "--init", "vectors"]
    call("preprocess.expand_vocab", *flags, "--embeddings", vectors, "--output_dir", tmp_path / "m")
    from transformers import AutoModelForSeq2SeqLM

    table = (
        load_weights(AutoModelForSeq2SeqLM, tmp_path / "m", dtype="auto")
        .get_input_embeddings()
        .weight.detach()
    )
    plain = (
        load_weights(AutoModelForSeq2SeqLM, chain.model, dtype="auto").get_input_embeddings().weight.detach()
    )
    assert not torch.allclose(table[263:283], plain[263:283]) and torch.equal(table[:263], plain[:263])
    other = handmade.write_data(tmp_path / "other")
    flat = ["--output_dir", tmp_path / "flat", "--parts", "[{method: tfidf_svd, dim: 4}]"]
    call("rq.embed_items", "--data", other, *flat)
    assert "made from another state of the data" in refuse(
        "preprocess.expand_vocab", *flags, "--embeddings", tmp_path / "flat", "--output_dir", tmp_path / "n"
    )
    assert "embeddings goes with init vectors" in refuse(
        "preprocess.expand_vocab", *flags, "--output_dir", tmp_path / "n"
    )
    assert "leave out --kind t5" in refuse(
        "preprocess.init_base_model",
        "--data",
        chain.data,
        "--output_dir",
        tmp_path / "n",
        "--kind",
        "t5",
        "--like",
        base,
    )


def test_a_causal_lm_takes_bare_codes_too(chain, tmp_path):
    """The flat retriever from scratch: no word in the prompt, every item of a user's row is a target of one pass."""
    examples = tmp_path / "examples"
    call("preprocess.build_examples", "--data", chain.data, "--sids", chain.sids, "--output_dir", examples, "--wording", "codes",
         "--tasks", "[history_to_sid]")  # fmt: skip
    engine = load_engine(
        chain.model.with_name("vocab"), chain.sids, examples, DecodeSettings(beams=10), device="cpu"
    )
    history = [3, 4, 5]
    expected = [
        token
        for item in history
        for token in engine.renderer.vocab.encode(engine.sids.codes_NL[item].tolist())
    ]
    assert engine.histories.prompt_ids(history) == expected
