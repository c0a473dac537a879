"""A teacher's item probabilities as soft answers of language models (distillation of history_to_sid).

With w the teacher's share, the answer of a window is the target with probability 1 - w and an item of the teacher otherwise.
The exact loss would need a state behind every prefix of every item. Here each window comes once with its own target, weight
1 - w, and with M answers drawn from the teacher, weight w / M each, whose labels are not the drawn codes but the teacher's
distribution over the children of the prefix that the drawn codes reach: with p the teacher's mass of a prefix,

    E [ 1/M sum_m sum_l CE(p(. | prefix_ml), model) ]  =  sum over prefixes of p(prefix) CE(p(. | prefix), model)

which is the item-level cross-entropy folded up the tree; drawing decides only which prefixes have a state. Every epoch draws anew.
Draws are systematic (one uniform number, M points at equal distance), so the M answers of a window spread over the tree.
In the layout user_tree a drawn answer costs its own codes only: its prompt is the trunk of its user.

Legend: N examples, W sequences, B rows at once, S distinct semantic IDs, L levels, M draws, E entries of all soft labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data.sid import SidTable, SidVocab, prefix_levels
from train.soft_targets import systematic
from train.supervised.tokens import TokenRows
from train.supervised.units import ragged_arange

ROWS = 512  # of the teacher's probabilities held at once
HARD = -1  # in place of a drawn answer: the sequence has its own


class PrefixMass:
    """Distributions over the children of prefixes, of probabilities of leaves.

    Node m of depth l covers the leaves `first[l][m] : first[l][m + 1]`; its children are nodes `ptr[l][m] : ptr[l][m + 1]`
    of depth l + 1.
    """

    def __init__(self, sids: SidTable) -> None:
        self.num_levels, leaves_SL = sids.num_levels, sids.sids_SL
        self.ptr, self.codes, self.first = [], [], [np.array([0, len(leaves_SL)])]
        changed_S = np.zeros(len(leaves_SL), bool)
        changed_S[0] = True
        for level, (ptr, codes) in enumerate(prefix_levels(leaves_SL, None, 1)):
            changed_S[1:] |= leaves_SL[1:, level] != leaves_SL[:-1, level]
            self.ptr.append(ptr.astype(np.int64))
            self.codes.append(codes.astype(np.int64))
            self.first.append(np.append(np.flatnonzero(changed_S), len(leaves_SL)))

    def children(
        self, until_BS: np.ndarray, leaf_B: np.ndarray, level: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(children int64 [B], code, share float32 of each of them) of the prefix of `level` codes that leads to each leaf.

        until_BS: float64 [B, S + 1], the probability of all leaves before each. Leaves .1, .3, .6 with the first two below one
        child give shares .4 and .6.
        """
        node_B = np.searchsorted(self.first[level], leaf_B, side="right") - 1
        begin_B, count_B = self.ptr[level][node_B], np.diff(self.ptr[level])[node_B]
        child_E = np.repeat(begin_B, count_B) + ragged_arange(count_B)
        row_E, first = np.repeat(np.arange(len(leaf_B)), count_B), self.first[level + 1]
        mass_E = until_BS[row_E, first[child_E + 1]] - until_BS[row_E, first[child_E]]
        whole_B = np.add.reduceat(mass_E, np.cumsum(count_B) - count_B)
        return count_B, self.codes[level][child_E], (mass_E / whole_B[row_E]).astype(np.float32)


