"""The compact generator: its loss and scores against sums written out, and the search over it against the ranking of all items."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import InputError
from data.rows import Rows
from data.sid import SidTable
from data.store.output import open_output
from infer.engine import DecodeSettings
from infer.models.retrievers import compact_softmax
from infer.models.retrievers.compact import CompactScorer, load, save
from infer.models.retrievers.compact_decoding import CompactDecoder, CompactEngine
from infer.models.retrievers.compact_network import CompactModel
from infer.models.retrievers.compact_options import CompactOptions, CompactShape
from infer.models.retrievers.compact_softmax import TargetMass, tree_cross_entropy
from infer.models.sequential.model import recent_items
from infer.search.tree import search
from tests import handmade

POSITIONS = 4


def made(data, **options) -> CompactModel:
    """A network over drawn semantic IDs, some of which are shared, with everything in its logits that a draw asks for."""
    levels, size = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    items = data.draw(st.integers(2, 12))
    codes = data.draw(
        st.lists(
            st.lists(st.integers(0, size - 1), min_size=levels, max_size=levels),
            min_size=items,
            max_size=items,
        )
    )
    chosen = {
        "copy": data.draw(st.booleans()),
        "own_vectors": data.draw(st.booleans()),
        "node_text": False,
        "users": data.draw(st.sampled_from([0, 3])),
    } | options
    text = data.draw(st.sampled_from([0, 5]))
    chosen |= {"node_text": bool(text) and data.draw(st.booleans())}
    shape = CompactShape(
        items, (size,) * levels, CompactOptions(hidden=8, positions=POSITIONS, heads=2, dropout=0.3, **chosen), text,
        data.draw(st.sampled_from([0, 2])),
    )  # fmt: skip
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    network = CompactModel(shape, np.array(codes, np.int32))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    network.learn_of(
        popularity_N=rng.integers(0, 9, items),
        text_NX=rng.normal(size=(items, 5)).astype(np.float32) if text else None,
        similar=(rng.integers(0, items, (items, 2)), rng.random((items, 2)).astype(np.float32)),
    )
    with torch.no_grad():
        for part in network.parameters():
            part.add_(torch.randn(part.shape) * 0.2)
    return network.eval()


def histories(data, items: int, count: int) -> Rows:
    drawn = [data.draw(st.lists(st.integers(0, items - 1), max_size=POSITIONS + 2)) for _ in range(count)]
    offsets = np.cumsum([0, *map(len, drawn)])
    flat = np.array([item for one in drawn for item in one], np.int32)
    return Rows(np.arange(count), np.arange(count), offsets, flat, np.zeros(count, np.int64))


def features_of(network: CompactModel, item: int, recent: list[int], steps: int) -> float:
    """log(1 + 20 s) of an item with the newest `steps` items of a history (newest first), by loops."""
    total = 0.0
    for back, one in enumerate(recent[:steps]):
        for other, square in zip(
            network.similar_NK[one].tolist(), network.square_NK[one].tolist(), strict=True
        ):
            total += 0.7**back * square * (other == item)
    return np.log1p(20 * total)


def evidence_of(network: CompactModel, level: int, items: list[int], recent: list[int]) -> torch.Tensor:
    """How much more a node's items count with this history than without, by loops: a logarithm."""
    total, rows_N = torch.zeros(()), network.rows_N
    for item in items:
        said = torch.zeros(())
        if network.shape.similar:
            for alpha, steps in zip(network.alpha_LF[level], (1, len(recent)), strict=True):
                said = said + alpha * float(features_of(network, item, recent, steps))
        for back, one in enumerate(recent if network.bonus_LJ.shape[1] else []):
            said = said + network.bonus_LJ[level, back] * (one == item)
        total = total + rows_N[item] * said.exp()
    return (total / rows_N[items].sum()).log()


