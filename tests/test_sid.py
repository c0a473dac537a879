"""SidTable, SidVocab, SidFormat against brute force, and their refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import InputError
from data.sid import FORMATS, LevelTokens, SidFormat, SidTable, SidVocab, read_vocab

FORMAT_NAMES = st.sampled_from(sorted(FORMATS))


@st.composite
def sized_codes(draw: st.DrawFn, *, max_items: int = 40) -> tuple[tuple[int, ...], np.ndarray]:
    """(level sizes, codes [N, L]) with many collisions: small levels, few codes."""
    sizes = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    rows = draw(
        st.lists(st.tuples(*(st.integers(0, size - 1) for size in sizes)), min_size=1, max_size=max_items)
    )
    return sizes, np.array(rows, np.int32)


@given(sized_codes(), st.data())
def test_find_and_items_of_equal_brute_force(
    case: tuple[tuple[int, ...], np.ndarray], data: st.DataObject
) -> None:
    sizes, codes_NL = case
    table = SidTable(codes_NL, sizes)
    queries = data.draw(
        st.lists(st.tuples(*(st.integers(-2, size + 1) for size in sizes)), min_size=1, max_size=20)
    )
    distinct = sorted({tuple(row) for row in codes_NL.tolist()})
    assert [tuple(row) for row in table.sids_SL.tolist()] == distinct
    found = table.find(np.array(queries))
    assert found.tolist() == [distinct.index(query) if query in distinct else -1 for query in queries]
    for query in queries:
        expected = [item for item, row in enumerate(codes_NL.tolist()) if tuple(row) == query]
        assert table.items_of(query).tolist() == expected
    for item, row in enumerate(codes_NL.tolist()):
        assert distinct[table.sid_of_item_N[item]] == tuple(row)
    assert table.group_sizes_S.sum() == len(codes_NL)


@given(sized_codes(), FORMAT_NAMES)
def test_text_is_parsed_back_and_nothing_else_is(case: tuple[tuple[int, ...], np.ndarray], name: str) -> None:
    sizes, codes_NL = case
    fmt = FORMATS[name]
    codes = tuple(codes_NL[0].tolist())
    text = fmt.text(codes)
    assert fmt.parse(text, num_levels=len(sizes)) == codes
    assert fmt.parse(f" {text}\n", num_levels=len(sizes)) == codes
    assert fmt.parse(text, num_levels=len(sizes) + 1) is None
    assert fmt.parse(text + text, num_levels=len(sizes)) is None
    assert fmt.parse(text[:-1], num_levels=len(sizes)) is None


@pytest.mark.parametrize(
    "text",
    ["<b_1><a_2><c_3>", "<a_1><b_2><b_3>", "<a_01><b_2><c_3>", "<a_1> <b_2><c_3>", "<a_1><b_2>", "x<a_1><b_2><c_3>",
     "<a_-1><b_2><c_3>", "<A_1><b_2><c_3>", "<a_1><b_2><c_3>.", "", "<s_a_1><s_b_2><s_c_3>"],
)  # fmt: skip
def test_parse_is_strict(text: str) -> None:
    assert FORMATS["letters"].parse(text, num_levels=3) is None
    assert FORMATS["navigen"].parse(text, num_levels=3) is None


def test_codes_outside_a_level_are_refused() -> None:
    with pytest.raises(InputError, match="item 1 has code 4 at level 0, outside 0..3"):
        SidTable(np.array([[0, 0], [4, 0]], np.int32), (4, 2))
    with pytest.raises(InputError, match="2 level sizes"):
        SidTable(np.zeros((3, 3), np.int32), (4, 2))


def test_identity_sees_codes_sizes_and_order() -> None:
    codes_NL = np.array([[0, 1], [1, 0]], np.int32)
    base = SidTable(codes_NL, (2, 2)).sha256
    assert SidTable(codes_NL.astype(np.int64), (2, 2)).sha256 == base
    assert SidTable(codes_NL[::-1], (2, 2)).sha256 != base
    assert SidTable(codes_NL, (2, 3)).sha256 != base


@st.composite
def vocabularies(draw: st.DrawFn) -> SidVocab:
    """Blocks and scattered lists mixed, prefix and suffix tokens anywhere."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    pool = draw(st.permutations(range(100)))
    levels, next_block = [], 100
    for number, size in enumerate(sizes):
        if draw(st.booleans()):
            levels.append(LevelTokens("abcd"[number], size, first=next_block))
            next_block += size
        else:
            levels.append(LevelTokens("abcd"[number], size, ids=tuple(pool[:size])))
            pool = pool[size:]
    front, back = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    fmt = SidFormat("<{level}_{code}>", ("<p>",) * front, ("<q>",) * back)
    return SidVocab(fmt, tuple(levels), tuple(pool[:front]), tuple(pool[front : front + back]), "hash")


@given(vocabularies(), st.data())
def test_token_ids_round_trip(vocab: SidVocab, data: st.DataObject) -> None:
    codes = tuple(data.draw(st.integers(0, size - 1)) for size in vocab.sizes)
    ids = vocab.encode(codes)
    assert vocab.parse(ids) == codes
    body = ids[len(vocab.prefix_ids) : len(ids) - len(vocab.suffix_ids)]
    assert vocab.token_ids(np.array([codes]))[0].tolist() == body
    for wrong in (ids[:-1], [*ids, ids[-1]], [999, *ids[1:]], []):
        assert vocab.parse(wrong) is None
    if len(codes) > 1:
        swapped = [*vocab.prefix_ids, *reversed(body), *vocab.suffix_ids]
        assert vocab.parse(swapped) is None


@given(vocab=vocabularies())
@settings(max_examples=25)
def test_written_vocab_is_read_back(tmp_path_factory: pytest.TempPathFactory, vocab: SidVocab) -> None:
    directory = tmp_path_factory.mktemp("model")
    (directory / "sid_vocab.json").write_text(json.dumps(vocab.to_json()))
    assert read_vocab(directory) == vocab


def test_vocab_refusals(tmp_path) -> None:
    with pytest.raises(InputError, match="token id 3 belongs to two codes"):
        SidVocab(SidFormat(), (LevelTokens("a", 2, first=2), LevelTokens("b", 2, ids=(3, 9))))
    with pytest.raises(InputError, match="either a first token id or a list"):
        LevelTokens("a", 2)
    with pytest.raises(InputError, match="1 token ids for 2 codes"):
        LevelTokens("a", 2, ids=(1,))
    with pytest.raises(InputError, match="has no SID tokens"):
        read_vocab(tmp_path)
    (tmp_path / "sid_vocab.json").write_text('{"format": {}}')
    with pytest.raises(InputError, match="not a valid sid_vocab.json"):
        read_vocab(tmp_path)


def test_check_names_model_and_sids() -> None:
    table = SidTable(np.zeros((1, 1), np.int32), (2,))
    vocab = SidVocab(SidFormat(), (LevelTokens("a", 2, first=0),), sids_sha256=table.sha256)
    vocab.check(table, model="outputs/run/vocab", sids="data/x/sids/y")
    other = SidTable(np.ones((1, 1), np.int32), (2,))
    with pytest.raises(
        InputError, match="outputs/run/vocab was expanded with other semantic IDs than data/x/sids/z"
    ):
        vocab.check(other, model="outputs/run/vocab", sids="data/x/sids/z")
