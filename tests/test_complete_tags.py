"""Stage 03: graph completion, retrieve-then-classify, pseudo-tags, and the program as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.program import ROOT, InputError
from data.artifacts import TEXT_LIST
from data.store.output import open_output
from data.tags import children, read_tags
from preprocess.tags import classify as tag_classify
from preprocess.tags import graph as tag_graph
from tests import handmade

E = np.eye(4, dtype=np.float32)


def unit(*values):
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


# The graph.


def test_tag_vectors_are_mean_directions():
    x_ND = np.stack([3 * E[0], E[1], E[2]])
    names, vectors_TD = tag_graph.tag_vectors(x_ND, [["b"], ["b"], ["a"]], level=0)
    assert names == ["a", "b"]
    np.testing.assert_allclose(vectors_TD, [E[2], unit(1, 1, 0, 0)], atol=1e-6)


def test_first_level_is_the_nearest_tag_the_second_its_nearest_child():
    tags = [["A", "a1"], ["A", "a2"], ["B", "b1"], [None, None], ["A", None]]
    x_ND = np.stack([E[0], unit(1, 0.5, 0, 0), E[2], unit(1, 0.4, 0.2, 0), E[2]])
    filled, filled_NL = tag_graph.complete_by_graph(x_ND, tags)
    assert filled[3] == ["A", "a2"]
    assert filled[4][0] == "A" and filled[4][1] in ("a1", "a2"), "b1 is nearer, but no child of A"
    assert filled_NL.tolist() == [[False] * 2] * 3 + [[True, True], [False, True]]
    assert filled[:3] == tags[:3] and tags[3] == [None, None], "what was known stays, the argument too"


def test_the_published_weights_mix_item_and_tags_above():
    """The query of level 2 is .6 tag of level 1 + .4 item: hand-computed, it differs from the item's own nearest child."""
    tags = [["A", "a1"], ["A", "a2"], ["A", None]]
    x_ND = np.stack([E[0], unit(0.1, 1, 0, 0), unit(0.9, 1, 0, 0)])
    tag_a = unit(*(unit(1, 0, 0, 0) + unit(0.1, 1, 0, 0)))
    query = 0.4 * x_ND[2] + 0.6 * tag_a
    best = "a1" if query @ x_ND[0] > query @ x_ND[1] else "a2"
    assert tag_graph.complete_by_graph(x_ND, tags)[0][2][1] == best
    weights = [[1.0], [0.001, 0.999]]
    leaning = 0.001 * x_ND[2] + 0.999 * tag_a
    expected = "a1" if leaning @ x_ND[0] > leaning @ x_ND[1] else "a2"
    assert tag_graph.complete_by_graph(x_ND, tags, weights=weights)[0][2][1] == expected


def test_a_tag_between_known_ones_leads_from_one_to_the_other():
    tags = [["A", "m", "deep"], ["A", "n", "else"], ["A", None, "deep"], [None, "n", None]]
    x_ND = np.stack([E[0], E[1], E[1], E[0]])
    filled, _ = tag_graph.complete_by_graph(x_ND, tags)
    assert filled[2] == ["A", "m", "deep"], "n is nearer, but does not lead to `deep`"
    assert filled[3] == ["A", "n", "else"]


def test_without_children_a_tag_stays_unknown_unless_outside():
    tags = [["A", None], ["B", "b1"]]
    x_ND = np.stack([E[0], E[1]])
    assert tag_graph.complete_by_graph(x_ND, tags)[0][0] == ["A", None]
    assert tag_graph.complete_by_graph(x_ND, tags, outside=True)[0][0] == ["A", "b1"]


def test_an_item_without_a_vector_stays_unknown():
    filled, _ = tag_graph.complete_by_graph(np.stack([E[0], 0 * E[0]]), [["A"], [None]])
    assert filled == [["A"], [None]]


def test_weights_of_another_shape_are_refused():
    with pytest.raises(InputError, match="level 2"):
        tag_graph.check_weights([[1.0], [0.4]], levels=2)
    with pytest.raises(InputError, match="1 levels, there are 2"):
        tag_graph.check_weights([[1.0]], levels=2)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 40), st.sampled_from([0.2, 0.6]))