def logits_by_prefix(
    network: CompactModel, state: torch.Tensor, recent: list[int]
) -> dict[tuple[int, ...], torch.Tensor]:
    """The logit of every prefix, one at a time."""
    codes = network.codes_NL.tolist()
    found = {}
    for level, head in enumerate(network.heads):
        hidden = head.norm(state + head.read(state))
        tree = network.tree.levels[level]
        for prefix in sorted({tuple(one[: level + 1]) for one in codes}):
            token = head.token_KD[prefix[-1]]
            vector, bias = token, torch.zeros(())
            if level:
                front = sum(network.heads[above].token_KD[prefix[above]] for above in range(level))
                vector, bias = token * (1 + head.gate(front)), (head.shift(front) * token).sum()
            below = [item for item, one in enumerate(codes) if tuple(one[: level + 1]) == prefix]
            if network.shape.model.own_vectors:
                weight = network.rows_N[below][:, None]
                vector = vector + (network.item_ND[below] * weight).sum(0) / weight.sum()
            if network.shape.model.node_text:
                vector = vector + network.read_node_text(network.text_NX[below].mean(0))
            logit = hidden @ vector + bias
            node = int(network.tree.node_LN[level][below[0]])
            if (place := int(tree.place_M[node])) < len(tree.contested_C):
                logit = logit + head.bias_C[place]
            logit = logit + evidence_of(network, level, below, recent)
            found[prefix] = logit
    return found


def items_by_path(network: CompactModel, state: torch.Tensor, recent: list[int]) -> torch.Tensor:
    """Log-probability [N] of every item: its path, level by level among the siblings, and its part of a shared semantic ID."""
    logits, codes = (
        logits_by_prefix(network, state, recent),
        [tuple(one) for one in network.codes_NL.tolist()],
    )
    scores = []
    for one in codes:
        score = -torch.log(torch.tensor(float(codes.count(one))))
        for level in range(len(one)):
            siblings = [
                value
                for prefix, value in logits.items()
                if len(prefix) == level + 1 and prefix[:-1] == one[:level]
            ]
            score = score + logits[one[: level + 1]] - torch.stack(siblings).logsumexp(0)
        scores.append(score)
    return torch.stack(scores)


def drawn_mass(data, positions: int, items: int) -> tuple[TargetMass, torch.Tensor]:
    """Targets as the loss takes them, and written out [P, N]: one item of each position, several, or one beside all."""
    count = data.draw(st.sampled_from([1, 3]))
    item_PT = torch.randint(0, items, (positions, count))
    share_PT = torch.rand(positions, count).clamp(min=0.1)
    share_PT[:, 1:] *= torch.rand(positions, count - 1) > 0.3  # some have no share
    share_PT = share_PT / share_PT.sum(1, keepdim=True)
    soft = torch.randn(positions, items).softmax(1) if data.draw(st.booleans()) else None
    hard = 1.0 if soft is None else 0.3
    mass = TargetMass(item_PT, hard * share_PT, None if soft is None else lambda rows: 0.7 * soft[rows])
    wanted_PN = torch.zeros(positions, items).scatter_add_(1, item_PT, hard * share_PT)
    return mass, wanted_PN if soft is None else wanted_PN + 0.7 * soft


@given(st.data())
@settings(max_examples=40)
def test_the_loss_and_its_gradient_are_those_of_sums_written_out(data):
    network = made(data)
    items = network.shape.num_items
    history = torch.tensor(
        data.draw(
            st.lists(st.lists(st.integers(0, items - 1), min_size=3, max_size=3), min_size=1, max_size=3)
        )
    )
    at = torch.arange(history.numel())[:: data.draw(st.integers(1, 2))]
    recent = recent_items(history, at)
    mass, wanted_PN = drawn_mass(data, len(at), items)
    users = torch.arange(len(history)) if network.shape.model.users else None

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        network.zero_grad()
        loss.backward()
        return {name: part.grad.clone() for name, part in network.named_parameters() if part.grad is not None}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compact_softmax, "BLOCK_VALUES", data.draw(st.integers(1, 60)))
        fast = tree_cross_entropy(network, network.states(history, at, users), recent, mass)
        fast_slopes = gradients(fast)
    states = network.states(history, at, users)
    total = torch.zeros(())
    for position in range(len(at)):
        log_N = items_by_path(
            network, states[position], [one for one in recent[position].tolist() if one >= 0]
        )
        # An item of a shared semantic ID is no choice of the model: its part of the log is a constant.
        shared_N = network.tree.share_N
        total = total - (wanted_PN[position] * (log_N - shared_N)).sum() / len(at)
    assert fast.item() == pytest.approx(total.item(), abs=1e-4)
    for name, slope in gradients(total).items():
        other = fast_slopes.get(name, torch.zeros_like(slope))
        assert torch.allclose(slope, other, atol=2e-4), name


