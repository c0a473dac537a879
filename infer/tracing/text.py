"""A trace as text for a terminal: one section per step of the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from data.cards import shown_title

ROLLED = 12  # interactions, raw lines and prompt ids shown before the rest is only counted
SHOWN_METRICS = ("hr@1", "hr@5", "hr@10", "hr@50", "ndcg@10", "ndcg@50", "mrr@50")


def as_text(facts: dict[str, Any], *, show: int) -> str:
    """The whole trace; `show` beams per level and places of the list."""
    sections = [
        (_title(facts), []),
        ("Raw lines", _raw(facts["raw"])),
        ("The user", _user(facts)),
        ("Items and semantic IDs", _items(facts["items"])),
        ("Prompt", _prompt(facts["prompt"])),
        (_search_title(facts), _search(facts, show)),
        ("The list", _list(facts, show)),
        ("What it counts for", _result(facts["result"])),
        ("Beside the stored list", _stored(facts["stored"])),
    ]
    lines: list[str] = []
    for name, body in sections:
        body = list(body)
        if body or not lines:
            lines += ([""] if lines else []) + [name, "-" * len(name), *body]
    return "\n".join(lines)


def _title(facts: dict[str, Any]) -> str:
    row = facts["example"]
    return f"Example {row['example_id']}: split {row['split']}, user {row['user_id']}, {len(row['history'])} items of history"


def _raw(raw: dict[str, Any] | None) -> Iterator[str]:
    if raw is None:
        return
    yield f"{len(raw['user'])} lines of the user"
    for line in raw["user"][-ROLLED:]:
        became = f"  -> {line['became']}" if line["became"] else ""
        yield f"  {line['file']}:{line['line']}{became}"
        yield f"      {line['text']}"
    yield from _rest(raw["user"])
    yield f"{len(raw['items'])} lines of the items"
    for line in raw["items"][-ROLLED:]:
        yield f"  {line['file']}:{line['line']}  {line['key']}"
        yield f"      {line['text']}"
    yield from _rest(raw["items"])


def _rest(lines: Sequence[Any]) -> Iterator[str]:
    if len(lines) > ROLLED:
        yield f"  ... and {len(lines) - ROLLED} before these"


def _user(facts: dict[str, Any]) -> Iterator[str]:
    row, walk = facts["example"], facts["interactions"]
    raw_id = f" (raw id {row['user_raw_id']})" if row["user_raw_id"] else ""
    yield f"user {row['user_id']}{raw_id}, {len(walk)} interactions"
    for step in walk[-ROLLED:] if len(walk) <= ROLLED else _around(walk):
        part = {"history": "in the history", "target": "THE TARGET"}.get(step["part"], step["part"])
        yield f"  {step['order']:>4}  {step['date']:<16}  item {step['item_id']:<7} {step.get('split') or '':<8}{part}".rstrip()
    if len(walk) > ROLLED:
        yield f"  ... {len(walk) - len(_around(walk))} others"
    if not any(step["part"] == "target" for step in walk):
        yield "  none of them has this history before it: the row was shipped with the data and is kept as it is"
    yield f"why {row['split']}: {facts['split_reason']}"


def _around(walk: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps of a long walk that the row is about, or its last ones."""
    return [step for step in walk if step["part"] in ("history", "target")] or walk[-ROLLED:]


def _items(items: Iterable[dict[str, Any]]) -> Iterator[str]:
    for item in items:
        mark = "-> " if item["part"] == "target" else "   "
        shared = len(item["items_of_sid"]) - 1
        yield f"{mark}{item['sid']}  item {item['item_id']} ({item['raw_id']})  {shown_title(item['title'], item['item_id'])}"
        beside = [
            " › ".join(item["categories"]),
            item["brand"],
            f"shares its semantic ID with {shared}" if shared else "",
        ]
        if any(beside):
            yield f"       {', '.join(part for part in beside if part)}"


def _prompt(prompt: dict[str, Any]) -> Iterator[str]:
    yield f"wording {prompt['wording']}, {len(prompt['ids'])} tokens" + (
        f" ({prompt['tokens_cut']} of the oldest items were cut)" if prompt["tokens_cut"] else ""
    )
    yield from (f"  | {line}" for line in prompt["text"].splitlines())
    yield f"  ids     {' '.join(map(str, prompt['ids']))}"
    yield f"  answer  {' '.join(map(str, prompt['answer_ids']))}  {prompt['answer_text']}"
    same = "the same ids" if prompt["served_alike"] else "OTHER IDS: evaluation and serving differ"
    yield f"  rendered from the item ids alone, as serving does: {same}"


