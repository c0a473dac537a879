"""A compact generator as `search` drives it, and as an Engine (infer/engine.py) for infer.recommend.

    engine = load_engine("outputs/run/baselines/compact", "data/industrial/sids/rqkmeans", DecodeSettings(score_space="trie"))
    engine.recommend([[3, 17, 5], [8]], k=10)

Its prompt is not text: the user's number plus 1 (0: unknown), then the item ids of the history, each followed by its gap
(infer.models.recency.gap_levels) where the model has time tokens. The state behind it serves all
levels: no token of the answer is fed back, so the trunk has one forward. What is legal is scored by the nodes' own logits,
normalised over the legal children of a prefix (score space `trie`); a catalogue of allowed items has fewer of them. With two paths
the item probabilities are folded up the tree, so that the search follows the fused distribution.

Legend: B prompts, T slots of a prompt, K beams, X candidates of a beam, M nodes of a level, C contested ones, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from configs.program import InputError
from data.rows import Rows
from data.sid import FORMATS, LETTERS, LevelTokens, SidTable, SidVocab, read_sids
from infer.engine import DecodeSettings, Engine
from infer.models.contract import read_settings
from infer.models.recency import gap_levels
from infer.models.retrievers.compact import CompactScorer, load
from infer.models.retrievers.compact_evidence import everywhere
from infer.search.allowed import item_ids
from infer.search.scoring import Parity
from infer.search.trie import Trie, without_forbidden

LEAST = 1e-38  # probability below which a node has no logarithm in float32


class CompactDecoder(nn.Module):
    """What `search` takes as a model; `sids` are those of the network."""

    def __init__(self, scorer: CompactScorer, sids: SidTable, *, name: str) -> None:
        super().__init__()
        self.network, self.scorer, self.name_or_path = scorer.network, scorer, name
        self.vocab = vocab_of(sids)
        self.trie = Trie(sids, self.vocab, device=scorer.device)
        self.search_trunk = CompactTrunk


class CompactTrunk:
    """One search over a CompactDecoder."""

    def __init__(self, model: CompactDecoder, *, slots: int) -> None:
        self.model = model

    def start(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """State [B, 1, D] behind each prompt: the user's number + 1, then items, padded on the right."""
        self.tokens_BT = ids_BT
        each = 2 if self.model.network.shape.model.gaps else 1
        history_BT = ids_BT[:, 1::each] if ids_BT.shape[1] > 1 else torch.zeros_like(ids_BT)
        gap_BT = ids_BT[:, 2::2] if each == 2 and ids_BT.shape[1] > 1 else torch.zeros_like(history_BT)
        self.state_BD, self.recent_BJ = self.model.scorer.padded_states(
            history_BT, (lengths_B - 1) // each, ids_BT[:, 0] - 1, gap_BT
        )
        return self.state_BD[:, None]

    def extend(self, tokens_BK: Tensor, parent_BK: Tensor) -> Tensor:
        """The same state for every beam."""
        return self.state_BD[:, None].expand(-1, tokens_BK.shape[1], -1)

    def level_scorer(self, trie: Trie, score_space: str, parity: Parity) -> CompactLevelScorer:
        """What scores the candidates of a level, in place of an output layer."""
        return CompactLevelScorer(self, trie, score_space, parity)


