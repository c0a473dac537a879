"""HiD-VAE's retriever: IDs with tag positions, in both layouts, decoded by an encoder-decoder; beams against exhaustive search."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.artifacts import read_file
from data.predictions import prediction_files
from data.rows import read_rows
from data.sid import SidTable
from infer.models import contract
from infer.search.tree import search
from infer.search.trie import SCORE_SPACES, Trie
from preprocess.model.row_sources import from_item_vectors
from rq.ids.layouts import lay_out
from tests import families, handmade, store, tiny

SIZES, CLASSES = (4, 3, 3), (2, 5)
ITEMS = 14


def ids_in(layout: str, seed: int = 0, *, unknown: bool = False) -> SidTable:
    """IDs of a tiny corpus; tags follow from the codes as predicted ones do, gold ones may be unknown."""
    rng = np.random.default_rng(seed)
    codes_NL = np.stack(np.unravel_index(rng.permutation(36)[:ITEMS], SIZES), 1).astype(np.int32)
    classes_NT = np.stack([codes_NL[:, 0] % 2, (codes_NL[:, 0] + codes_NL[:, 1]) % 5], 1).astype(np.int32)
    if unknown:
        classes_NT[0, 1] = -1
    return lay_out(codes_NL, SIZES, layout=layout, classes_NT=classes_NT, class_sizes=CLASSES).table


def exhaustive(model, vocab, table: SidTable, prompt: list[int], space: str) -> np.ndarray:
    """Log-probability of every ID by one plain forward each."""
    scores = []
    for sid in table.sids_SL:
        answer = vocab.token_ids(sid[None])[0].tolist()
        fed = torch.tensor([[model.config.decoder_start_token_id, *answer[:-1]]])
        logits_LV = model(input_ids=torch.tensor([prompt]), decoder_input_ids=fed).logits[0]
        total = 0.0
        for level, token in enumerate(answer):
            under = (table.sids_SL[:, :level] == sid[:level]).all(1)
            block = vocab.levels[level].token_ids
            columns = {
                "full": np.arange(logits_LV.shape[1]),
                "level": block,
                "trie": block[np.unique(table.sids_SL[under, level])],
            }[space]
            total += float(logits_LV[level, token] - logits_LV[level, torch.from_numpy(columns)].logsumexp(0))
        scores.append(total)
    return np.array(scores)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["concatenated", "interleaved"])
@pytest.mark.parametrize("space", SCORE_SPACES)
def test_beams_equal_exhaustive_search(layout, space):
    """As wide as the corpus, and wider: every ID once, no other, ranks and scores as by plain forwards."""
    table = ids_in(layout, unknown=True)
    assert table.num_levels == 5 and len(table.sids_SL) == ITEMS
    assert table.sizes == ((4, 2, 3, 6, 3) if layout == "interleaved" else (4, 3, 3, 2, 6))
    vocab = tiny.vocabulary(table.sizes)
    model = families.model("t5", vocab_size=tiny.TEXT_TOKENS + sum(table.sizes))
    prompts = tiny.prompts(np.random.default_rng(1), rows=3)
    expected_BS = np.stack([exhaustive(model, vocab, table, prompt, space) for prompt in prompts])
    for beams in (ITEMS, 3 * ITEMS):
        found = search(model, prompts, Trie(table, vocab), beams, space)
        assert found.counts_B.tolist() == [ITEMS] * 3, (
            "fewer continuations than beams give fewer, never others"
        )
        order_BS = np.argsort(-expected_BS, axis=1)
        assert (found.nodes_BK[:, :ITEMS].numpy() == order_BS).all() and (
            found.nodes_BK[:, ITEMS:] == -1
        ).all()
        ranked_BS = np.take_along_axis(expected_BS, order_BS, 1)
        assert np.allclose(found.scores_BK[:, :ITEMS].numpy(), ranked_BS, atol=1e-3)
        again = search(model, prompts, Trie(table, vocab), beams, space)
        assert torch.equal(again.nodes_BK, found.nodes_BK), "nothing is drawn"


def test_tag_rows_start_at_the_vectors_of_their_items():
    """Tags whose items are alike in text start alike: distances of rows keep the order of those of the mean vectors."""
    table = ids_in("concatenated")
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(5, 6))
    tag_N = table.codes_NL[:, 4]
    vectors_NE = centres[tag_N] + 0.01 * rng.normal(size=(ITEMS, 6))
    known = np.unique(tag_N)
    rows = from_item_vectors(table, vectors_NE)(torch.zeros(3, 16), rng)
    codes, rows_KD = rows[4]
    assert codes.tolist() == known.tolist() and rows_KD.shape == (len(known), 16)
    assert np.sqrt(np.mean(rows_KD**2)) == pytest.approx(1)
    means = np.stack([vectors_NE[tag_N == tag].mean(0) for tag in known])
    wanted = np.linalg.norm(means[:, None] - means, axis=2)
    got = np.linalg.norm(rows_KD[:, None] - rows_KD, axis=2)
    assert np.allclose(got / got.max(), wanted / wanted.max(), atol=1e-6), "a rotation keeps distances"
    with pytest.raises(Exception, match="are of 13 items, the semantic IDs of 14"):
        from_item_vectors(table, vectors_NE[1:])


def test_the_programs_take_ids_with_tags(tmp_path):
    """A store whose IDs interleave codes and gold tags, one unknown, two items of one ID: trained, recommended, nothing invented."""
    data, sids, out = store.write_store(tmp_path / "data"), tmp_path / "sids", tmp_path / "run"
    codes_NL = np.stack(np.unravel_index(np.arange(store.ITEMS), (4, 4, 4)), 1).astype(np.int32)
    classes_NT = np.stack([np.arange(store.ITEMS) // 8, np.arange(store.ITEMS) % 3], 1).astype(np.int32)
    classes_NT[3, 1] = -1
    codes_NL[1], classes_NT[1] = codes_NL[0], classes_NT[0]
    table = lay_out(
        codes_NL, (4, 4, 4), layout="interleaved", classes_NT=classes_NT, class_sizes=(5, 3)
    ).table
    handmade.write_sids(sids, data=data, codes=table.codes_NL, sizes=table.sizes)
    words = ["--wording", "codes", "--tasks", "[history_to_sid]"]
    shape = ["--t5.hidden_size", 16, "--t5.encoder_layers", 1, "--t5.decoder_layers", 1, "--t5.activation", "silu",
             "--t5.tie_word_embeddings", "false", "--t5.num_heads", 2, "--t5.head_dim", 8, "--t5.feedforward", 32]  # fmt: skip
    examples = out / "examples"
    handmade.call(
        "preprocess.build_examples", "--data", data, "--sids", sids, "--output_dir", examples, *words
    )
    handmade.call("preprocess.init_base_model", "--data", data, "--output_dir", out / "base", "--kind", "t5", "--vocab_size",
                  263, *words, *shape)  # fmt: skip
    handmade.call(
        "preprocess.expand_vocab", "--model", out / "base", "--sids", sids, "--output_dir", out / "vocab"
    )
    given = ["--examples", examples, "--sids", sids]
    handmade.call("train.train_tiger", "--model", out / "vocab", *given, "--output_dir", out / "retriever", "--score_space", "trie", "--loop.epochs", 2,
                  "--loop.rows", 64)  # fmt: skip
    for name, more in (("beams", ["level"]), ("drawn", ["trie", "--decode.strategy", "sample"])):
        handmade.call("infer.recommend", "--model", out / "retriever", *given, "--output_dir", out / name, "--decode.beams", 60,
                      "--decode.score_space", *more)  # fmt: skip
        (file,) = prediction_files(out / name)
        found = read_file(file)
        assert set(map(tuple, found["codes"].to_pylist())) <= set(map(tuple, table.codes_NL.tolist()))
        per_row = found.group_by("example_id").aggregate([("rank", "count")])["rank_count"].to_pylist()
        assert set(per_row) == {store.ITEMS - 1}, "fewer IDs than beams: every ID once"
    rows = read_rows(data, "test", num_items=store.ITEMS)
    score_RN = contract.load(out / "retriever").score(rows)
    assert np.allclose(np.exp(score_RN.astype(float)).sum(1), 1, atol=1e-4), (
        "items of one ID share its probability"
    )
    assert (score_RN[:, 0] == score_RN[:, 1]).all() and set(
        contract.target_places(score_RN, np.zeros(len(rows), int)).group_R
    ) == {2}