def test_what_the_graph_fills_lies_on_its_edges(seed, count, holes):
    rng = np.random.default_rng(seed)
    tags = []
    for _ in range(count):
        a, b, c = rng.integers(3), rng.integers(3), rng.integers(2)
        row = [f"a{a}", f"b{a}{b}", f"c{a}{b}{c}"]
        tags.append([None if rng.random() < holes else tag for tag in row])
    x_ND = rng.normal(size=(count, 5)).astype(np.float32)
    below = children(tags)
    filled, filled_NL = tag_graph.complete_by_graph(x_ND, tags)
    for row, old, which in zip(filled, tags, filled_NL, strict=True):
        assert [tag for tag, new in zip(row, which, strict=True) if not new] == [
            tag for tag, new in zip(old, which, strict=True) if not new
        ]
        for level, (above, tag) in enumerate(pairwise(row)):
            if which[level + 1]:
                assert tag in below[level][above]


# Pseudo-tags.


def test_pseudo_tags_are_nested_and_named():
    rng = np.random.default_rng(0)
    centres = np.repeat(np.array([[5, 0, 0], [0, 5, 0]], np.float32), 40, axis=0)
    x_ND = centres + rng.normal(scale=0.05, size=(80, 3)).astype(np.float32)
    titles = ["duct tape"] * 40 + ["wood screws"] * 40
    tags = tag_graph.pseudo_tags(x_ND, titles, clusters=[2, 2], min_items=10, seed=0)
    first = {row[0] for row in tags}
    assert len(first) == 2 and len({row[0] for row in tags[:40]}) == 1
    assert all("tape" in row[0] for row in tags[:40]) and all("screws" in row[0] for row in tags[40:])
    parents = {}
    for row in tags:
        assert parents.setdefault(row[1], row[0]) == row[0], "a group lies in one group above"
    assert len(parents) == 4
    shallow = tag_graph.pseudo_tags(x_ND, titles, clusters=[2, 2], min_items=30, seed=0)
    assert {row[1] for row in shallow} == {None}, "40 items are not split into parts of 30"
    assert all(row[0] for row in shallow)


# The chat model.


def store():
    tags = [["A", "a1"], ["A", "a1"], ["A", "a2"], ["B", "b1"], ["A", None], [None, None]]
    x_ND = np.stack([E[0], E[0], unit(1, 1, 0, 0), E[2], E[0], unit(0, 0, 1, 0.1)])
    return x_ND, tags, [f"item {i}" for i in range(6)]


def test_questions_offer_the_nearest_tags_with_their_counts():
    x_ND, tags, texts = store()
    first, second = tag_classify.questions(x_ND, tags, texts, candidates=2)
    assert (first.item, first.known) == (4, ((0, "A"),))
    ((level, offered),) = first.offered
    assert level == 1 and [(c.name, c.items) for c in offered] == [("a1", 2), ("a2", 1)]
    assert offered[0].similarity == pytest.approx(1, abs=1e-6)
    assert [level for level, _ in second.offered] == [0, 1] and second.offered[0][1][0].name == "B"
    assert "level_1: A" in first.prompt() and "a1 (similarity 1.00, 2 items)" in first.prompt()
    assert first.schema()["properties"]["completed_tags"]["properties"]["level_2"]["enum"] == ["a1", "a2"]


@pytest.mark.parametrize(
    ("answer", "good", "complaint"),
    [
        ('{"completed_tags": {"level_2": "a2"}}', {1: "a2"}, ""),
        ('{"completed_tags": {"level_2": " A2 "}}', {1: "a2"}, ""),
        ('{"completed_tags": {"level_2": "b1"}}', {1: "b1"}, ""),
        ('{"completed_tags": {"level_2": "zzz"}}', {}, 'level_2 named "zzz"'),
        ('{"completed_tags": {}}', {}, "level_2 named null"),
        ('{"completed_tags": {"level_2": 3}}', {}, "level_2 named 3"),
        ('{"completed_tags": "a1"}', {}, "not a JSON object"),
        ("I think a1", {}, "not a JSON object"),
        ("[]", {}, "not a JSON object"),
        (None, {}, "no answer"),
    ],
)
def test_answers_are_checked_against_the_pool(answer, good, complaint):
    question = tag_classify.questions(*store(), candidates=2)[0]
    found, said = tag_classify.accept(answer, question, [{"A", "B"}, {"a1", "a2", "b1"}])
    assert found == good and complaint in said and bool(said) == bool(complaint)


