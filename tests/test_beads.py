"""The store whose next item follows from a rule: the rule holds, thoughts say it, and test pairs are new."""

from __future__ import annotations

import re

import numpy as np
import pyarrow.parquet as pq

from data.generator.rules import CLOCK, COLOURS, follower, make_beads
from data.store.fingerprints import sha256_bytes
from tests.handmade import call, refuse
from tests.test_releases import PUBLISHED


def test_the_rule_by_hand_and_for_every_walk():
    beads = make_beads(50, seed=3)
    at = {beads.title(bead): bead for bead in range(96)}
    assert len(at) == 96 and len(np.unique(beads.codes_NL, axis=0)) == 96
    first, second = at["Red bead 7"], at["Blue bead 8"]
    assert beads.title(int(follower(beads, np.array([first]), np.array([second]))[0])) == "Red bead 3"
    assert beads.thought(first, second) == (
        f"[[item:{first}]] is red 7, [[item:{second}]] is blue 8. 7 and 8 make 3, so red 3."
    )
    said = re.sub(r"\[\[item:\d+\]\]", "a b c", beads.thought(first, second))
    assert len(re.findall(r"\w+|[^\w\s]", said)) == 24
    for a, b, c in zip(beads.walks_UT[:, 1], beads.walks_UT[:, 2], beads.walks_UT[:, 3], strict=True):
        assert beads.colour_N[c] == beads.colour_N[a]
        assert beads.number_N[c] == (beads.number_N[a] + beads.number_N[b]) % CLOCK


def test_the_store_is_frozen():
    beads = make_beads(2000, seed=0)
    found = [beads.colour_N, beads.number_N, beads.codes_NL.astype(np.int64), beads.walks_UT]
    assert sha256_bytes(b"".join(part.tobytes() for part in found))[:16] == "3e2f10e01764d91b"


def test_a_folder_of_beads_is_prepared_with_thoughts_and_new_pairs_in_test(tmp_path):
    call("data.toy", "--size", "beads", "--output_dir", tmp_path / "raw")
    call(
        "data.prepare",
        "--adapter",
        "sidreasoner",
        *PUBLISHED,
        "--raw",
        tmp_path / "raw",
        "--output_dir",
        tmp_path / "data",
    )
    rows = pq.read_table(tmp_path / "data/sequences.parquet").to_pylist()
    titles = pq.read_table(tmp_path / "data/items.parquet")["title"].to_pylist()
    pairs: dict[str, set[tuple[int, int]]] = {"train": set(), "test": set()}
    for row in rows:
        pairs.setdefault(row["split"], set()).add(tuple(row["history"][-2:]))
        colour, _, number = titles[row["target"]].lower().split()
        if row["split"] != "train":
            assert row["reasoning"] == ""
            continue
        told = re.fullmatch(
            r"\[\[item:(\d+)\]\] is .*, \[\[item:(\d+)\]\] is .*, so (\w+) (\d+)\.", row["reasoning"]
        )
        assert [int(told[1]), int(told[2])] == row["history"][-2:]
        assert (told[3], told[4]) == (colour, number) and colour in COLOURS
    assert {split: sum(row["split"] == split for row in rows) for split in ("train", "valid", "test")} == {"train": 4000, "valid": 2000, "test": 2000}  # fmt: skip
    new = sum(tuple(row["history"][-2:]) not in pairs["train"] for row in rows if row["split"] == "test")
    assert new > 1000, "knowing pairs by heart must not be enough"
    assert "not write" in refuse(
        "data.toy", "--size", "beads", "--gzip", "true", "--output_dir", tmp_path / "no"
    )
