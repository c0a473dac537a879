"""Conversations and instructions of others as examples: Alpaca, ShareGPT, chat messages, MIMIGenRec's sft and rl records.

A registry file names them, as LLaMA-Factory's dataset_info.json does; files stand beside it:

    {"general": {"file_name": "chats.jsonl", "formatting": "sharegpt", "columns": {"messages": "conversations"}},
     "shop": {"file_name": "sft/train.json", "columns": {"prompt": "instruction", "query": "input", "response": "output"}}}

Messages may be text that prints a list, and a content a list of parts, as in SIDReasoner's general/sampled_data.arrow, which is JSON
lines whatever its name says: {"file_name": "general/sampled_data.arrow", "formatting": "sharegpt", "columns": {"messages": "messages"}}.

The last reply is what is learned; a leading <think> block of it becomes the example's reasoning. A reply that is one semantic
ID is an example of history_to_sid (semantic IDs in the question), titles_to_sid or title_to_sid; all others are `chat`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.program import InputError
from data.releases.text import printed_list, read_json, read_text
from data.store.json_text import json_lines
from data.tasks import Answer, Example, TaskContext, example_id

ALPACA = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "system": "system",
    "history": "history",
}
SHAREGPT = {"messages": "conversations", "system": "system"}
TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt", "system_tag": "system",
}  # fmt: skip
MESSAGES = {
    "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
    "system_tag": "system",
}  # fmt: skip
ABILITIES = {"seq_title2sid": "titles_to_sid", "title_desc2sid": "title_to_sid"}
THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*(.*)", re.DOTALL)
MARKER = re.compile(r"<\|[^<>]*\|>")


@dataclass(frozen=True)
class Corpus:
    """One entry of a registry: its file and how a record is read."""

    name: str
    path: Path
    formatting: str
    columns: dict[str, str]
    tags: dict[str, str]


@dataclass
class Converted:
    """The examples of all corpora and how many records were skipped by reason."""

    examples: list[Example] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def read_registry(path: str | Path, names: list[str]) -> list[Corpus]:
    """The entries `names` of a registry; InputError for an unknown name, a missing file or an unknown formatting."""
    registry = read_json(path)
    if not isinstance(registry, dict):
        raise InputError(f"{path} is no registry of corpora -> an object with an entry per name")
    found = []
    for name in names:
        if name not in registry:
            raise InputError(f"{path} has no corpus {name!r} -> one of {', '.join(map(str, registry))}")
        entry = registry[name]
        if not isinstance(entry, dict):
            raise InputError(f"{path}: {name} is no object -> give it file_name and formatting")
        formatting = entry.get("formatting", "alpaca")
        if formatting not in ("alpaca", "sharegpt") or "file_name" not in entry:
            raise InputError(
                f"{path}: {name} needs file_name, and formatting alpaca or sharegpt -> correct it"
            )
        default = ALPACA if formatting == "alpaca" else SHAREGPT
        columns, tags = default | entry.get("columns", {}), TAGS | entry.get("tags", {})
        file = _file_of(Path(path).parent / str(entry["file_name"]))
        if file is None:
            shown = str(entry["file_name"])[:200]
            raise InputError(f"missing file: {shown} of corpus {name} -> correct file_name in {path}")
        found.append(Corpus(name, file, formatting, columns, tags))
    return found


def _file_of(file: Path) -> Path | None:
    """The file, or it with .gz; None where neither is there, or can be, as with a name that is too long."""
    try:
        return next((one for one in (file, Path(f"{file}.gz")) if one.is_file()), None)
    except OSError:
        return None


def read_records(path: str | Path) -> Iterator[Any]:
    """The records of a JSON list or of JSON lines, plain or gzipped."""
    if not any(ending in Path(path).name for ending in (".jsonl", ".ndjson", ".arrow")):
        records = read_json(path)
        if not isinstance(records, list):
            raise InputError(f"{path} is no list of records -> a JSON list, or .jsonl with one a line")
        yield from records
        return
    for _, record in json_lines(read_text(path), path):
        yield record


def convert(corpora: list[Corpus], context: TaskContext, held_out: Set[tuple[int, ...]]) -> Converted:
    """The examples of every record, in order; InputError naming file and record where one has another structure.

    held_out: keys (preprocess.examples.rows.row_keys) of valid and test rows: a record that is one of them is left out.
    """
    made = Converted()
    for corpus in corpora:
        for number, record in enumerate(read_records(corpus.path)):
            try:
                turns, ability = _turns(record, corpus)
            except (KeyError, TypeError, IndexError, AttributeError):
                raise InputError(
                    f"{corpus.path}: record {number} is no {corpus.formatting} record of {corpus.name} -> give its columns "
                    "and tags in the registry"
                ) from None
            key = example_id("chat", len(made.examples))
            example = _example(turns, ability, context, key)
            if not isinstance(example, str) and example.history:
                items = [*example.history, *example.target]
                if tuple(context.sids.sid_of_item_N[items].tolist()) in held_out:
                    example = "held_out_row"
            if isinstance(example, str):
                made.skipped[example] += 1
            else:
                made.examples.append(example)
    return made


def _turns(record: dict[str, Any], corpus: Corpus) -> tuple[list[dict[str, str]], str]:
    """(messages, the last of which is the reply; the record's own name of its task)."""
    if "reward_model" in record:
        reply = {"role": "assistant", "content": record["reward_model"]["ground_truth"]}
        return [*record["prompt"], reply], record.get("ability", "")
    names = corpus.columns
    system = record.get(names["system"]) or ""
    turns = [{"role": "system", "content": system}] if system else []
    if corpus.formatting == "alpaca":
        question = "\n".join(part for part in (record[names["prompt"]], record.get(names["query"])) if part)
        pairs = [*(record.get(names["history"]) or []), (question, record[names["response"]])]
        for asked, replied in pairs:
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": replied}]
        return turns, ""
    told = record[names["messages"]]
    if isinstance(told, str):
        told = printed_list(told)
        if told is None:
            raise TypeError("no printed list")
    tags = MESSAGES if told and MESSAGES["role_tag"] in told[0] else corpus.tags
    roles = {tags[f"{role}_tag"]: role for role in ("user", "assistant", "system")}
    turns += [
        {"role": roles.get(turn[tags["role_tag"]], ""), "content": _content(turn[tags["content_tag"]])}
        for turn in told
    ]
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    return turns, ""


def _content(content: Any) -> str:
    """The text of a message, which may come in parts."""
    return (
        content if isinstance(content, str) else "".join(part["text"] for part in content if "text" in part)
    )


def _example(turns: list[dict[str, str]], ability: str, context: TaskContext, key: int) -> Example | str:
    """The example of a conversation, or why there is none."""
    roles = [turn["role"] for turn in turns if turn["role"] != "system"]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        return "turns_not_alternating"
    *asked, reply = turns
    text, reasoning = reply["content"].strip(), None
    if text.startswith("<think>"):
        thought = THOUGHT.fullmatch(text)
        if thought is None:
            return "unclosed_thought"
        reasoning, text = thought[1].strip() or None, thought[2].strip()
    if not text:
        return "empty_answer"
    levels = context.sids.num_levels
    whole = context.fmt.pattern(levels)
    if any(MARKER.search(whole.sub("", turn["content"])) for turn in turns):
        return "reserved_marker"
    codes = context.fmt.parse(text, num_levels=levels)
    if codes is None:
        return Example(key, "chat", tuple(asked), Answer(text=text, reasoning=reasoning))
    history = context.fmt.find(asked[-1]["content"], num_levels=levels)
    items = [context.sids.items_of(sid) for sid in [*history, codes]]
    if not all(len(found) for found in items):
        return "unknown_sid"
    *before, target = (int(found[0]) for found in items)
    task = "history_to_sid" if before else ABILITIES.get(ability, "title_to_sid")
    answer = context.sid_answer(target, reasoning=reasoning)
    return Example(
        key, "reason_then_sid" if reasoning else task, tuple(asked), answer, tuple(before), (target,)
    )