@dataclass(frozen=True)
class SoftAnswers:
    """Soft labels of sequences. leaf_W int64: the leaf of a drawn answer, HARD where the labels are the sequence's own;
    example_W int64: whose probabilities count.

    probabilities: what a teacher gives to every item after the history of each of some examples, example ids int64 [B] ->
    float32 [B, N].
    """

    probabilities: Callable[[np.ndarray], np.ndarray]
    sids: SidTable
    vocab: SidVocab
    mass: PrefixMass
    example_W: np.ndarray
    leaf_W: np.ndarray

    def labels(self, members: np.ndarray, count_M: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(entries of each label, their tokens int64 [E], their shares float32 [E]) of the sequences `members`, in the order of
        their labels; count_M: labels of each of them. A label without entries is hard.
        """
        first_M = np.cumsum(count_M) - count_M
        drawn = np.flatnonzero(self.leaf_W[members] != HARD)
        entries = np.zeros(int(count_M.sum()), np.int64)
        if not len(drawn):
            return entries, np.empty(0, np.int64), np.empty(0, np.float32)
        leaf_B = self.leaf_W[members[drawn]]
        known, place_B = np.unique(self.example_W[members[drawn]], return_inverse=True)
        until_BS = before(self.probabilities(known), self.sids)[place_B]
        labels, tokens, shares = [], [], []
        for level in range(self.sids.num_levels):
            count_B, code_E, share_E = self.mass.children(until_BS, leaf_B, level)
            entries[first_M[drawn] + level] = count_B
            labels.append(np.repeat(first_M[drawn] + level, count_B))
            tokens.append(self.vocab.levels[level].token_ids[code_E])
            shares.append(share_E)
        order = np.argsort(np.concatenate(labels), kind="stable")
        return entries, np.concatenate(tokens)[order], np.concatenate(shares)[order]


def before(probability_BN: np.ndarray, sids: SidTable) -> np.ndarray:
    """Probability of all semantic IDs before each, in their sorted order: float64 [B, S + 1], the last column 1."""
    order_N = np.argsort(sids.sid_of_item_N, kind="stable")
    until_BN = np.cumsum(probability_BN[:, order_N], axis=1, dtype=np.float64)
    ends_S = np.cumsum(sids.group_sizes_S)
    until_BS = np.zeros((len(probability_BN), len(ends_S) + 1))
    until_BS[:, 1:] = until_BN[:, ends_S - 1] / until_BN[:, -1:]
    return until_BS


def drawn_leaves(until_BS: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Leaves int64 [B, M] by systematic draws.

    >>> drawn_leaves(np.array([[0, 0.5, 1.0]]), 4, np.random.default_rng(0)).tolist()
    [[0, 0, 1, 1]]
    """
    return systematic(until_BS[:, 1:], draws, rng.random(len(until_BS)))


@dataclass(frozen=True)
class Softened:
    """Rows with drawn answers among them: `source_W` is the row that each comes from, weight_W float32 multiplies its losses."""

    rows: TokenRows
    source_W: np.ndarray
    weight_W: np.ndarray
    answers: SoftAnswers


def soften(
    rows: TokenRows,
    *,
    examples_N: np.ndarray,
    soft_N: np.ndarray,
    probabilities: Callable[[np.ndarray], np.ndarray],
    sids: SidTable,
    vocab: SidVocab,
    share: float,
    draws: int,
    seed: int,
    epoch: int = 0,
) -> Softened:
    """Give the rows `soft_N` (bool) of examples `examples_N` (int64) `draws` more answers each, `share` (w) of the weight theirs.

    The first rows are `rows` as they were. Weights of a window sum to 1 + draws, so that the mean over labels stays that of the
    windows. Another epoch has the same rows but for the drawn answers.
    """
    soft = np.flatnonzero(soft_N)
    mass, rng = PrefixMass(sids), np.random.default_rng([seed, 0x50F7, epoch])
    leaf_BM = np.empty((len(soft), draws), np.int64)
    for start in range(0, len(soft), ROWS):
        part = slice(start, start + ROWS)
        until_BS = before(probabilities(examples_N[soft[part]]), sids)
        leaf_BM[part] = drawn_leaves(until_BS, draws, rng)
    leaf_D, source_D = leaf_BM.ravel(), np.repeat(soft, draws)
    added = _with_answers(rows, source_D, _answer_tokens(sids, vocab)[leaf_D])
    weight_N = np.where(soft_N, (1 - share) * (1 + draws), 1.0)
    weight_D = np.full(len(leaf_D), share * (1 + draws) / draws)
    source_W = np.concatenate([np.arange(len(rows)), source_D])
    return Softened(
        TokenRows(
            np.concatenate([rows.tokens_S, added.tokens_S]),
            np.concatenate([rows.starts_N, added.starts_N + len(rows.tokens_S)]),
            np.concatenate([rows.lengths_N, added.lengths_N]),
            np.concatenate([rows.prompts_N, added.prompts_N]),
            rows.shortened,
        ),
        source_W,
        np.concatenate([weight_N, weight_D]).astype(np.float32),
        SoftAnswers(
            probabilities,
            sids,
            vocab,
            mass,
            examples_N[source_W],
            np.concatenate([np.full(len(rows), HARD), leaf_D]),
        ),  # fmt: skip
    )


def _answer_tokens(sids: SidTable, vocab: SidVocab) -> np.ndarray:
    """The tokens int32 [S, L] of every distinct semantic ID."""
    columns = [level.token_ids[sids.sids_SL[:, at]] for at, level in enumerate(vocab.levels)]
    return np.stack(columns, 1).astype(np.int32)


def _with_answers(rows: TokenRows, source_D: np.ndarray, answer_DL: np.ndarray) -> TokenRows:
    """The prompts of the rows `source_D` with other codes behind, and nothing behind those."""
    prompts_D = rows.prompts_N[source_D]
    lengths_D = prompts_D + answer_DL.shape[1]
    starts_D = np.cumsum(lengths_D, dtype=np.int64) - lengths_D
    tokens = np.empty(int(lengths_D.sum()), np.int32)
    within = ragged_arange(prompts_D.astype(np.int64))
    tokens[np.repeat(starts_D, prompts_D) + within] = rows.tokens_S[
        np.repeat(rows.starts_N[source_D], prompts_D) + within
    ]
    places = (starts_D + prompts_D)[:, None] + np.arange(answer_DL.shape[1])
    tokens[places] = answer_DL
    return TokenRows(tokens, starts_D, lengths_D.astype(np.int32), prompts_D.astype(np.int32))
