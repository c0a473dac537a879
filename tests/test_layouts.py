"""ID layouts: unique, of fixed length, gold or predicted tags; prefix lookup equals brute force on any number of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import InputError
from data.sid import SidTable
from data.tags import UNKNOWN
from rq.ids.collisions import collision_digits
from rq.ids.layouts import lay_out

CODES = np.array([[3, 1], [3, 1], [0, 2], [3, 1]], np.int32)
CLASSES = np.array([[1, 0], [1, UNKNOWN], [0, 2], [1, 0]], np.int32)


def test_each_layout_by_hand():
    options = {"sizes": (4, 3), "class_sizes": (2, 3)}
    plain = lay_out(CODES, (4, 3), layout="sid")
    assert plain.table.codes_NL.tolist() == CODES.tolist() and plain.kinds == ("code", "code")
    deduped = lay_out(CODES, (4, 3), layout="sid_dedup")
    assert deduped.table.codes_NL.tolist() == [[3, 1, 0], [3, 1, 1], [0, 2, 0], [3, 1, 2]]
    assert deduped.table.sizes == (4, 3, 3) and deduped.kinds[-1] == "dedup"
    joined = lay_out(CODES, classes_NT=CLASSES, layout="concatenated", **options)
    assert joined.table.codes_NL.tolist() == [[3, 1, 1, 0], [3, 1, 1, 3], [0, 2, 0, 2], [3, 1, 1, 0]]
    assert joined.table.sizes == (4, 3, 2, 4), "an unknown gold tag is one more class of its level"
    mixed = lay_out(CODES, classes_NT=CLASSES, layout="interleaved", **options)
    assert mixed.table.codes_NL.tolist() == [[3, 1, 1, 0], [3, 1, 1, 3], [0, 0, 2, 2], [3, 1, 1, 0]]
    assert mixed.kinds == ("code", "tag", "code", "tag") and mixed.table.sizes == (4, 2, 3, 4)
    assert mixed.token_types.tolist() == [0, 1, 2, 3]
    known = lay_out(CODES, classes_NT=np.abs(CLASSES), layout="concatenated", **options)
    assert known.table.sizes == (4, 3, 2, 3), "without unknown tags there is no such class"


def test_fewer_tags_than_levels_leave_the_last_codes_alone():
    mixed = lay_out(CODES, (4, 3), layout="interleaved", classes_NT=CLASSES[:, :1], class_sizes=(2,))
    assert mixed.kinds == ("code", "tag", "code")
    with pytest.raises(InputError, match="do not fit"):
        lay_out(CODES[:, :1], (4,), layout="interleaved", classes_NT=np.abs(CLASSES), class_sizes=(2, 3))


def test_tags_and_layouts_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="needs tags"):
        lay_out(CODES, (4, 3), layout="concatenated")
    with pytest.raises(InputError, match="no place"):
        lay_out(CODES, (4, 3), layout="sid", classes_NT=CLASSES, class_sizes=(2, 3))


@settings(max_examples=100)
@given(
    st.integers(1, 60),
    st.integers(0, 10_000),
    st.sampled_from(["sid", "sid_dedup", "concatenated", "interleaved"]),
)
def test_ids_are_unique_and_of_one_length(count, seed, layout):
    rng = np.random.default_rng(seed)
    codes_NL = rng.integers(0, 3, (count, 3)).astype(np.int32)
    tags = {}
    if layout in ("concatenated", "interleaved"):
        tags = {"classes_NT": rng.integers(-1, 2, (count, 3)), "class_sizes": (2, 2, 2)}
    ids = lay_out(codes_NL, (3, 3, 3), layout=layout, dedup=True, **tags)
    assert ids.table.codes_NL.shape == (count, len(ids.kinds))
    assert len(np.unique(ids.table.codes_NL, axis=0)) == count
    assert ids.token_types.tolist() == list(range(len(ids.kinds)))
    assert [ids.table.codes_NL[:, p].tolist() for p, kind in enumerate(ids.kinds) if kind == "code"] == codes_NL.T.tolist()  # fmt: skip
    unique = np.unique(codes_NL, axis=0)
    if layout != "sid_dedup":
        kept = {name: value[: len(unique)] if name == "classes_NT" else value for name, value in tags.items()}
        assert len(lay_out(unique, (3, 3, 3), layout=layout, **kept).table.sids_SL) == len(unique)


def test_collision_digits_count_from_zero_in_item_order():
    assert collision_digits(CODES).tolist() == [0, 1, 0, 2]
    assert collision_digits(np.zeros((0, 2), np.int32)).tolist() == []


@settings(max_examples=100)
@given(st.integers(1, 91), st.integers(1, 40), st.integers(1, 4), st.integers(0, 10_000))
def test_prefix_lookup_equals_brute_force(rows, items, depth, seed):
    """91 rows: 91 = 5 * 16 + 11, the remainder that HiD-VAE's own check calls invalid."""
    rng = np.random.default_rng(seed)
    table = SidTable(rng.integers(0, 3, (items, 4)).astype(np.int32), (3,) * 4)
    heads = SidTable(table.codes_NL[:, :depth], table.sizes[:depth])
    prefixes = rng.integers(-1, 4, (rows, depth)).astype(np.int32)
    brute = [any((prefix == ids[:depth]).all() for ids in table.codes_NL) for prefix in prefixes]
    assert (heads.find(prefixes) >= 0).tolist() == brute
    whole = table.codes_NL[rng.integers(0, items, rows)]
    assert (table.find(whole) >= 0).all() and (heads.find(whole[:, :depth]) >= 0).all()
