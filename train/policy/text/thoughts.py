"""Rollouts that think first: a sampled thought, then a semantic ID that the tree decoder puts behind it. All on token ids.

    completion = thought | end marker | what leads to the answer | codes  | what ends it
                 sampled   if sampled    forced                    searched forced

Forced tokens carry no loss. Behind each of a prompt's G thoughts stands one semantic ID: the likeliest legal code of each level in
turn (`greedy`), one drawn from the model's own distribution over legal IDs (`sample`), or the best of a search (`beams`), whose whole
list rewards see as a group of its own: what a thought is worth is then where in that list the target stands. A thought that reached its length limit is closed by force, counted,
and learned from like any other, unless `drop_unfinished` leaves it out of its group.

With `learns: list` the completion goes on with the other beams, best first, each behind a line break and what leads to an answer, and
thought and list are learned as one text ("beamsearch backup" in SIDReasoner's code, which sets a marker between them and does not
hold its beams to the catalogue): codes of all beams carry loss, what stands between them carries none. A beam was found behind the
thought alone, its loss is behind the beams before it too; validation and inference read the first one, so the list is a way of
learning, never of answering.

Legend: P prompts, G rollouts of a group, L levels, K beams behind a thought, E = P * G thoughts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.program import InputError
from data.answers import piece_ids
from data.renderer import MODES
from infer.engine import Engine
from infer.search.allowed import read_allowed
from infer.search.sampling import StochasticBeam
from infer.search.scoring import Parity
from infer.search.tree import search
from infer.text.thinking import ThinkSettings, Thought, TransformersWriter, answer_prompts, seed_of
from train.policy.settings import ThoughtSettings
from train.rewards import RolloutBatch


@dataclass(frozen=True)
class ThoughtRollouts:
    """P * G completions, prompt by prompt: token ids, which of them the loss counts (1) and what rewards see.

    codes_PGL int64, scores_PG float32 (log-probability of the codes), text as people read it; unfinished: thoughts closed by force.
    ranked: with tail beams, E groups of K beams, thought by thought; beam_at: of every token of a completion the beam whose code it
    is, -1 for other tokens.
    """

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    counted: list[list[int]]
    batch: RolloutBatch
    unfinished_PG: np.ndarray
    ranked: RolloutBatch | None = None
    beam_at: list[list[int]] | None = None


def grouped(flat: list[Any], group: int) -> list[list[Any]]:
    """[P * G] as [P][G]."""
    return [flat[start : start + group] for start in range(0, len(flat), group)]


def decoded(engine: Engine, ids: Sequence[int]) -> str:
    """Tokens as text, markers included."""
    return engine.renderer.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


class ThoughtPolicy:
    """Rolls out the engine's live model."""

    def __init__(
        self, engine: Engine, settings: ThoughtSettings, *, group: int, seed: int, writer: Any = None
    ) -> None:
        """writer: what writes the thoughts (`write(prompts, keys)`); default: the engine's live model."""
        if engine.mode != "think":
            raise InputError(f"thoughts need an engine in mode think, not {engine.mode}")
        self.engine, self.settings, self.group, self.seed = engine, settings, group, seed
        think = ThinkSettings(
            thoughts=group, max_tokens=settings.max_tokens, temperature=settings.temperature, top_p=settings.top_p,
            batch_size=settings.batch_size, seed=seed,
        )  # fmt: skip
        self.writer = writer or TransformersWriter(engine.model, engine.renderer, think)
        vocab = engine.renderer.answer_vocab
        self.end_ids = [*vocab.suffix_ids, *engine.renderer.terminator_ids("think")]
        (line_break,) = piece_ids(engine.renderer.tokenizer, ["\n"])
        self.between_ids = [*vocab.suffix_ids, *line_break, *vocab.prefix_ids]

    @property
    def list_tokens(self) -> int:
        """Tokens of a list of all beams and of what ends it, at most."""
        levels, beams = self.engine.sids.num_levels, self.settings.beams
        return beams * levels + (beams - 1) * len(self.between_ids) + len(self.end_ids)

    def keys(self, rows: Sequence[dict[str, Any]], step: int) -> list[int]:
        """An integer per prompt: what is drawn for it depends on the seed, the step and the example."""
        return [seed_of(self.seed, (step, row["example_id"])) for row in rows]

    def roll_out(
        self, rows: Sequence[dict[str, Any]], prompts: Sequence[Sequence[int]], *, step: int,
        thoughts: Sequence[Sequence[Thought]] | None = None,
    ) -> ThoughtRollouts:  # fmt: skip
        """Thoughts and semantic IDs behind each of P prompts; thoughts: those of the prompts, where they are written already."""
        keys = self.keys(rows, step)
        thoughts = self.writer.write(prompts, keys) if thoughts is None else thoughts
        extended, row_E = answer_prompts(prompts, thoughts, self.engine.renderer, task="reason_then_sid")
        own = [seed_of(keys[row], (entry % self.group,)) for entry, row in enumerate(row_E)]
        codes_EKL, nodes_EK, scores_EK = self._answers(extended, own)
        chosen_E = self._chosen(nodes_EK, [rows[row] for row in row_E])
        codes_EL, nodes_E, scores_E = (
            np.take_along_axis(part, chosen_E.reshape(-1, *[1] * (part.ndim - 1)), axis=1)[:, 0]
            for part in (codes_EKL, nodes_EK, scores_EK)
        )
        flat = [thought for group in thoughts for thought in group]
        prompt_ids = [list(prompts[row]) for row in row_E]
        completion_ids, counted, beam_at = [], [], []
        for entry, thought in enumerate(flat):
            body = extended[entry][len(prompt_ids[entry]) :]
            listed = self._listed(int(chosen_E[entry]), nodes_EK[entry])
            ids, beam = self._completion(body, self._tokens(codes_EKL[entry, listed]), listed)
            own = len(thought.ids) + thought.finished  # the end marker is the model's where it wrote it
            learned = self.settings.learns != "thought"
            completion_ids.append(ids)
            counted.append([int(at < own or (learned and one >= 0)) for at, one in enumerate(beam)])
            beam_at.append(beam)
        shape = (len(rows), self.group)
        items = [tuple(self.engine.sids.items_of_sid(node).tolist()) for node in nodes_E.tolist()]
        text = [decoded(self.engine, thought.ids) for thought in flat]
        answers = [MODES["think"] + decoded(self.engine, ids[:-1]) for ids in completion_ids]
        batch = RolloutBatch(
            rows,
            codes_EL.reshape(*shape, -1),
            self._grouped(items),
            scores_E.reshape(shape),
            self._grouped(text),
            self._grouped(completion_ids),
            np.array([len(thought.ids) for thought in flat]).reshape(shape),
            self._grouped(answers),
        )
        unfinished = np.array([not thought.finished for thought in flat]).reshape(shape)
        ranked = None
        if self.settings.tail == "beams":
            told = [rows[row] for row in row_E]
            target_E = self._target_scores(extended, told) if self.settings.score_target else None
            ranked = self._ranked(told, codes_EKL, nodes_EK, scores_EK, batch, target_E)
        return ThoughtRollouts(prompt_ids, completion_ids, counted, batch, unfinished, ranked, beam_at)

    def _listed(self, chosen: int, nodes_K: np.ndarray) -> list[int]:
        """The beams that stand in a completion, in their order: the chosen one, or all legal ones."""
        return np.flatnonzero(nodes_K >= 0).tolist() if self.settings.learns == "list" else [chosen]

    def _completion(
        self, body: Sequence[int], tokens_JL: np.ndarray, beams: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """(token ids, of each the beam whose code it is or -1) of what stands behind a prompt. body: thought, marker, what leads to the
        answer; tokens_JL: of the J beams in it."""
        ids, beam_at = list(body), [-1] * len(body)
        for place, (tokens, beam) in enumerate(zip(tokens_JL.tolist(), beams, strict=True)):
            between = self.between_ids if place else []
            ids += [*between, *tokens]
            beam_at += [-1] * len(between) + [beam] * len(tokens)
        return [*ids, *self.end_ids], beam_at + [-1] * len(self.end_ids)

    def _chosen(self, nodes_EK: np.ndarray, rows_E: Sequence[dict[str, Any]]) -> np.ndarray:
        """Which beam stands in the completion, int64 [E]: the best, or with `hindsight` the target's where it is among them."""
        chosen_E = np.zeros(len(nodes_EK), np.int64)
        if self.settings.hindsight:
            target_E = self.engine.sids.sid_of_item_N[[row["target"][0] for row in rows_E]]
            chosen_E = (nodes_EK == target_E[:, None]).argmax(1)
        return chosen_E

    def _ranked(
        self, rows_E: list[dict[str, Any]], codes_EKL: np.ndarray, nodes_EK: np.ndarray, scores_EK: np.ndarray, batch: RolloutBatch,
        target_E: np.ndarray | None,
    ) -> RolloutBatch:  # fmt: skip
        beams, sids = nodes_EK.shape[1], self.engine.sids
        items = [
            [() if node < 0 else tuple(sids.items_of_sid(node).tolist()) for node in nodes]
            for nodes in nodes_EK.tolist()
        ]
        text, token_ids, answers = (
            [[own] * beams for group in part for own in group]
            for part in (batch.text, batch.token_ids, batch.answers)
        )
        lengths_EK = np.repeat(batch.thought_PG.reshape(-1, 1), beams, axis=1)
        return RolloutBatch(
            rows_E, codes_EKL, items, scores_EK, text, token_ids, lengths_EK, answers, target_E
        )

    def _target_scores(self, prompts: list[list[int]], rows_E: list[dict[str, Any]]) -> np.ndarray:
        """Log-probability float32 [E] of each target behind its prompt, by a search that may find nothing else."""
        engine, scores_E = self.engine, np.empty(len(prompts), np.float32)
        masks, set_E = read_allowed(
            [[row["target"][0]] for row in rows_E], requests=len(rows_E), num_items=engine.sids.num_items
        )
        for group in engine.catalogues.groups(masks, set_E):
            of_group = [prompts[row] for row in group.rows]
            scores_E[group.rows] = engine.rank(of_group, trie=group.trie, roots_B=group.roots)[1][:, 0]
        return scores_E

    def _grouped(self, flat: list[Any]) -> list[list[Any]]:
        return grouped(flat, self.group)

    def _answers(
        self, prompts: list[list[int]], keys: list[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(codes int64 [E, K, L], rows of sids_SL int64 [E, K], scores float32 [E, K]) behind each prompt, K = 1 but for beams.

        Where fewer are legal the row is -1 and the score -inf.
        """
        engine, count = self.engine, len(prompts)
        width = min(self.settings.beams, len(engine.sids.sids_SL)) if self.settings.tail == "beams" else 1
        codes_EKL = np.empty((count, width, engine.sids.num_levels), np.int64)
        nodes_EK, scores_EK = np.empty((count, width), np.int64), np.empty((count, width), np.float32)
        for part in engine.batches(prompts):
            sampler = None
            if self.settings.tail == "sample":
                sampler = StochasticBeam(self.seed, [keys[entry] for entry in part])
            beams = search(
                engine.model,
                [prompts[entry] for entry in part],
                engine.trie,
                width,
                "trie" if self.settings.tail == "sample" else engine.settings.score_space,
                parity=Parity(),
                sampler=sampler,
            )
            codes_EKL[part] = beams.codes_BKL.cpu().numpy()
            nodes_EK[part] = beams.nodes_BK.cpu().numpy()
            scores_EK[part] = beams.scores_BK.float().cpu().numpy()
        return codes_EKL, nodes_EK, scores_EK

    def _tokens(self, codes_EL: np.ndarray) -> np.ndarray:
        levels = self.engine.renderer.vocab.levels
        return np.stack([level.token_ids[codes_EL[:, at]] for at, level in enumerate(levels)], 1)
