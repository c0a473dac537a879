"""The beams of one prompt level by level, and where the target stands among them.

The beams of a level are those of a search that ends there, which is what a beam search keeps on its way: the engine is
asked for them with the semantic IDs cut to so many levels, so nothing of the decoder is written twice.

Legend: L levels, K beams.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from data.predictions import Predictions, from_table
from data.sid import SidTable, SidVocab
from infer.engine import Engine
from infer.search.prefixes import Prefixes
from infer.work.decoding import prediction_table


@dataclass(frozen=True)
class LevelBeams:
    """The beams after a level, best first: nodes_K, scores_K (sums over the levels so far), codes_KL of its depth."""

    nodes_K: np.ndarray
    scores_K: np.ndarray
    codes_KL: np.ndarray

    def rank_of(self, node: int) -> int | None:
        """Place from 1 of a node, None where it is no beam."""
        at = np.flatnonzero(self.nodes_K == node)
        return int(at[0]) + 1 if len(at) else None

    def score_of(self, node: int) -> float | None:
        rank = self.rank_of(node)
        return None if rank is None else float(self.scores_K[rank - 1])


def level_beams(engine: Engine, prefixes: Prefixes, prompt: list[int]) -> list[LevelBeams]:
    """What the search of one prompt keeps after each level."""
    shorter = [_engine_of(engine, table) for table in prefixes.tables[:-1]]
    return [_search(each, prompt) for each in [*shorter, engine]]


def _search(engine: Engine, prompt: list[int]) -> LevelBeams:
    _, beams = next(iter(engine.search_batches([prompt])))
    count = int(beams.counts_B[0])
    found = (beams.nodes_BK, beams.scores_BK, beams.codes_BKL)
    return LevelBeams(*(tensor[0, :count].cpu().numpy() for tensor in found))


def _engine_of(engine: Engine, sids: SidTable) -> Engine:
    """The same engine over semantic IDs of fewer levels, or over fewer of them."""
    vocab = engine.renderer.answer_vocab
    suffix = vocab.suffix_ids if sids.num_levels == engine.sids.num_levels else ()
    shorter = SidVocab(vocab.format, vocab.levels[: sids.num_levels], vocab.prefix_ids, suffix)
    settings = engine.settings
    if sids.num_levels < engine.sids.num_levels:  # what only concerns a finished answer
        settings = replace(settings, terminator=False, length_penalty=0.0)
    return engine.over(shorter, sids, settings)


def target_scores(
    engine: Engine, levels: list[LevelBeams], nodes: list[int], codes: tuple[int, ...], prompt: list[int]
) -> list[float | None]:
    """The score of the target's prefix after each level, also where it is no beam.

    Beyond the beams it is that of a search over the target alone; in score space `trie`, whose scores depend on what
    else is legal, it is unknown there.
    """
    scores = []
    for depth, (level, node) in enumerate(zip(levels, nodes, strict=True), start=1):
        score = level.score_of(node)
        if score is None and engine.settings.score_space != "trie":
            alone = SidTable(np.array([codes[:depth]], np.int32), engine.sids.sizes[:depth])
            score = float(_search(_engine_of(engine, alone), prompt).scores_K[0])
        scores.append(score)
    return scores


def beam_facts(
    engine: Engine,
    prefixes: Prefixes,
    levels: list[LevelBeams],
    target: tuple[int, ...],
    prompt: list[int],
) -> dict[str, Any]:
    """The beams of every level and the target's way through them: {levels, target}.

    Under a length penalty the last step has no share: the score of a finished answer is divided by its length.
    """
    way = prefixes.path(target)
    nodes = [step.node for step in way]
    scores = target_scores(engine, levels, nodes, target, prompt)
    facts = []
    for depth, level in enumerate(levels):
        beams = []
        for rank, (codes, score) in enumerate(
            zip(level.codes_KL.tolist(), level.scores_K.tolist(), strict=True), start=1
        ):
            path = path_facts(prefixes, levels, codes)
            if len(codes) == len(levels) and engine.settings.length_penalty:
                path[-1]["score"] = None
            beams.append({"rank": rank, "score": score, "path": path})
        facts.append({"prefixes": len(prefixes.tables[depth].sids_SL), "beams": beams})
    steps = [asdict(step) for step in way]
    for step, level, score in zip(steps, levels, scores, strict=True):
        last = float(level.scores_K[-1]) if len(level.scores_K) else None
        step |= {"rank": level.rank_of(step["node"]), "score": score, "last_beam_score": last}
    return {"levels": facts, "target": steps}


def path_facts(prefixes: Prefixes, levels: list[LevelBeams], codes: list[int]) -> list[dict[str, Any]]:
    """The way to a beam: level, code, node, legal codes, items below, and what this step adds to the score."""
    steps, before = [], 0.0
    for step, level in zip(prefixes.path(codes), levels, strict=False):
        total = level.score_of(step.node)
        steps.append(asdict(step) | {"score": None if total is None else total - before})
        before = total if total is not None else before
    return steps


def list_of(engine: Engine, final: LevelBeams, example_id: int) -> Predictions:
    """The final beams as the one row of predictions that infer.recommend would store."""
    table = prediction_table(final.nodes_K[None], final.scores_K[None], np.array([example_id]), engine.sids)
    return from_table(table, where="the list found now")