class CompactLevelScorer:
    """Log-probabilities of the legal children of every beam's node; InputError for settings that need a vocabulary."""

    def __init__(self, trunk: CompactTrunk, trie: Trie, score_space: str, parity: Parity) -> None:
        require_possible(score_space, parity)
        self.trunk, self.trie, self.temperature = trunk, trie, parity.temperature
        network = trunk.model.network
        self.said = everywhere(network, trunk.recent_BJ)
        self.nodes = trunk.model.scorer.nodes
        self.folded = self._folded() if network.shape.model.item_path else None

    def __call__(
        self, hidden_BKD: Tensor, level: int, nodes_BK: Tensor, path_BKl: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As infer.search.scoring.LevelScorer: (float32 [B, K, X], -inf where forbidden; codes [B, K, X] or None)."""
        whole = self.trunk.model.trie
        codes_BKX, penalty_BKX = self.trie.candidates(level, nodes_BK)
        own_BK = self._own_nodes(level, nodes_BK, path_BKl)
        asked_BKX = codes_BKX
        if asked_BKX is None:
            asked_BKX = torch.arange(penalty_BKX.shape[-1], device=nodes_BK.device).expand(penalty_BKX.shape)
        child_BKX = whole.child(level, own_BK[..., None].expand_as(asked_BKX), asked_BKX).clamp(min=0)
        logit_BM, place_M = self._logits(level)
        place_BKX = child_BKX if place_M is None else place_M[child_BKX]
        logit_BKX = logit_BM.gather(1, place_BKX.flatten(1)).view(place_BKX.shape) / self.temperature
        legal_BKX = without_forbidden(logit_BKX, penalty_BKX)
        return legal_BKX - legal_BKX.logsumexp(-1, keepdim=True), codes_BKX

    def _logits(self, level: int) -> tuple[Tensor, Tensor | None]:
        """(logits [B, contested + 1], where each node has its own; 0 for a child without siblings), or those of all nodes."""
        if self.folded is not None:
            return self.folded[level].clamp(min=LEAST).log().T, None
        network, trunk = self.trunk.model.network, self.trunk
        state_BD = network.heads[level].state(trunk.state_BD)
        logit_CB = network.level_logits(state_BD, self.nodes[level], self.said[level])
        return nn.functional.pad(logit_CB, (0, 0, 0, 1)).T, network.tree.levels[level].place_M

    def _folded(self) -> list[Tensor]:
        """Probabilities [M, B] of the nodes of every level."""
        network, trunk = self.trunk.model.network, self.trunk
        item_NB = network.item_logs(trunk.state_BD, trunk.recent_BJ, self.nodes).exp_()
        return network.tree.folded(network.tree.of_items(item_NB))

    def _own_nodes(self, level: int, nodes_BK: Tensor, path_BKl: Tensor | None) -> Tensor:
        """The network's nodes of the beams: those of the trie where it has all items, else found by their codes."""
        if self.trie.sid_of_leaf is None:
            return nodes_BK
        own_BK = torch.zeros_like(nodes_BK)
        for depth in range(level):
            first = self.trunk.model.vocab.levels[depth].first
            own_BK = self.trunk.model.trie.child(depth, own_BK, path_BKl[..., depth] - first).clamp(min=0)
        return own_BK


def require_possible(score_space: str, parity: Parity) -> None:
    """InputError for settings that need a vocabulary."""
    if score_space != "trie":
        raise InputError(
            f"a compact generator has probabilities among the children of a prefix alone, no score space {score_space} -> "
            "score_space trie"
        )
    if parity.repetition_penalty != 1:
        raise InputError("a compact generator repeats no tokens -> repetition_penalty 1")


def vocab_of(sids: SidTable) -> SidVocab:
    """Tokens 0, 1, 2, ... for the codes of all levels."""
    firsts = np.cumsum([0, *sids.sizes])
    levels = tuple(
        LevelTokens(LETTERS[number], size, first=int(firsts[number]))
        for number, size in enumerate(sids.sizes)
    )
    return SidVocab(FORMATS["letters"], levels, sids_sha256=sids.sha256)


class ItemPrompts:
    """Examples as prompts of a compact generator; it stands where others have a Renderer and a HistoryRenderer.

    users, gaps: whether the model has vectors of users and time tokens; without them all are unknown.
    """

    max_prompt = None

    def __init__(
        self, vocab: SidVocab, *, num_items: int, positions: int, users: bool, gaps: bool = False
    ) -> None:
        self.vocab = self.answer_vocab = vocab
        self.num_items, self.positions, self.users, self.gaps = num_items, positions, users, gaps

    def prompts(self, examples: Sequence[Any], mode: str = "direct") -> list[list[int]]:
        """Of data.tasks.Example, or of histories of item ids; the newest items that the model reads."""
        return [self.prompt_ids(example, mode) for example in examples]

    def prompt_ids(self, example: Any, mode: str = "direct") -> list[int]:
        """The prompt of one of them; the times of a bare history are unknown."""
        return self._prompt(example, self.positions)

    def uncut(self, examples: Sequence[Any], mode: str = "direct") -> list[list[int]]:
        """The same with whole histories."""
        return [self._prompt(one, len(one.history)) for one in examples]

    def _prompt(self, example: Any, most: int) -> list[int]:
        user = getattr(example, "user_id", None) if self.users else None
        history = list(getattr(example, "history", example))
        start = max(len(history) - most, 0)
        items = history[start:]
        if self.gaps:
            gaps = self._gaps(example, start, len(items))
            items = [token for pair in zip(items, gaps, strict=True) for token in pair]
        return [0 if user is None else user + 1, *items]

    def _gaps(self, example: Any, start: int, count: int) -> list[int]:
        if not hasattr(example, "history"):
            return [0] * count
        if example.ages is None:
            raise InputError(
                "this model has time tokens, the examples have no times -> preprocess.build_examples --ages true"
            )
        age_H = np.array(example.ages[start:], np.float64)  # None becomes NaN
        none_R, row = np.zeros(1, np.int64), np.array([0, count])
        return gap_levels(Rows(none_R, none_R, row, age_H, none_R, age_H)).tolist() if count else []

    def answer_ids(self, example: Any) -> list[int]:
        """The codes of an example's answer as tokens."""
        codes = example.answer.sid
        return [int(level.token_ids[code]) for level, code in zip(self.vocab.levels, codes, strict=True)]

    def example(self, history: Sequence[int]) -> list[int]:
        item_ids(history, self.num_items, "history")
        return [int(item) for item in history]

    def most_items(self) -> int:
        return self.positions

    def terminator_ids(self, mode: str = "direct") -> list[int]:
        return []


class CompactEngine(Engine):
    """An Engine whose prompts are item ids."""

    def __init__(
        self, model: CompactDecoder, sids: SidTable, settings: DecodeSettings, vocab: SidVocab | None = None
    ) -> None:
        self.model, self.sids, self.settings = model, sids, settings
        self.wording, self.mode, self.races = "items", "direct", False
        self.renderer = self.histories = ItemPrompts(
            vocab or model.vocab, num_items=sids.num_items, positions=model.scorer.positions,
            users=model.network.shape.model.users > 0, gaps=model.network.shape.model.gaps > 0,
        )  # fmt: skip

    def over(self, vocab: SidVocab, sids: SidTable, settings: DecodeSettings) -> CompactEngine:
        return CompactEngine(self.model, sids, settings, vocab)

    def told(self, ids: Sequence[int]) -> str:
        """Its tokens are numbers: a user (0: unknown) and items, or codes."""
        return " ".join(map(str, ids))

    def check_context(self, longest: int, *, before_answer: int = 0) -> None:
        """Nothing to check: prompts hold what the model reads."""


def load_engine(
    directory: str | Path,
    sids_dir: str | Path,
    settings: DecodeSettings,
    *,
    device: str | None = None,
    mode: str = "direct",
) -> CompactEngine:
    """An Engine of a saved compact generator.

    InputError for other semantic IDs, a mode with thoughts, settings that need a vocabulary, another kind of model.
    """
    saved, sids = read_settings(directory), read_sids(sids_dir)
    if saved["kind"] != "compact":
        raise InputError(
            f"{directory} is an item model of kind {saved['kind']}, which is not decoded -> infer.run_baselines --models"
        )
    if mode != "direct":
        raise InputError(f"{directory} generates semantic IDs alone, no thoughts -> mode direct")
    if saved["sids_sha256"] != sids.sha256:
        raise InputError(
            f"{directory} was trained on other semantic IDs than {sids_dir} ({saved['sids_sha256'][:12]} against "
            f"{sids.sha256[:12]}) -> train it again, or name its semantic IDs"
        )
    require_possible(settings.score_space, settings.parity)
    return CompactEngine(
        CompactDecoder(load(Path(directory), device=device), sids, name=str(directory)), sids, settings
    )
