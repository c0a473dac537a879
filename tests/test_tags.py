"""Category paths as tags: levels, the published padding, folding of rare tags, class numbers, what is on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import InputError
from data import tags as tagging
from data.artifacts import TAGS
from data.store.output import open_output
from data.tags import OTHER, UNKNOWN, TagVocab

TAG = st.one_of(st.none(), st.sampled_from([*"abcdefgh", OTHER]))
TABLES = st.integers(1, 3).flatmap(
    lambda levels: st.lists(st.lists(TAG, min_size=levels, max_size=levels), min_size=1, max_size=30)
)


def test_levels_drop_repeats_and_a_shared_root():
    paths = [["shop", "a", " a ", "b", "shop", "c", "d"], ["shop", "a"], ["shop"], [], ["shop", "", "x"]]
    assert tagging.path_levels(paths, levels=3) == [
        ["a", "b", "c"], ["a", None, None], [None] * 3, [None] * 3, ["x", None, None],
    ]  # fmt: skip
    joined = tagging.path_levels(paths, levels=2, overflow="join")
    assert joined[0] == ["a", "b c d"], "the rest of a long path becomes the last tag"
    assert tagging.path_levels(paths, levels=2, root="keep")[0] == ["shop", "a"]


@pytest.mark.parametrize("paths", [[["a", "b"], ["c", "d"]], [["a"], ["a"]]])
def test_a_first_level_that_tells_something_is_no_root(paths):
    assert tagging.path_levels(paths, levels=1) == [[path[0]] for path in paths]
    dropped = tagging.path_levels(paths, levels=1, root="always")
    assert dropped == [[path[1] if len(path) > 1 else None] for path in paths]


def test_published_padding_takes_title_words_then_brand_then_numbers():
    tags = [["Glue", None, None, None, None], ["Tape", "Duct", None, None, None], ["A", "B", "C", "D", "E"]]
    titles = ["the Strong Glue for ab", "", "unused words"]
    options = {"titles": titles, "brands": ["Acme", " Uhu ", "x"], "stop_words": {"the", "for"}, "seed": 42}
    padded, which_NL = tagging.pad_published(tags, **options)
    assert padded[0] == ["Glue", "Strong", "Acme", "GenericTag1", "GenericTag2"]
    assert padded[1] == ["Tape", "Duct", "Uhu", "GenericTag1", "GenericTag2"]
    assert padded[2] == tags[2] and which_NL.sum(1).tolist() == [4, 3, 0]
    long = [[None] * 5] * 40
    titles = ["alpha beta gamma delta epsilon zeta"] * 40
    first, _ = tagging.pad_published(long, titles=titles, brands=[""] * 40, stop_words=(), seed=1)
    again, _ = tagging.pad_published(long, titles=titles, brands=[""] * 40, stop_words=(), seed=1)
    assert first == again and len({row[0] for row in first}) > 3, "random per item, equal per seed"


def test_item_split_has_the_shares_and_is_the_seed_s():
    split_N = tagging.split_items(20_000, valid=0.05, test=0.1, seed=42)
    assert abs((split_N == "valid").mean() - 0.05) < 0.005 and abs((split_N == "test").mean() - 0.1) < 0.006
    assert (split_N == tagging.split_items(20_000, valid=0.05, test=0.1, seed=42)).all()
    published = tagging.split_items(20_000, valid=0, test=0.05, seed=42)
    assert set(published) == {"train", "test"}


def test_folding_counts_train_items_and_leaves_a_bijection():
    column = ["common"] * 4 + ["pair"] * 2 + ["held"] * 3 + [None]
    counted_N = np.array([True] * 6 + [False] * 3 + [True])
    tags = [[name] for name in column]
    vocab = tagging.build_vocab(tags, counted_N, rare_threshold=3)
    assert vocab.names == (("common", OTHER),) and vocab.folded == (("held", "pair"),)
    assert vocab.encode(tags)[:, 0].tolist() == [0] * 4 + [1] * 5 + [UNKNOWN]
    kept = tagging.build_vocab(tags, counted_N, rare_threshold=3, unseen="keep")
    assert kept.names == (("common", "held", OTHER),), "published: a class without a train item stays a class"
    assert tagging.build_vocab(tags, counted_N, rare_threshold=0).names == (("common", "pair", OTHER),)
    everything = tagging.build_vocab(tags, np.ones(10, bool), rare_threshold=1)
    assert everything.names == (("common", "held", "pair"),) and everything.folded == ((),)


@settings(max_examples=150)
@given(TABLES, st.integers(0, 4), st.sampled_from(["fold", "keep"]), st.randoms())
def test_class_numbers_are_a_bijection(tags, threshold, unseen, random):
    counted_N = np.array([random.random() < 0.7 for _ in tags])
    vocab = tagging.build_vocab(tags, counted_N, rare_threshold=threshold, unseen=unseen)
    classes_NL = vocab.encode(tags)
    for level, size in enumerate(vocab.sizes):
        seen = {row[level] for row in tags} - {None}
        known = classes_NL[:, level][classes_NL[:, level] != UNKNOWN]
        assert set(known) == set(range(size)), "every class is some tag's, none lies outside 0..C-1"
        assert set(vocab.names[level]) - {OTHER} | set(vocab.folded[level]) == seen - {OTHER}
    back = vocab.decode(classes_NL)
    for row, names in zip(tags, back, strict=True):
        for level, (tag, name) in enumerate(zip(row, names, strict=True)):
            folded = tag in vocab.folded[level] or tag == OTHER
            assert name == (None if tag is None else OTHER if folded else tag)
    assert TagVocab.from_json(json.loads(json.dumps(vocab.to_json()))) == vocab


def test_a_tag_of_the_vocabulary_s_name_is_not_lost():
    tags = [[OTHER], ["a"], ["a"]]
    vocab = tagging.build_vocab(tags, np.ones(3, bool), rare_threshold=0)
    assert vocab.encode(tags)[:, 0].tolist() == [1, 0, 0]
    with pytest.raises(InputError, match="twice"):
        TagVocab((("a", "a"),), ((),))
    with pytest.raises(InputError, match="last class"):
        TagVocab((("a", "b"),), (("c",),))


def test_coverage_counts_every_source():
    sources = [["given", None], ["given", "graph"], [None, None]]
    first, second = tagging.coverage(sources)
    assert first["given"] == 2 and first["unknown"] == 1 and second["graph"] == 1 and second["unknown"] == 2
    assert sum(first.values()) == sum(second.values()) == 3


@dataclass
class Made:
    what: str = "by hand"


def write(path, tags, sources, split, vocab):
    with open_output(Made(), "complete_tags", version=1, inputs={}, directory=path) as out:
        out.write_table(TAGS.file, tagging.tag_table(tags, sources, np.array(split)))
        out.write_json(tagging.VOCAB, vocab.to_json())


def test_a_tag_set_comes_back_as_it_was_written(tmp_path):
    tags = [["a", None], ["b", "c"]]
    sources = [["given", None], ["given", "graph"]]
    vocab = tagging.build_vocab(tags, np.ones(2, bool), rare_threshold=0)
    write(tmp_path / "t", tags, sources, ["train", "test"], vocab)
    found = tagging.read_tags(tmp_path / "t")
    assert (found.tags, found.sources, found.split_N.tolist()) == (tags, sources, ["train", "test"])
    assert found.vocab == vocab and found.given_NL.tolist() == [[True, False], [True, False]]
    assert found.classes_NL.tolist() == [[0, UNKNOWN], [1, 0]]
    with pytest.raises(InputError, match="tags of 2 items, here are 3"):
        tagging.read_tags(tmp_path / "t", num_items=3)
    assert pq.read_table(tmp_path / "t" / TAGS.file)["tags"].to_pylist() == tags


def test_a_tag_set_with_a_wrong_number_of_levels_is_refused(tmp_path):
    vocab = TagVocab((("a",), ("c",)), ((), ()))
    write(tmp_path / "t", [["a"], ["a", "c"]], [["given"], ["given"] * 2], ["train"] * 2, vocab)
    with pytest.raises(InputError, match="item 0 has 1 tags and 1 sources, not 2"):
        tagging.read_tags(tmp_path / "t")
