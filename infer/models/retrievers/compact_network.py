"""The compact generator: one position per history item, level heads, logits of the nodes of a tree of semantic IDs.

A history item goes in as the sum of its tokens' vectors; a causal trunk gives a state h for every position; level l reads
h_l = norm(h + MLP_l(h)). A node n with token vector t and ancestors whose vectors sum to p has the logit

    h_l . (t * (1 + gate_l(p))) + shift_l(p) . t + bias_n + what the history alone says of n

among its siblings. Biases start as the logarithm of a node's share of its parent's train rows. What the history says (compact_evidence.py)
is the logarithm of how much more its items count together, an item of the history by a bonus for its step back. Logits are
held within +-60 (`BOUND`), so that sums of exponentials fit float32 without a maximum per group of siblings: no node is less
than e^-120 as likely as a sibling.

Differs from decoders over tokens (TIGER, LC-Rec): a history of T items is T positions, not L T; no token of the answer is fed
back, the prefix acts through gate, shift and bias. So all levels of all items are L products of matrices, and exact.

Legend: B histories, T positions, P positions that are asked for, N items, L levels, C contested nodes of a level, D width,
J steps back, K similar items, X dimensions of a text vector.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from data.rows import TrainLog
from infer.models.retrievers.compact_evidence import everywhere
from infer.models.retrievers.compact_options import CompactShape
from infer.models.retrievers.compact_paths import Said
from infer.models.retrievers.compact_tree import BOUND, SidTree
from infer.models.sequential.companions import Companions
from infer.models.sequential.evidence import (
    START,
    CompanionKernel,
    HistoryEvidence,
    with_parts,
)
from infer.models.sequential.trunks import make_trunk

SPREAD = 0.05  # standard deviation of first token vectors
SMOOTHING = 0.5  # train rows that every item has beyond its own


class LevelHead(nn.Module):
    """What one level adds to the trunk; without `prefix` there is nothing in front of it."""

    def __init__(self, shape: CompactShape, size: int, nodes: int, *, prefix: bool) -> None:
        super().__init__()
        hidden, dropout = shape.model.hidden, shape.model.dropout
        self.token_KD = nn.Parameter(torch.randn(size, hidden) * SPREAD)
        self.bias_C = nn.Parameter(torch.zeros(nodes))
        self.read = nn.Sequential(
            nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * hidden, hidden)
        )
        self.norm = nn.LayerNorm(hidden)
        self.gate, self.shift = (nn.Linear(hidden, hidden) if prefix else None for _ in range(2))

    def state(self, state_PD: Tensor) -> Tensor:
        return self.norm(state_PD + self.read(state_PD))

    def nodes(
        self, place_C: Tensor, code_C: Tensor, group_C: Tensor, prefix_GD: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(vectors [C, D], biases [C]) of contested nodes; prefix_GD: what is in front of each group, read once for all its members."""
        token_CD, bias_C = self.token_KD[code_C], self.bias_C[place_C]
        if self.gate is None:
            vector_CD = token_CD
        else:
            bias_C = bias_C + (self.shift(prefix_GD)[group_C] * token_CD).sum(1)
            vector_CD = token_CD * (1 + self.gate(prefix_GD)[group_C])
        return vector_CD, bias_C


def relative_rows(popularity_N: np.ndarray) -> Tensor:
    """Train rows of every item with `SMOOTHING` over a power of two near their mean: float64 [N]. Sums of them are exact in float32 as
    long as they are below 2^23 rows, so that a node whose items are all looked at has nothing left.

    >>> relative_rows(np.array([3, 0, 8])).tolist()
    [0.875, 0.125, 2.125]
    """
    count_N = torch.from_numpy(popularity_N + SMOOTHING).double()
    return count_N / 2.0 ** count_N.mean().log2().round()


