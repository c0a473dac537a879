"""Rollouts of instructions: a thought, a TID of the catalogue behind it, free text inside a JSON string behind that.

    completion = thought | end marker | {"target_tid":[" | terms            | "],"target_ins":" | text     | "}         | what ends it
                 sampled   if sampled    forced             drawn or searched  forced              sampled    if sampled  forced

`infer.work.instructing` decodes, as stage 12 does, with the live model: the terms by the trie, the text by the table of a JSON
string. Tokens that no other could have stood for carry no loss, nor does the end of a text that the length cut off.

Legend: P prompts, G rollouts of a group, E = P * G thoughts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.answers import INSTRUCTION_TASK, TEXT_END, piece_ids
from data.renderer import MODES
from infer.engine import Engine
from infer.text.thinking import Thought, answer_prompts, seed_of
from infer.text.tids import TidTrie
from infer.work.instructing import Instructed, constrained_answers
from train.policy.settings import InstructionSettings, ThoughtSettings
from train.policy.text.thoughts import ThoughtRollouts, decoded, grouped
from train.rewards import RolloutBatch


class InstructionPolicy:
    """Rolls out the engine's live model on rows of history_to_instruction; `trie`: the catalogue's terms."""

    def __init__(
        self, engine: Engine, trie: TidTrie, thought: ThoughtSettings, settings: InstructionSettings, *, group: int, seed: int
    ) -> None:  # fmt: skip
        self.engine, self.trie, self.thought, self.settings = engine, trie, thought, settings
        self.group, self.seed = group, seed
        self.text = settings.text(thought.batch_size * group, seed)
        (self.closing,) = piece_ids(engine.renderer.tokenizer, [TEXT_END])
        self.terminator = engine.renderer.terminator_ids("think")

    def roll_out(
        self, rows: Sequence[dict[str, Any]], prompts: Sequence[Sequence[int]], *, keys: Sequence[int],
        thoughts: Sequence[Sequence[Thought]],
    ) -> ThoughtRollouts:  # fmt: skip
        """Terms and text behind each thought of P prompts. keys: an integer per prompt, which with the seed decides what is drawn."""
        extended, row_E = answer_prompts(prompts, thoughts, self.engine.renderer, task=INSTRUCTION_TASK)
        own = [seed_of(keys[row], (entry % self.group,)) for entry, row in enumerate(row_E.tolist())]
        found = constrained_answers(
            self.engine, self.trie, extended, [[entry] for entry in range(len(extended))], own, text=self.text, beams=1,
            drawn=self.seed if self.settings.terms == "sample" else None,
        )  # fmt: skip
        flat = [thought for group in thoughts for thought in group]
        bodies = [extended[entry][len(prompts[row]) :] for entry, row in enumerate(row_E.tolist())]
        made = [self._completion(*parts) for parts in zip(flat, bodies, found, strict=True)]
        shape = (len(rows), self.group)
        batch = RolloutBatch(
            rows,
            np.full((*shape, self.engine.sids.num_levels), -1, np.int64),
            grouped([one.item_ids for one in found], self.group),
            np.array([one.score for one in found], np.float32).reshape(shape),
            grouped([decoded(self.engine, thought.ids) for thought in flat], self.group),
            grouped([ids for ids, _ in made], self.group),
            np.array([len(thought.ids) for thought in flat]).reshape(shape),
            grouped([self._told(*parts) for parts in zip(bodies, found, strict=True)], self.group),
        )
        unfinished = np.array([not thought.finished for thought in flat]).reshape(shape)
        return ThoughtRollouts(
            [list(prompts[row]) for row in row_E.tolist()],
            [ids for ids, _ in made],
            [counted for _, counted in made],
            batch,
            unfinished,
        )

    def _completion(
        self, thought: Thought, body: list[int], answer: Instructed
    ) -> tuple[list[int], list[int]]:
        """(token ids, which of them the loss counts)."""
        said = list(answer.written.ids[: answer.written.whole])
        forced = [*(() if answer.written.finished else self.closing), *self.terminator]
        own, learned = len(thought.ids) + thought.finished, self.thought.learns != "thought"
        terms = self.trie.free(answer.tid) if learned else [0] * len(answer.tid.ids)
        counted = [1] * own + [0] * (len(body) - own) + terms + [int(learned)] * len(said)
        return [*body, *answer.tid.ids, *said, *forced], counted + [0] * len(forced)

    def _told(self, body: list[int], answer: Instructed) -> str:
        """The whole turn as text: its thought as tokens say it, its answer as the JSON that it is."""
        end = body.index(self.engine.renderer.think_end_id())
        return MODES["think"] + decoded(self.engine, body[: end + 1]) + "\n\n" + answer.text
