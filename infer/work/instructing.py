"""Terms and an instruction for every history: a thought where asked for, a TID of the catalogue, free text behind it.

    found = instruct(engine, trie, examples, settings)       # a table of data.artifacts.INSTRUCTIONS

Constrained, an answer is valid JSON by construction: its TID is one of the trie, its text a JSON string that is closed by force
where it grows too long (status `cut`). Several thoughts of a row count together: the TID with the best score over all of them is
taken, and the instruction is written behind the thought under which it scores best. Without constraints the model writes the
whole answer behind its fixed first words; what does not parse is repaired as far as its fields can be found, and says so.

Legend: N rows, E entries (one per thought).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from configs.program import NumericError
from data import artifacts
from data.answers import BETWEEN, HEAD, INSTRUCTION_TASK, TEXT_END, listed, read_answer
from data.renderer import THINK_END, THINK_START
from infer.engine import Engine
from infer.text.generate import TextSettings, generate_ids
from infer.text.json_strings import JsonString, write_strings
from infer.text.thinking import Thought, answer_prompts
from infer.text.tids import DecodedTid, TidTrie, decode_tids
from infer.work.decoding import keep_room, prompts_of

SCHEMA = pa.schema(list((artifacts.INSTRUCTIONS.required | artifacts.INSTRUCTIONS.optional).items()))


@dataclass(frozen=True)
class Instructed:
    """The answer to one row. entry: which thought it stands behind; text: the whole answer as JSON, or as it came; tid and written:
    its tokens, where it was constrained."""

    terms: tuple[str, ...]
    instruction: str
    status: str
    entry: int
    text: str
    item_ids: tuple[int, ...] = ()
    score: float | None = None
    tid: DecodedTid | None = None
    written: JsonString | None = None


def instruct(
    engine: Engine, trie: TidTrie, examples: pa.Table, *, text: TextSettings, beams: int, constrained: bool
) -> pa.Table:
    """A row per example, in their order."""
    prompts, ids = prompts_of(engine, examples), examples["example_id"].to_pylist()
    thoughts: list[list[Thought]] = [[] for _ in prompts]
    extended, row_E = [list(prompt) for prompt in prompts], np.arange(len(prompts))
    if engine.mode == "think":
        thoughts = engine.writer.write(prompts, ids)
        extended, row_E = answer_prompts(prompts, thoughts, engine.renderer, task=INSTRUCTION_TASK)
    entries = [np.flatnonzero(row_E == row).tolist() for row in range(len(prompts))]
    if constrained:
        found = constrained_answers(engine, trie, extended, entries, ids, text=text, beams=beams)
    else:
        found = _free(engine, trie, extended, entries, ids, text=text)
    return _table(engine, examples, found, [thought for row in thoughts for thought in row], constrained)


def constrained_answers(
    engine: Engine,
    trie: TidTrie,
    prompts: Sequence[Sequence[int]],
    entries: Sequence[Sequence[int]],
    keys: Sequence[int],
    *,
    text: TextSettings,
    beams: int,
    drawn: int | None = None,
) -> list[Instructed]:
    """An answer per row, behind one of the prompts [E] whose numbers `entries` names for it; keys: an integer per row.

    drawn: a seed, with which and the keys one TID is drawn behind every prompt, instead of the best of `beams`; a row has one prompt
    then.
    """
    settings, tokenizer = engine.settings, engine.renderer.tokenizer
    how = {"beams": beams} if drawn is None else {"samples": 1, "seed": drawn, "keys": keys}
    tids_E = decode_tids(engine.model, prompts, trie, batch_size=settings.batch_size, **how)
    chosen = [best_tid([tids_E[entry] for entry in row], how=engine.think.aggregate) for row in entries]
    placed = [(row[place], tid) for row, (place, tid, _) in zip(entries, chosen, strict=True)]
    behind = [[*prompts[entry], *tid.ids] for entry, tid in placed]
    sid_ids = {token for level in engine.renderer.vocab.levels for token in level.token_ids.tolist()}
    words = tokenizer.get_vocab()
    markers = {words[marker] for marker in (THINK_START, THINK_END) if marker in words}
    banned = frozenset(
        sid_ids | markers | {*engine.renderer.vocab.prefix_ids, *engine.renderer.vocab.suffix_ids}
    )
    written = write_strings(engine.model, tokenizer, behind, text, banned_ids=banned, keys=keys)
    made = []
    for (entry, tid), (_, _, score), (one,) in zip(placed, chosen, written, strict=True):
        answer = HEAD + listed(tid.terms) + BETWEEN + one.raw + TEXT_END
        read = read_answer(INSTRUCTION_TASK, answer)
        if read.how != "strict" or read.terms != tid.terms:
            raise NumericError(f"constrained answer {answer[:80]!r} is not valid JSON -> a decoding bug")
        status = "ok" if one.finished else "cut"
        made.append(Instructed(tid.terms, one.text, status, entry, answer, tid.item_ids, score, tid, one))
    return made


def best_tid(found: Sequence[Sequence[DecodedTid]], *, how: str) -> tuple[int, DecodedTid, float]:
    """(the thought under which it scores best, the TID, its score) of what was found under T thoughts of one row.

    `logsumexp` scores a TID by log(mean of its probabilities over the thoughts), `max` by the best of them: .5 and .25 make
    log .375 or log .5. What a thought's beams do not hold counts as probability 0 there. Ties go to the smaller terms.
    """
    scores: dict[tuple[str, ...], list[tuple[float, int, DecodedTid]]] = {}
    for place, row in enumerate(found):
        for tid in row:
            scores.setdefault(tid.terms, []).append((tid.score, -place, tid))

    def total(terms: tuple[str, ...]) -> float:
        own = [score for score, _, _ in scores[terms]]
        return max(own) if how == "max" else float(np.logaddexp.reduce(own) - np.log(len(found)))

    terms = min(scores, key=lambda one: (-total(one), one))
    _, place, tid = max(scores[terms], key=lambda one: one[:2])
    return -place, tid, total(terms)


def _free(
    engine: Engine,
    trie: TidTrie,
    prompts: Sequence[Sequence[int]],
    entries: Sequence[Sequence[int]],
    keys: Sequence[int],
    *,
    text: TextSettings,
) -> list[Instructed]:
    """The first strict answer over the thoughts of a row, else the first that could be repaired, else the first."""
    renderer, items = engine.renderer, dict(zip(trie.terms, trie.items, strict=True))
    key_E = [key for key, row in zip(keys, entries, strict=True) for _ in row]
    made: list[Instructed | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda entry: -len(prompts[entry]))
    for start in range(0, len(order), text.batch_size):
        batch = order[start : start + text.batch_size]
        texts = generate_ids(
            engine.model, [prompts[entry] for entry in batch], text, stop_ids=renderer.terminator_ids(),
            keys=[key_E[entry] for entry in batch],
        )  # fmt: skip
        for entry, (one,) in zip(batch, texts, strict=True):
            said = renderer.tokenizer.decode(
                list(one.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            read = read_answer(INSTRUCTION_TASK, HEAD + said)
            status = {"strict": "ok"}.get(read.how, read.how)
            made[entry] = Instructed(
                read.terms, read.text or "", status, entry, HEAD + said, items.get(read.terms, ())
            )
    rank = {"ok": 0, "repaired": 1, "unreadable": 2}
    return [min((made[entry] for entry in row), key=lambda one: rank[one.status]) for row in entries]


def _table(
    engine: Engine,
    examples: pa.Table,
    found: Sequence[Instructed],
    thoughts_E: Sequence[Thought],
    constrained: bool,
) -> pa.Table:
    decode = engine.renderer.tokenizer.decode
    thought_N = [thoughts_E[one.entry] if thoughts_E else None for one in found]
    columns = {
        "example_id": examples["example_id"],
        "user_id": examples["user_id"] if "user_id" in examples.column_names else [None] * len(found),
        "target_item": [target[0] for target in examples["target"].to_pylist()],
        "terms": [list(one.terms) for one in found],
        "instruction": [one.instruction for one in found],
        "thought": [
            "" if one is None else decode(list(one.ids), clean_up_tokenization_spaces=False).strip()
            for one in thought_N
        ],
        "constrained": [constrained] * len(found),
        "status": [one.status for one in found],
        "item_ids": [list(one.item_ids) for one in found],
        "score": [one.score for one in found],
        "forced_close": [one is not None and not one.finished for one in thought_N],
        "answer": [one.text for one in found],
    }
    arrays = [
        column.combine_chunks() if isinstance(column, pa.ChunkedArray) else pa.array(column, field.type)
        for field, column in ((field, columns[field.name]) for field in SCHEMA)
    ]
    return pa.table(arrays, schema=SCHEMA)


def make_room(engine: Engine, trie: TidTrie, *, longest_text: int, chosen: int | None) -> None:
    """Bound the prompts so that thought, TID and instruction have room in the model's context.

    InputError where nothing is left, or where the bound that the user has `chosen` leaves too little.
    """
    thought = 0
    if engine.mode == "think":
        close = engine.renderer.close_thought(INSTRUCTION_TASK, finished=False)
        thought = engine.think.max_tokens + len(close)
    keep_room(
        engine,
        thought + trie.longest + longest_text,
        chosen=chosen,
        told=f"a thought takes up to {thought}, a TID {trie.longest}, an instruction {longest_text}",
        smaller="smaller text.max_new_tokens and think.max_tokens",
    )