def _search_title(facts: dict[str, Any]) -> str:
    decode = facts["decode"]
    return f"Search: {decode['beams']} beams, score space {decode['score_space']}"


def _search(facts: dict[str, Any], show: int) -> Iterator[str]:
    search, titles = facts["search"], _titles(facts)
    depth, lost = len(search["levels"]), False
    for at, (level, target) in enumerate(zip(search["levels"], search["target"], strict=True)):
        beams = level["beams"]
        yield f"level {target['level']}: {len(beams)} of {level['prefixes']} prefixes kept"
        for beam in beams[:show]:
            item = f"  {titles[beam['rank'] - 1]}" if at + 1 == depth else ""
            hit = "  <- the target" if beam["path"][-1]["node"] == target["node"] else ""
            yield f"  {beam['rank']:>4}  {beam['score']:>9.4f}  {_way(beam['path'])}{item}{hit}"
        yield f"  {_standing(target, lost)}"
        lost |= target["rank"] is None


def _way(path: Sequence[dict[str, Any]]) -> str:
    """`a_13 (-0.51, 64 legal, node 13) > ...`: what the step adds to the score, codes that could stand there, the node."""
    steps = []
    for step in path:
        score = "" if step["score"] is None else f"{step['score']:.2f}, "
        steps.append(f"{step['level']}_{step['code']} ({score}{step['choices']} legal, node {step['node']})")
    return " > ".join(steps)


def _standing(target: dict[str, Any], lost: bool) -> str:
    below = f"{target['items']} item{'' if target['items'] == 1 else 's'} below"
    name = f"the target's {target['level']}_{target['code']} ({target['choices']} legal, node {target['node']}, {below})"
    score = "score unknown" if target["score"] is None else f"score {target['score']:.4f}"
    if target["rank"] is not None:
        return f"{name}: place {target['rank']}, {score}"
    last = f"the last beam has {target['last_beam_score']:.4f}"
    return f"{name}: {'was lost before' if lost else 'LOST HERE'}, {score}, {last}"


def _titles(facts: dict[str, Any]) -> list[str]:
    return [
        " / ".join(shown_title(item["title"], item["item_id"]) for item in place["items"])
        for place in facts["list"]
    ]


def _list(facts: dict[str, Any], show: int) -> Iterator[str]:
    titles, target = _titles(facts), None
    for at, place in enumerate(facts["list"]):
        if at >= show and not place["target"]:
            continue
        marks = [
            word for word, on in (("the target", place["target"]), ("in the history", place["seen"])) if on
        ]
        ids = ", ".join(str(item["item_id"]) for item in place["items"])
        yield f"  {place['rank']:>4.0f}  item {ids}  {titles[at]}" + (
            f"  <- {', '.join(marks)}" if marks else ""
        )
        target = place if place["target"] else target
    item = facts["items"][-1]
    if target is None:
        title = shown_title(item["title"], item["item_id"])
        yield f"  the target, item {item['item_id']} ({title}), is not among the {len(facts['list'])}"


def _result(result: dict[str, Any]) -> Iterator[str]:
    if result["rank"] is None:
        yield "the target was not recommended: every metric gets 0 from this row"
    else:
        group = f", one of {result['group']} items of that place" if result["group"] > 1 else ""
        yield f"the target has rank {result['rank']:g}, {result['items_before']:g} items before it{group}"
    levels = dict.fromkeys(name.split("/")[0] for name in result["metrics"])
    for level in levels:
        values = [
            f"{name} {result['metrics'][f'{level}/{name}']:.4f}"
            for name in SHOWN_METRICS
            if f"{level}/{name}" in result["metrics"]
        ]
        yield f"  {level:<18} {'  '.join(values)}"
    if "item_level_unseen" not in levels:
        yield "  item_level_unseen  does not count this row: its target is in its history, or the list got too short"


def _stored(stored: dict[str, Any] | None) -> Iterator[str]:
    if stored is None:
        return
    yield stored["verdict"]
    rank = "not in the list" if stored["rank"] is None else f"rank {stored['rank']:g}"
    yield f"the target's place there: {rank}"