class CompactModel(nn.Module):
    """Weights drawn from torch's generator; `learn_of` gives it what is known of the items before training."""

    def __init__(self, shape: CompactShape, codes_NL: np.ndarray) -> None:
        super().__init__()
        self.shape, options = shape, shape.model
        self.register_buffer("codes_NL", torch.from_numpy(codes_NL.astype(np.int64)))
        self.tree = SidTree(codes_NL, shape.sizes)
        self.heads = nn.ModuleList(
            LevelHead(shape, size, len(level.contested_C), prefix=number > 0)
            for number, (size, level) in enumerate(zip(shape.sizes, self.tree.levels, strict=True))
        )
        self.trunk = make_trunk(shape.trunk())
        levels, steps = len(shape.sizes), options.positions
        self.bonus_LJ = nn.Parameter(torch.zeros(levels, steps if options.copy else 0))
        self.alpha_LF = nn.Parameter(torch.full((levels, 2 * shape.kernels), START))
        self.register_buffer("similar_NK", torch.zeros(shape.num_items, shape.similar, dtype=torch.int32))
        self.register_buffer("square_NK", torch.zeros(shape.num_items, shape.similar))
        self.companions = CompanionKernel(shape.num_items, shape.companions) if shape.companions else None
        self.rows_N: Tensor
        self.register_buffer("rows_N", torch.ones(shape.num_items))
        self._below: tuple[tuple[int, int], list[Tensor]] | None = None
        if shape.text_dim:
            self.register_buffer("text_NX", torch.zeros(shape.num_items, shape.text_dim))
            self.read_text = self._text_reader()
            self.read_node_text = self._text_reader() if options.node_text else None
        if options.own_vectors:
            self.item_ND = nn.Parameter(torch.zeros(shape.num_items, options.hidden))
        if options.users:
            self.user_UD = nn.Parameter(torch.randn(options.users, options.hidden) * SPREAD)
        if options.gaps:
            self.gap_GD = nn.Parameter(torch.randn(options.gaps + 1, options.hidden) * SPREAD)
        if options.item_path:
            self.items = ItemPath(shape)

    def _text_reader(self) -> nn.Sequential:
        hidden = self.shape.model.hidden
        return nn.Sequential(nn.Linear(self.shape.text_dim, hidden), nn.GELU(), nn.Linear(hidden, hidden))

    @torch.no_grad()
    def learn_of(
        self,
        *,
        popularity_N: np.ndarray,
        text_NX: np.ndarray | None = None,
        similar: tuple[np.ndarray, np.ndarray] | None = None,
        companions: Companions | None = None,
    ) -> None:
        """popularity_N: train rows of every item; text_NX float32, what tokens start from where the shape keeps no texts; similar: items and
        cosines [N, >= K], best first; companions: of the train rows."""
        count_N1 = torch.from_numpy(popularity_N + SMOOTHING).double()[:, None]
        above = count_N1.sum(0, keepdim=True)
        for head, level, count_M1 in zip(
            self.heads, self.tree.levels, self.tree.folded(self.tree.of_items(count_N1)), strict=True
        ):
            share_M = (count_M1 / above[level.parent_M]).log()[:, 0]
            head.bias_C.copy_(share_M[level.contested_C])
            above = count_M1
        if self.shape.text_dim:
            self.text_NX.copy_(torch.from_numpy(text_NX))
        elif text_NX is not None:
            self._start_of_texts(torch.from_numpy(text_NX))
        if self.shape.similar:
            items_NK, cosine_NK = (torch.from_numpy(part[:, : self.shape.similar]) for part in similar)
            self.similar_NK.copy_(items_NK)
            self.square_NK.copy_(cosine_NK.square())
        if self.companions is not None:
            self.companions.learn_of(companions)
        self.rows_N.copy_(relative_rows(popularity_N))
        if self.shape.model.item_path:
            self.items.learn_of(popularity_N, self.similar_NK, self.square_NK, companions)

    def recounted(self, train: TrainLog) -> CompactModel:
        """For scoring beside the nodes of this model: the same weights, the companions and train rows of others."""
        parts: dict[str, nn.Module] = {"companions": self.companions.recounted(train)}
        if self.shape.model.item_path:
            parts["items"] = with_parts(self.items, evidence=self.items.evidence.recounted(train))
        other = with_parts(self, **parts)
        other._buffers = self._buffers | {"rows_N": relative_rows(train.popularity_N).to(self.rows_N)}
        return other

    def _start_of_texts(self, text_NX: Tensor) -> None:
        """A token's vector starts as the mean text vector of the items that have it, as long as a drawn one."""
        width = min(text_NX.shape[1], self.shape.model.hidden)
        for level, head in enumerate(self.heads):
            code_N = self.codes_NL[:, level]
            sum_KD = torch.zeros(len(head.token_KD), width).index_add_(0, code_N, text_NX[:, :width])
            length_K1 = sum_KD.norm(dim=1, keepdim=True)
            told_K = length_K1[:, 0] > 0
            head.token_KD[told_K] = 0.0
            head.token_KD[told_K, :width] = (sum_KD * SPREAD * self.shape.model.hidden**0.5 / length_K1)[
                told_K
            ]

    def item_vectors(self, item_U: Tensor) -> Tensor:
        """What goes in: the vectors of items, [U, D]."""
        total = sum(head.token_KD[self.codes_NL[item_U, level]] for level, head in enumerate(self.heads))
        if self.shape.model.own_vectors:
            total = total + self.item_ND[item_U]
        return total + self.read_text(self.text_NX[item_U]) if self.shape.text_dim else total

    def states(
        self, history_BT: Tensor, at_P: Tensor, user_B: Tensor | None = None, gap_BT: Tensor | None = None
    ) -> Tensor:
        """States [P, D] after the positions `at_P` (b * T + t) of padded histories; padding is any item.

        user_B: users, where the model has user tokens; -1 is unknown, a vector of zeros. gap_BT: infer.models.recency.gap_levels,
        where it has time tokens.
        """
        item_U, place_BT = torch.unique(history_BT, return_inverse=True)
        x_BTD = functional.embedding(place_BT, self.item_vectors(item_U))
        if self.shape.model.gaps:
            x_BTD = x_BTD + self.gap_GD[gap_BT.clamp(max=self.shape.model.gaps)]
        if not self.shape.model.users:
            return self.trunk(x_BTD).flatten(0, 1)[at_P]
        known_B1 = (user_B >= 0)[:, None]
        user_B1D = (self.user_UD[user_B % self.shape.model.users] * known_B1)[:, None]
        return self.trunk(torch.cat([user_B1D, x_BTD], dim=1))[:, 1:].flatten(0, 1)[at_P]

    def nodes(self, asked: list[Tensor | None] | None = None) -> list[tuple[Tensor, Tensor]]:
        """(vectors [C, D], biases [C]) of the contested nodes of every level; asked: of these groups of a level alone, where not None."""
        found, options = [], self.shape.model
        texts = self._means_below(self.text_NX, torch.ones_like(self.rows_N)) if options.node_text else None
        own = self._means_below(self.item_ND, self.rows_N) if options.own_vectors else None
        for number, (head, level) in enumerate(zip(self.heads, self.tree.levels, strict=True)):
            asked_G = None if asked is None else asked[number]
            place_C, group_C = level.members(asked_G)
            node_C = level.contested_C[place_C]
            prefix_GL = level.prefix_GL if asked_G is None else level.prefix_GL[asked_G]
            parts = [self.heads[at].token_KD[prefix_GL[:, at]] for at in range(number)]
            vector_CD, bias_C = head.nodes(
                place_C, level.code_M[node_C], group_C, sum(parts) if parts else None
            )
            if texts is not None:
                vector_CD = vector_CD + self.read_node_text(texts[number][node_C])
            if own is not None:
                vector_CD = vector_CD + own[number][node_C]
            found.append((vector_CD, bias_C))
        return found

    def _means_below(self, value_NX: Tensor, weight_N: Tensor) -> list[Tensor]:
        """Weighted means [M, X] of the items below every node of every level."""
        weight_N1 = weight_N[:, None]
        sums = self.tree.folded(self.tree.of_items(value_NX * weight_N1))
        weights = self.tree.folded(self.tree.of_items(weight_N1))
        return [sum_MX / weight_M1 for sum_MX, weight_M1 in zip(sums, weights, strict=True)]

    def kernels(self) -> list[tuple[Tensor, Tensor]]:
        """(items [N, K], values [N, K]) of the kernels, that of companions last."""
        found = [(self.similar_NK, self.square_NK)] if self.shape.similar else []
        beside = self.companions
        return found if beside is None else [*found, (beside.item_NK, beside.value_NK)]

    @property
    def copies(self) -> bool:
        """Whether the items of a history have a bonus."""
        return self.bonus_LJ.shape[1] > 0

    @property
    def reads_history(self) -> bool:
        """Whether a history says anything by itself (compact_evidence.py)."""
        return self.copies or bool(self.shape.kernels)

    def rows_below(self, number: int) -> Tensor:
        """Train rows [M] below the nodes of a level."""
        made_of = self.rows_N.data_ptr(), self.rows_N._version
        if self._below is None or self._below[0] != made_of:
            self._below = (
                made_of,
                [
                    self.rows_N.new_zeros(len(level.code_M)).index_add_(0, node_N, self.rows_N)
                    for level, node_N in zip(self.tree.levels, self.tree.node_LN, strict=True)
                ],
            )
        return self._below[1][number]

    def level_logits(self, state_PD: Tensor, nodes: tuple[Tensor, Tensor], said: Said | None) -> Tensor:
        """Logits [C, P] of a level's contested nodes; without a gradient, for `state_PD` that is the head's."""
        vector_CD, bias_C = nodes
        logit_CP = torch.addmm(bias_C[:, None], vector_CD, state_PD.T)
        if said is not None:
            logit_CP += said.logit
        return logit_CP.clamp_(-BOUND, BOUND)

    def level_logs(
        self, state_PD: Tensor, recent_PJ: Tensor, nodes: list[tuple[Tensor, Tensor]]
    ) -> list[Tensor]:
        """Log-probabilities [C, P] among siblings at every level, for scoring; `nodes` is `nodes()`, the same for all blocks of rows."""
        said = everywhere(self, recent_PJ)
        return [
            tree_level.log_softmax(self.level_logits(head.state(state_PD), one, of_level))
            for head, tree_level, one, of_level in zip(self.heads, self.tree.levels, nodes, said, strict=True)
        ]

    def item_logs(self, state_PD: Tensor, recent_PJ: Tensor, nodes: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Log-probabilities of all items [N, P]: the path's, and with `item_path` its weighted mean with the items', normalised."""
        path_NP = self.tree.item_scores(self.level_logs(state_PD, recent_PJ, nodes))
        weight = self.shape.model.item_path
        if not weight:
            return path_NP
        return (
            (weight * self.items.logs(state_PD, recent_PJ).T).add_(path_NP, alpha=1 - weight).log_softmax(0)
        )


class ItemPath(nn.Module):
    """The second path: a softmax over items on the trunk's state, with vectors, bias and evidence of its own."""

    def __init__(self, shape: CompactShape) -> None:
        super().__init__()
        size, hidden, options = shape.num_items, shape.model.hidden, shape.model
        self.item_ND = nn.Parameter(torch.randn(size, hidden) * SPREAD)
        self.bias_N = nn.Parameter(torch.zeros(size))
        self.evidence = HistoryEvidence(
            size, options.positions, similar=shape.similar, copy=options.copy, companions=shape.companions
        )

    @torch.no_grad()
    def learn_of(
        self,
        popularity_N: np.ndarray,
        similar_NK: Tensor,
        square_NK: Tensor,
        companions: Companions | None,
    ) -> None:
        share_N = (popularity_N + 1.0) / (popularity_N + 1.0).sum()
        self.bias_N.copy_(torch.from_numpy(np.log(share_N)))
        self.evidence.similar_NK.copy_(similar_NK)
        self.evidence.square_NK.copy_(square_NK)
        if self.evidence.companions is not None:
            self.evidence.companions.learn_of(companions)

    def logs(self, state_PD: Tensor, recent_PJ: Tensor) -> Tensor:
        """Log-probabilities [P, N]; without a gradient."""
        logit_PN = torch.addmm(self.bias_N, state_PD, self.item_ND.T)
        self.evidence.add_to(logit_PN, recent_PJ, self.evidence.features(recent_PJ))
        return logit_PN.log_softmax(1)