def test_a_useless_answer_is_asked_again_and_then_given_up():
    seen = []

    def ask(waiting, attempt):
        seen.append([(question.item, question.complaint) for question in waiting])
        if attempt == 0:
            return ["nonsense", '{"completed_tags": {"level_1": "B", "level_2": "nowhere"}}']
        return ['{"completed_tags": {"level_2": "a2"}}', '{"completed_tags": {"level_2": "nowhere"}}']

    filled, filled_NL, counts = tag_classify.complete_by_chat(*store(), ask, candidates=2, attempts=2)
    assert filled[4] == ["A", "a2"] and filled[5] == ["B", None]
    assert filled_NL.sum() == 2 and counts == {"asked": 2, "repeated": 2, "failed": 1}
    assert [item for item, _ in seen[1]] == [4, 5] and "JSON" in seen[1][0][1] and "nowhere" in seen[1][1][1]


# The program.


CATEGORIES = (
    [["shop", "A", "a1"]] * 4 + [["shop", "A", "a2"]] * 3 + [["shop", "B", "b1"]] * 3 + [["shop", "A"], []]
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """12 items: seven of A, three of B, one of A without a second tag, one without any; and an embeddings directory."""
    path = tmp_path_factory.mktemp("tags") / "data"
    handmade.write_data(path)
    items = pq.read_table(path / "items.parquet")
    other = path.with_name("set")
    items = items.set_column(
        items.column_names.index("categories"), "categories", pa.array(CATEGORIES, TEXT_LIST)
    )
    x_ND = np.array([E[0]] * 4 + [unit(1, 1, 0, 0)] * 3 + [E[2]] * 3 + [E[0], unit(0, 0, 1, 0.2)])
    with open_output(handmade.Made(), "prepare", version=1, inputs={}, directory=other) as out:
        out.write_table("items.parquet", items)
    vectors = other / "embeddings/e"
    with open_output(handmade.Made(), "embed_items", version=1, inputs={}, directory=vectors) as out:
        out.write_array("embeddings.npy", x_ND.astype(np.float32))
    return other


def flags(data, name, *more):
    return ["--data", data, "--output_dir", data / "tags" / name, "--paths.levels", 2, "--classes.rare_threshold", 2, *more]  # fmt: skip


def test_the_program_writes_category_tags_and_leaves_the_unknown_null(data):
    said = handmade.succeed("preprocess.complete_tags", *flags(data, "plain"))
    assert "level 2: 83.3% known" in said
    found = read_tags(data / "tags/plain")
    assert found.tags[0] == ["A", "a1"] and found.tags[10] == ["A", None] and found.tags[11] == [None, None]
    assert found.sources[10] == ["given", None]
    manifest = json.loads((data / "tags/plain/manifest.json").read_text())
    assert manifest["counts"]["given"] == 21 and manifest["counts"]["unknown"] == 3
    assert manifest["facts"]["coverage"][1]["unknown"] == 2 and manifest["facts"]["classes"] == list(
        found.vocab.sizes
    )
    again = handmade.succeed("preprocess.complete_tags", *flags(data, "plain"))
    assert "already complete" in again


def test_graph_and_heuristic_chat_fill_what_is_missing(data):
    given = ["--embeddings", data / "embeddings/e"]
    handmade.call("preprocess.complete_tags", *flags(data, "graph", *given, "--complete", "[graph]"))
    found = read_tags(data / "tags/graph")
    assert found.tags[10] == ["A", "a1"] and found.tags[11] == ["B", "b1"]
    assert found.sources[10:] == [["given", "graph"], ["graph", "graph"]]
    chat = ["--complete", "[llm]", "--llm.client.backend", "heuristic"]
    handmade.call("preprocess.complete_tags", *flags(data, "llm", *given, *chat))
    asked = read_tags(data / "tags/llm")
    assert asked.tags == found.tags and asked.sources[11] == ["llm", "llm"]
    facts = json.loads((data / "tags/llm/manifest.json").read_text())["facts"]
    assert facts["llm"] == {"asked": 2, "repeated": 0, "failed": 0}


def test_recorded_answers_are_validated_and_the_graph_fills_the_rest(data, tmp_path):
    rows = [
        {"key": "item 10 attempt 1", "text": '{"completed_tags": {"level_2": "A2"}}'},
        {"key": "item 11 attempt 1", "text": '{"completed_tags": {"level_1": "Z", "level_2": "Y"}}'},
        {"key": "item 11 attempt 2", "text": "no idea"},
    ]
    recording = tmp_path / "answers.jsonl"
    recording.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat = [
        "--complete",
        "[llm, graph]",
        "--llm.client.backend",
        "recorded",
        "--llm.client.recording",
        recording,
    ]
    given = ["--embeddings", data / "embeddings/e"]
    handmade.call("preprocess.complete_tags", *flags(data, "recorded", *given, *chat))
    found = read_tags(data / "tags/recorded")
    assert found.tags[10] == ["A", "a2"] and found.sources[10] == ["given", "llm"]
    assert found.tags[11] == ["B", "b1"] and found.sources[11] == ["graph", "graph"]


def test_pseudo_tags_stand_in_for_items_without_any(data):
    given = ["--embeddings", data / "embeddings/e", "--complete", "[cluster]", "--paths.root", "always"]
    sizes = ["--clusters.sizes", "[2,2]", "--clusters.min_items", 1]
    bare = handmade.write_data(data.with_name("bare"))
    words = [
        "--data",
        bare,
        "--output_dir",
        bare / "tags/c",
        "--paths.levels",
        1,
        "--classes.rare_threshold",
        0,
    ]
    refused = handmade.refuse("preprocess.complete_tags", *words, *given, *sizes)
    assert "one number per level" in refused
    handmade.call("preprocess.complete_tags", *flags(data, "cluster", *given, *sizes))
    found = read_tags(data / "tags/cluster")
    assert found.tags[0] == ["A", "a1"] and found.tags[11] == [None, None], "one item is too few for groups"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--complete", "[graph]"], "go together"),
        (["--embeddings", "x"], "go together"),
        (["--complete", "[llm]", "--embeddings", "x"], "needs a chat model"),
        (["--complete", "[graph,graph]", "--embeddings", "x"], "twice"),
        (["--classes.test_share", "1"], "no train items"),
        (["--complete", "[graph]", "--embeddings", "x", "--paths.padding", "published"], "nothing to complete"),
        (["--complete", "[graph]", "--embeddings", "x", "--graph.weights", "[[1.0]]"], "graph weights"),
    ],
)  # fmt: skip
def test_contradictory_arguments_are_refused(data, words, complaint):
    with pytest.raises(InputError, match=complaint):
        handmade.call("preprocess.complete_tags", *flags(data, "refused", *words))
    assert not (data / "tags/refused").exists()


def test_published_padding_through_the_program(data):
    words = ["--paths.padding", "published", "--paths.levels", 5, "--paths.overflow", "join"]
    handmade.call("preprocess.complete_tags", *flags(data, "padded"), *words)
    found = read_tags(data / "tags/padded")
    assert all(None not in row for row in found.tags) and found.sources[11] == ["padding"] * 5


def test_the_stage_script_runs_from_anywhere(data, tmp_path):
    (tmp_path / "scientific").symlink_to(data)
    variables = {
        "PAPER": "hidvae",
        "DATASET": "scientific",
        "DATA_ROOT": str(tmp_path),
        "QUIET": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = ["bash", ROOT / "scripts/03_complete_tags.sh", "--classes.rare_threshold", "2"]
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run(command, env=os.environ | variables, **options)
    assert done.returncode == 0, done.stderr
    assert read_tags(data / "tags/categories").tags[0] == ["A", "a1", None], "three levels, by the config"
    filled = subprocess.run(
        [*command, "--complete", "[graph]"],
        env=os.environ | variables | {"TAGS": "g", "EMBEDDINGS": "e"},
        **options,
    )
    assert filled.returncode == 0, filled.stderr
    assert read_tags(data / "tags/g").sources[11][:2] == ["graph", "graph"]
