"""All metrics of 50,000 lists of 50 semantic IDs against a loop over rows.

python -m tests.bench.metrics            # 50k rows, two or three minutes
python -m tests.bench.metrics --quick    # 5k

Ours is `infer.metrics.measure.measure` on arrays as `read_predictions` gives them: legality of every prediction, all levels (item,
SID, unseen, merged, dedup, prefixes), groups, coverage, Gini, novelty, popularity, diversity. The reference computes the
same numbers row by row with lists, sets and dictionaries, from Python objects that are made outside its time, and leaves a
row's list as soon as it knows enough. Intervals are no part of the ratio (the loop has none); their cost is among the
values. Both run interleaved, best of --repeats; every number must be equal to 1e-6. The last line is one JSON object.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from data.predictions import Predictions
from data.rows import Rows
from data.sid import SidTable
from infer.metrics.groups import HISTORY_BUCKETS, popularity_tiers
from infer.metrics.measure import KS, LIST_K, Settings, measure
from tests.bench import frame

BEAMS, CODES, ITEMS = 50, 256, 20_000


@dataclass(frozen=True)
class Case:
    """What ours gets, and the same as Python objects for the loop."""

    predictions: Predictions
    rows: Rows
    sids: SidTable
    popularity_N: np.ndarray
    product_N: np.ndarray
    objects: dict[str, Any]


def make_case(num_rows: int, seed: int = 0) -> Case:
    """Random lists in which a fifth of the targets is found; 5 % of the items collide, 1 % share their text."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, CODES, (ITEMS, 3)).astype(np.int32)
    codes[rng.integers(0, ITEMS, ITEMS // 40)] = codes[rng.integers(0, ITEMS, ITEMS // 40)]
    sids = SidTable(codes, (CODES,) * 3)
    num_sids = len(sids.sids_SL)
    start, step = rng.integers(0, num_sids, num_rows), rng.integers(1, num_sids // BEAMS, num_rows)
    sid_E = ((start[:, None] + step[:, None] * np.arange(BEAMS)) % num_sids).reshape(-1)
    by_sid = [sids.items_of_sid(sid) for sid in range(num_sids)]
    item_offsets = np.concatenate([[0], np.cumsum(sids.group_sizes_S[sid_E])])
    items_M = np.concatenate([by_sid[sid] for sid in sid_E])
    target = rng.integers(0, ITEMS, num_rows).astype(np.int32)
    hits, place = rng.random(num_rows) < 0.2, rng.integers(0, BEAMS, num_rows)
    target[hits] = items_M[item_offsets[:-1].reshape(num_rows, BEAMS)[np.arange(num_rows), place]][hits]
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 11, num_rows))])
    history = rng.integers(0, ITEMS, offsets[-1]).astype(np.int32)
    # Some histories hold the target, and some an item that is predicted.
    history[offsets[:-1][rng.random(num_rows) < 0.03]] = target[rng.random(num_rows) < 0.03][0]
    seen = np.flatnonzero(rng.random(num_rows) < 0.1)
    history[offsets[seen]] = items_M[item_offsets[seen * BEAMS + 3]]
    rank = np.tile(np.arange(1.0, BEAMS + 1), num_rows)
    score = -rank.astype(np.float32)
    ends = np.arange(num_rows + 1) * BEAMS
    predictions = Predictions(
        np.arange(num_rows), ends, rank, score, item_offsets, items_M, sids.sids_SL[sid_E]
    )
    users = rng.integers(0, max(1, num_rows * 9 // 10), num_rows)
    rows = Rows(np.arange(num_rows), users, offsets, history, target)
    product = np.arange(ITEMS)
    product[: ITEMS // 100] = product[ITEMS // 100 : ITEMS // 50]
    popularity = rng.zipf(1.5, ITEMS) % 500
    objects = {
        "lists": [
            [(tuple(sids.sids_SL[sid].tolist()), by_sid[sid].tolist()) for sid in row]
            for row in sid_E.reshape(num_rows, BEAMS).tolist()
        ],
        "histories": [part.tolist() for part in np.split(history, offsets[1:-1])],
        "targets": target.tolist(),
        "users": users.tolist(),
        "codes": [tuple(row) for row in sids.codes_NL.tolist()],
        "products": product.tolist(),
        "popularity": popularity.tolist(),
        "tiers": popularity_tiers(popularity).tolist(),
    }
    shortest = min(
        sum(item not in history for _, items in ranked for item in items)
        for ranked, history in zip(objects["lists"], objects["histories"], strict=True)
    )
    objects["unseen_ks"] = tuple(k for k in KS if k <= shortest)
    return Case(predictions, rows, sids, popularity, product, objects)


@cache
def gains(before: int | None, group: int, ks: tuple[int, ...] = KS) -> tuple[tuple[str, float], ...]:
    """Every metric of one row; a group of items stands at `before` ... `before + group - 1` with equal chances."""
    places = range(before, before + group) if before is not None else ()
    values = []
    for k in ks:
        inside = [place for place in places if place < k]
        values.append((f"hr@{k}", len(inside) / group))
        values.append((f"ndcg@{k}", sum(1 / math.log2(place + 2) for place in inside) / group))
    values.append((f"mrr@{max(ks)}", sum(1 / (place + 1) for place in places if place < max(ks)) / group))
    return tuple(values)


class Sums:
    """Weighted sums of named values."""

    def __init__(self) -> None:
        self.value: dict[str, float] = defaultdict(float)
        self.weight: dict[str, float] = defaultdict(float)

    def add(self, name: str, value: float, weight: float = 1.0) -> None:
        self.value[name] += value * weight
        self.weight[name] += weight

    def means(self) -> dict[str, float]:
        return {name: self.value[name] / self.weight[name] for name in self.value if self.weight[name]}


def find(groups: list[list[int]], target: int) -> tuple[int | None, int]:
    """(items ahead of the target's group, size of that group); (None, 1) where it is in none."""
    before = 0
    for members in groups:
        if target in members:
            return before, len(members)
        before += len(members)
    return None, 1


def row_groups(target: int, history: list[int], popularity: list[int], tiers: list[int]) -> list[str]:
    """The groups that a row belongs to."""
    length = len(history)
    bucket = next(
        f"history={low}-{high}" if high else f"history={low}+"
        for low, high in HISTORY_BUCKETS
        if low <= length <= (high or length)
    )
    return [
        "target=cold" if popularity[target] == 0 else "target=warm",
        f"popularity={('head', 'torso', 'tail')[tiers[target]]}",
        bucket,
        "repeat=yes" if target in history else "repeat=no",
    ]


def loop(objects: dict[str, Any]) -> dict[str, float]:
    """The flat metrics without intervals, row by row."""
    sums, exposure, codes, products = Sums(), [0.0] * ITEMS, objects["codes"], objects["products"]
    popularity = objects["popularity"]
    surprise = (
        [-math.log2((count + 1) / (sum(popularity) + ITEMS)) for count in popularity] if popularity else []
    )
    times = Counter(zip(objects["users"], (products[item] for item in objects["targets"]), strict=True))
    by_sid: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for item, sid in enumerate(codes):
        by_sid[sid].append(item)
    columns = (objects["lists"], objects["histories"], objects["targets"], objects["users"])
    for ranked, history, target, user in zip(*columns, strict=True):
        for sid, items in ranked:
            if by_sid.get(sid) != items:
                raise ValueError(f"{sid} is not in the catalogue")
        lists = [items for _, items in ranked]
        named = row_groups(target, history, popularity, objects["tiers"])
        position = next((at for at, (sid, _) in enumerate(ranked) if sid == codes[target]), None)
        for level, place in (("item_level", find(lists, target)), ("sid_level", (position, 1))):
            for name, value in gains(*place):
                sums.add(f"{level}/{name}", value)
                for group in named:
                    sums.add(f"{level}/{group}/{name}", value)
        loop_unseen(sums, lists, set(history), target, objects["unseen_ks"])
        loop_products(sums, lists, products, target, 1 / times[user, products[target]])
        loop_prefixes(sums, ranked, codes[target])
        loop_list(sums, ranked, history, popularity, surprise, exposure)
    means = sums.means()
    means[f"all/coverage@{LIST_K}"] = sum(value > 0 for value in exposure) / ITEMS
    ordered, total = sorted(exposure), sum(exposure)
    weighted = sum((2 * at - ITEMS - 1) * value for at, value in enumerate(ordered, start=1))
    means[f"all/gini@{LIST_K}"] = weighted / (ITEMS * total)
    return means | {"all/invalid_rate": 0.0}


def loop_unseen(
    sums: Sums, lists: list[list[int]], history: set[int], target: int, ks: tuple[int, ...]
) -> None:
    """Item level without the history; ks: the list lengths that every list still has."""
    if target not in history:
        left = [[item for item in items if item not in history] for items in lists]
        for name, value in gains(*find(left, target), ks):
            sums.add(f"item_level_unseen/{name}", value)


def loop_products(
    sums: Sums, lists: list[list[int]], products: list[int], target: int, weight: float
) -> None:
    """Item level with items of the same text merged; the second level counts a user's product once."""
    shown: set[int] = set()
    fresh = []
    for items in lists:
        new = {products[item] for item in items} - shown
        fresh.append(list(new))
        shown |= new
        if products[target] in new:
            break
    for name, value in gains(*find(fresh, products[target])):
        sums.add(f"item_level_merged/{name}", value)
        sums.add(f"item_level_dedup/{name}", value, weight)


def loop_prefixes(
    sums: Sums, ranked: list[tuple[tuple[int, ...], list[int]]], wanted: tuple[int, ...]
) -> None:
    """The first prefix and the first code that is the target's."""
    for level in range(1, len(wanted) + 1):
        prefix = next((at for at, (sid, _) in enumerate(ranked) if sid[:level] == wanted[:level]), None)
        code = next((at for at, (sid, _) in enumerate(ranked) if sid[level - 1] == wanted[level - 1]), None)
        for kind, place in (("prefix", prefix), ("position", code)):
            for name, value in gains(place, 1):
                sums.add(f"prefix_level/{kind}={level}/{name}", value)


def loop_list(
    sums: Sums,
    ranked: list[tuple[tuple[int, ...], list[int]]],
    history: list[int],
    popularity: list[int],
    surprise: list[float],
    exposure: list[float],
) -> None:
    """What the first ten places show: novelty, popularity, diversity, exposure of the items."""
    before, shown, novelty, popular = 0, 0.0, 0.0, 0.0
    for _, items in ranked[:LIST_K]:
        share = min(max((LIST_K - before) / len(items), 0.0), 1.0)
        for item in items:
            exposure[item] += share
            shown += share
            novelty += share * surprise[item]
            popular += share * popularity[item]
        before += len(items)
    sums.add(f"all/novelty@{LIST_K}", novelty / shown, shown)
    sums.add(f"all/popularity@{LIST_K}", popular / shown, shown)
    usual = sum(popularity[item] for item in history) / len(history)
    sums.value[f"all/popularity_lift@{LIST_K}"] += popular / shown
    sums.weight[f"all/popularity_lift@{LIST_K}"] += usual
    for levels in (1, 2):
        distinct = len({sid[:levels] for sid, _ in ranked[:LIST_K]})
        sums.add(f"all/diversity_{levels}@{LIST_K}", distinct / len(ranked[:LIST_K]))


def ours(case: Case, resamples: int = 0) -> dict[str, float]:
    """The flat metrics as infer.evaluate computes them."""
    # A new object: nothing that an earlier repeat cached.
    measured = measure(
        replace(case.predictions),
        replace(case.rows),
        popularity_N=case.popularity_N,
        sids=SidTable(case.sids.codes_NL, case.sids.sizes),
        settings=Settings(resamples=resamples),
        product_N=case.product_N,
        where="bench",
    )
    return {name: metric["value"] for name, metric in measured.metrics.items()}


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """(seconds, result)."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def same(mine: dict[str, float], theirs: dict[str, float]) -> bool:
    """Every number of either is in both, equal to 1e-6 (ours are rounded to that)."""
    wrong = mine.keys() ^ theirs.keys()
    wrong |= {name for name in mine.keys() & theirs.keys() if abs(mine[name] - theirs[name]) > 1.5e-6}
    for name in sorted(wrong)[:5]:
        print(f"differs: {name}: ours {mine.get(name)}, loop {theirs.get(name)}")
    return not wrong


def main() -> None:
    args = frame.flags(__doc__, quick="5k instead of 50k rows", repeats=2).parse_args()
    num_rows = 5_000 if args.quick else 50_000
    case = make_case(num_rows)
    mine, theirs, intervals, equal = [], [], [], True
    for repeat in range(args.repeats):
        seconds, values = timed(ours, case)
        mine.append(seconds)
        seconds, expected = timed(loop, case.objects)
        theirs.append(seconds)
        intervals.append(timed(ours, case, 1000)[0])
        equal &= same(values, expected)
        print(
            f"repeat {repeat}: reference {theirs[-1]:.2f} s, ours {mine[-1]:.3f} s, with intervals {intervals[-1]:.2f} s"
        )
    result = {
        "bench": "metrics",
        "same": equal,
        "ratios": {"metrics": round(min(theirs) / min(mine), 2)},
        "values": {
            "rows_per_s": round(num_rows / min(mine)),
            "metrics": len(values),
            "seconds_with_1000_resamples": round(min(intervals), 3),
        },
        "threads": min(2, os.cpu_count() or 1),
        "device": "cpu",
    }
    frame.finish(result)


if __name__ == "__main__":
    main()