@given(st.data())
@settings(max_examples=20)
def test_scores_are_the_paths(data):
    network = made(data, item_path=data.draw(st.sampled_from([0.0, 0.4])))
    scorer, rows = CompactScorer(network), histories(data, network.shape.num_items, 3)
    score_RN = scorer.score(rows)
    assert score_RN.dtype == np.float32 and np.allclose(np.exp(score_RN.astype(float)).sum(1), 1, atol=1e-4)
    asked = np.array([[1, 0, 1]] * 3)
    assert (scorer.score(rows, asked) == np.take_along_axis(score_RN, asked, 1)).all()
    alone = np.concatenate([scorer.score(rows.take(np.array([row]))) for row in range(3)])
    assert np.allclose(alone, score_RN, atol=1e-4), "a row's scores are its own"
    if network.shape.model.item_path:
        return
    with torch.no_grad():
        states, recent = scorer.states(rows)
        for row in range(3):
            items = [one for one in recent[row].tolist() if one >= 0]
            assert (
                items == rows.history_H[rows.offsets[row] : rows.offsets[row + 1]][::-1][:POSITIONS].tolist()
            )
            assert np.allclose(items_by_path(network, states[row], items).numpy(), score_RN[row], atol=1e-4)


@given(st.data())
@settings(max_examples=30)
def test_the_search_is_the_ranking_of_all_items(data):
    """With beams enough; of allowed items, renormalised among what is allowed below each prefix; never anything else."""
    network = made(data, item_path=data.draw(st.sampled_from([0.0, 0.4])))
    items = network.shape.num_items
    sids = SidTable(network.codes_NL.numpy().astype(np.int32), network.shape.sizes)
    decoder, rows = CompactDecoder(CompactScorer(network), sids, name="x"), histories(data, items, 3)
    engine = CompactEngine(decoder, sids, DecodeSettings(beams=20, score_space="trie"))
    prompts = engine.renderer.prompts(
        [(rows.history_H[rows.offsets[r] : rows.offsets[r + 1]]).tolist() for r in range(3)]
    )
    prompts = [[row + 1, *prompt[1:]] for row, prompt in enumerate(prompts)]  # the users of `histories`
    nodes, scores = engine.rank(prompts)
    score_RN = decoder.scorer.score(rows)
    for row in range(3):
        total_S = np.log(np.bincount(sids.sid_of_item_N, weights=np.exp(score_RN[row].astype(float))))
        count = int((nodes[row] >= 0).sum())
        assert count == len(sids.sids_SL) and sorted(nodes[row, :count]) == list(range(count))
        assert np.allclose(scores[row, :count], total_S[nodes[row, :count]], atol=1e-3)
        assert (np.diff(scores[row, :count]) <= 1e-6).all()
    allowed = np.array(sorted(data.draw(st.sets(st.integers(0, items - 1), min_size=1))))
    mask = np.zeros(items, bool)
    mask[allowed] = True
    nodes, scores = engine.rank(prompts, trie=engine.catalogues.stacked([mask]))
    inside = set(sids.sid_of_item_N[allowed].tolist())
    for row in range(3):
        count = int((nodes[row] >= 0).sum())
        assert set(nodes[row, :count].tolist()) == inside and count == len(inside)
        assert np.exp(scores[row, :count].astype(float)).sum() == pytest.approx(1, abs=1e-4)


def small() -> tuple[CompactModel, SidTable]:
    codes = np.array([[0, 0], [0, 1], [1, 1], [2, 0], [2, 0]], np.int32)
    torch.manual_seed(0)
    network = CompactModel(CompactShape(5, (3, 2), CompactOptions(hidden=8, positions=3, heads=2)), codes)
    network.learn_of(popularity_N=np.array([4, 3, 0, 1, 1]))
    return network.eval(), SidTable(codes, (3, 2))


def test_biases_are_shares_of_the_parent():
    network, _ = small()
    first, second = network.heads
    # 4.5, 3.5, .5, 1.5, 1.5 of 11.5; only the first prefix has two children.
    assert first.bias_C.exp().tolist() == pytest.approx([8 / 11.5, 0.5 / 11.5, 3 / 11.5])
    assert second.bias_C.exp().tolist() == pytest.approx([4.5 / 8, 3.5 / 8])


