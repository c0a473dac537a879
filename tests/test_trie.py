"""The prefix index equals a dictionary of prefixes, dense or sparse, for any catalogue."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import InputError
from infer.search import trie as trie_module
from infer.search.token_trie import TokenTrie
from infer.search.trie import Trie, without_forbidden
from tests import tiny

SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=5).map(tuple)


def built(sids, vocab, *, dense_bytes: int, catalogues=None) -> Trie:
    """A trie whose tables may take `dense_bytes`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trie_module, "DENSE_BYTES", dense_bytes)
        return Trie(sids, vocab, catalogues=catalogues)


def walk(trie: Trie, prefix: tuple[int, ...], root: int) -> int:
    """The node of a legal prefix."""
    node = torch.tensor(root)
    for level, code in enumerate(prefix):
        node = trie.child(level, node, torch.tensor(code))
    return int(node)


def children(trie: Trie, level: int, node: int) -> dict[int, int]:
    """{code: child node} of one node."""
    codes, penalty = trie.candidates(level, torch.tensor(node))
    codes = torch.arange(trie.sizes[level]) if codes is None else codes
    child = trie.child_at(level, torch.tensor(node).expand(len(codes)), torch.arange(len(codes)))
    assert torch.equal(penalty, torch.where(child < 0, float("-inf"), 0.0))
    return {int(code): int(to) for code, to in zip(codes, child, strict=True) if to >= 0}


@given(seed=st.integers(0, 10**6), sizes=SIZES, items=st.integers(1, 60), roots=st.integers(0, 4))
@settings(max_examples=20)
def test_children_equal_a_dictionary_of_prefixes(seed, sizes, items, roots):
    rng = np.random.default_rng(seed)
    sids, vocab = tiny.catalogue(rng, items=items, sizes=sizes, distinct=False), tiny.vocabulary(sizes)
    everything = np.arange(len(sids.sids_SL))
    catalogues = [rng.choice(everything, rng.integers(1, len(everything) + 1)) for _ in range(roots)] or None
    budgets = (0, 8 * sizes[0] * max(roots, 1), 2**20)  # sparse, dense on top, dense
    for trie in [built(sids, vocab, dense_bytes=budget, catalogues=catalogues) for budget in budgets]:
        assert trie.num_roots == max(roots, 1)
        for root, rows in enumerate(catalogues or [everything]):
            allowed = sids.sids_SL[np.unique(rows)].tolist()
            for level in range(len(sizes)):
                for prefix in {tuple(codes[:level]) for codes in allowed}:
                    legal = {codes[level] for codes in allowed if tuple(codes[:level]) == prefix}
                    found = children(trie, level, walk(trie, prefix, root))
                    assert found.keys() == legal
                    assert all(walk(trie, (*prefix, code), root) == to for code, to in found.items())
            leaves = torch.tensor([walk(trie, tuple(codes), root) for codes in allowed])
            assert trie.sid_rows(leaves).tolist() == np.unique(rows).tolist()
        assert trie.num_nodes[-1] == sum(len(np.unique(rows)) for rows in catalogues or [everything])
        assert trie.sid_rows(torch.tensor([-1])).tolist() == [-1]


@given(seed=st.integers(0, 10**6), sizes=SIZES, items=st.integers(1, 60), queries=st.integers(0, 130))
@settings(max_examples=40)
def test_legal_equals_a_search_through_the_table(seed, sizes, items, queries):
    rng = np.random.default_rng(seed)
    sids, vocab = tiny.catalogue(rng, items=items, sizes=sizes, distinct=False), tiny.vocabulary(sizes)
    asked = np.stack([rng.integers(-1, size + 1, queries) for size in sizes], axis=1)
    kept = np.flatnonzero(rng.random(len(sids.sids_SL)) < 0.5)
    for trie in (built(sids, vocab, dense_bytes=0), built(sids, vocab, dense_bytes=2**20)):
        expected = [codes.tolist() in sids.sids_SL.tolist() for codes in asked]
        assert trie.legal(asked).tolist() == expected
        assert (sids.find(asked) >= 0).tolist() == expected
        if len(kept):
            part = sids.sids_SL[kept].tolist()
            assert Trie(sids, vocab, catalogues=[kept]).legal(asked).tolist() == [
                codes.tolist() in part for codes in asked
            ]


def test_levels_are_dense_while_they_fit_and_contiguous_blocks_are_slices():
    rng = np.random.default_rng(0)
    sids, vocab = tiny.catalogue(rng, items=50, sizes=(4, 4, 4)), tiny.vocabulary((4, 4, 4))
    trie = built(sids, vocab, dense_bytes=160)
    assert [type(level).__name__ for level in trie.levels] == ["DenseLevel", "DenseLevel", "SparseLevel"]
    assert trie.columns == [slice(40, 44), slice(44, 48), slice(48, 52)]
    assert not isinstance(Trie(sids, tiny.vocabulary((4, 4, 4), scattered=rng)).columns[0], slice)


def test_bad_catalogues_are_refused():
    sids, vocab = tiny.catalogue(np.random.default_rng(0), items=9, sizes=(4, 4)), tiny.vocabulary((4, 4))
    for catalogues in (
        [],
        [np.array([0]), np.array([], int)],
        [np.array([len(sids.sids_SL)])],
        [np.array([-1])],
    ):
        with pytest.raises(InputError):
            Trie(sids, vocab, catalogues=catalogues)


TOKENS = st.lists(
    st.lists(st.integers(2, 9), min_size=1, max_size=5), min_size=1, max_size=25, unique_by=tuple
)


@given(sequences=TOKENS)
@settings(max_examples=60)
def test_token_sequences_of_any_length_equal_a_dictionary_of_prefixes(sequences):
    trie = TokenTrie(sequences)
    for depth in range(trie.num_levels + 1):
        for prefix in {tuple(ids[:depth]) for ids in sequences if len(ids) >= depth}:
            node = torch.tensor(0)
            for level, token in enumerate(prefix):
                node = trie.child(level, node, torch.tensor(trie.tokens[level].tolist().index(token)))
            end = int(trie.ends[depth][node])
            assert end == (sequences.index(list(prefix)) if list(prefix) in sequences else -1)
            if depth < trie.num_levels:
                codes, penalty = trie.candidates(depth, node)
                found = sorted(trie.tokens[depth][codes[penalty == 0]].tolist())
                assert found == sorted(
                    {ids[depth] for ids in sequences if tuple(ids[:depth]) == prefix and len(ids) > depth}
                )


def test_forbidden_children_are_minus_infinity_and_legal_scores_untouched():
    scores = torch.tensor([[-0.5, 3.0, -1e30, 7.0], [float("-inf"), 0.0, 1e-40, -2.0]])
    penalty = torch.tensor([[0, float("-inf"), 0, float("-inf")], [0, 0, 0, float("-inf")]])
    expected = [
        [-0.5, float("-inf"), scores[0, 2], float("-inf")],
        [float("-inf"), 0.0, scores[1, 2], float("-inf")],
    ]
    assert torch.equal(without_forbidden(scores, penalty), torch.tensor(expected))
    assert scores[0, 1] == 3.0, "the scores that came in stay"
    learned = scores.clone().requires_grad_()
    without_forbidden(learned, penalty)[0, [0, 2]].sum().backward()
    assert learned.grad.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0]]


def test_bad_sequences_are_refused():
    for sequences in ([], [[2], []], [[3, 4], [2], [3, 4]]):
        with pytest.raises(InputError):
            TokenTrie(sequences)