def test_tokens_that_start_from_texts():
    """Two items of code 0 with texts (3, 0) and (1, 0), one of code 1 with (0, 2): directions (1, 0) and (0, 1), as long as drawn vectors."""
    shape = CompactShape(4, (3,), CompactOptions(hidden=4, heads=1), 0, 0)
    network = CompactModel(shape, np.array([[0], [0], [1], [2]], np.int32))
    drawn = network.heads[0].token_KD[2].clone()
    text_NX = np.array([[3, 0], [1, 0], [0, 2], [0, 0]], np.float32)
    network.learn_of(popularity_N=np.ones(4), text_NX=text_NX)
    length = 0.05 * 4**0.5
    assert torch.allclose(network.heads[0].token_KD[:2], length * torch.eye(4)[:2])
    assert torch.equal(network.heads[0].token_KD[2], drawn), "an item without a text says nothing"


def test_settings_that_need_a_vocabulary_are_refused():
    network, sids = small()
    decoder = CompactDecoder(CompactScorer(network), sids, name="x")
    for settings_, words in (
        (DecodeSettings(beams=2), "score_space trie"),
        (DecodeSettings(beams=2, score_space="level"), "score_space trie"),
        (DecodeSettings(beams=2, score_space="trie", repetition_penalty=1.1), "repetition_penalty 1"),
    ):
        with pytest.raises(InputError, match=words):
            CompactEngine(decoder, sids, settings_).recommend([[1]], 1)
    found = search(decoder, [[0, 1], [0]], decoder.trie, 3, "trie")
    assert found.counts_B.tolist() == [3, 3] and found.scores_BK.exp().sum(1).max() <= 1 + 1e-5
    engine = CompactEngine(decoder, sids, DecodeSettings(beams=4, score_space="trie"))
    best = engine.recommend([[1], [3]], 4)
    assert [len(one) for one in best] == [4, 4]
    assert (3, 4) in [one.item_ids for one in best[0]], "one semantic ID, two items"
    without = engine.recommend([[0, 1]], 4, exclude_history=True)[0]
    assert not {0, 1} & {item for one in without for item in one.item_ids}
    with pytest.raises(InputError, match="history"):
        engine.recommend([[7]], 1)
    warmer = CompactEngine(decoder, sids, DecodeSettings(beams=4, score_space="trie", temperature=5.0))
    assert warmer.recommend([[1]], 1)[0][0].score < best[0][0].score


def test_options_that_do_not_go_together():
    for wrong, words in (
        ({"hidden": 6, "heads": 4}, "do not divide"),
        ({"layers": 0}, "model.layers 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"item_path": 1.0}, "item_path"),
    ):
        with pytest.raises(InputError, match=words):
            CompactOptions(**wrong)


def test_a_model_of_an_older_version_is_refused_in_a_line():
    values = CompactShape(2, (2,)).as_json()
    assert CompactShape.from_json(values) == CompactShape(2, (2,))
    values["model"]["evidence"] = "sum"
    with pytest.raises(InputError, match=r"an older version \(model.evidence\) -> train it again"):
        CompactShape.from_json(values)


def test_a_model_with_bonuses_at_nodes_is_refused_in_a_line(tmp_path):
    shape = CompactShape(2, (2,), CompactOptions(hidden=8, heads=2))
    made = tmp_path / "m"
    with open_output(handmade.Made(), "train_compact", version=1, inputs={}, directory=made) as out:
        save(out, CompactModel(shape, np.array([[0], [1]])))
    load(made)
    settings = json.loads((made / "item_model.json").read_text())
    assert settings.pop("bonus") == "of items"
    (made / "item_model.json").write_text(json.dumps(settings))
    handmade.resign(made)
    with pytest.raises(InputError, match=r"an older version \(bonuses at nodes\) -> train it again"):
        load(made)
    settings["shape"]["model"]["copy"] = False  # without bonuses there is nothing that changed
    (made / "item_model.json").write_text(json.dumps(settings))
    handmade.resign(made)
    with pytest.raises(InputError, match="does not have the weights"):
        load(made)
