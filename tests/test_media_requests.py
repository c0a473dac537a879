"""What is asked for, and what becomes of it: prompts, choices, names, seeds; checks of pictures; failures, resume, the index."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from configs.program import InputError, NumericError
from data import artifacts
from data.store.output import open_output
from generation.pictures import Faulty, check_picture, contact_sheet, difference_hash, near_pairs
from generation.requests import MediaRequest, RequestSettings, as_lines, normalised, read_requests
from tests.handmade import Made
from tests.media import SIZE, Sketch, draw, write_instructions

ROWS = [
    {
        "example_id": 107,
        "user_id": 0,
        "target_item": 6,
        "item_ids": [5, 6],
        "terms": ["nut", "brass"],
        "instruction": "A  brass nut\non oak.",
    },
    {
        "example_id": 108,
        "user_id": 1,
        "target_item": 2,
        "terms": ["washer"],
        "instruction": '"<a_1><b_2> A washer"',
    },
    {"example_id": 109, "user_id": 2, "target_item": 0, "terms": [], "instruction": ""},
]


def write_examples(directory, texts: dict[int, str]):
    rows = [
        {"example_id": key, "task": "history_to_instruction", "messages": [], "answer": {"text": text, "terms": ["nut"]}, "history": [],
         "target": [0], "weight": 1.0}
        for key, text in texts.items()
    ]  # fmt: skip
    kinds = artifacts.EXAMPLES.required
    table = pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()})
    with open_output(Made(), "build_examples", version=1, inputs={}, directory=directory) as out:
        out.write_table("test.parquet", table)
    return directory


def request(uid="u", prompt="p", **more):
    return MediaRequest(uid=uid, dataset="d", type="image", source="prediction", prompt=prompt, **more)


def read(settings=None, **more):
    places = {"kind": "image", "instructions": None, "examples": None, "prompts": None, "dataset": "shop"}
    return read_requests(settings or RequestSettings(), **places | more)


def test_normalised_prompts_are_one_plain_line():
    assert normalised("“Ｂright  shot\u200b of a <s_a_12><s_b_3> nut”") == "Bright shot of a nut"
    assert normalised("<think>why\nnot</think>\n# A **red** nut [[item:7]]\n") == "A red nut"
    assert normalised(" \n ") == "" and normalised("5 x 3 <b> in") == "5 x 3 <b> in"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ('"A bright photo."', "A bright photo."),
        ("“A bright photo.”", "A bright photo."),
        ("\"'A bright photo.' \"", "A bright photo."),
        ("'A runner's shoe'", "A runner's shoe"),
        ("‘A runner’s shoe’", "A runner’s shoe"),
        ("«A lamp»", "A lamp"),
        ("`A lamp`", "A lamp"),
        ('""', ""),
        ('A neon sign that says "OPEN"', 'A neon sign that says "OPEN"'),
        ('"Welcome" mat on an oak floor', '"Welcome" mat on an oak floor'),
        ('"Welcome" beside "Goodbye"', '"Welcome" beside "Goodbye"'),
        ("“Welcome” beside “Goodbye”", "“Welcome” beside “Goodbye”"),
        ('A frame of 10" x 12"', 'A frame of 10" x 12"'),
        ('“A lamp"', '“A lamp"'),
        ("”A lamp“", "”A lamp“"),
        ("the dogs'", "the dogs'"),
        ('"', '"'),
    ],
)
def test_quotation_marks_go_where_they_stand_around_the_whole(text, plain):
    assert normalised(text) == plain


@given(st.text(max_size=200))
def test_any_uid_is_a_safe_name_of_its_own(uid):
    name = request(uid).name
    folder, file = name.split("/")
    assert not file.startswith(".") and len(file) <= 120 and file.isascii()
    assert name != request(uid + "x").name


def test_seeds_tell_anagrams_apart_and_stay():
    seeds = {
        request(uid, prompt).noise_seed(seed)
        for uid in ("ab", "ba")
        for prompt in ("p", "q")
        for seed in (0, 1)
    }
    assert len(seeds) == 8 and all(1 <= seed < 1 << 31 for seed in seeds)
    assert request("ab").noise_seed(0) == replace(request("ab"), dataset="other").noise_seed(0) == 1466737686


def test_sources_and_their_words(tmp_path):
    instructions = str(write_instructions(tmp_path / "i", ROWS))
    examples = str(write_examples(tmp_path / "e", {107: "The teacher's nut", 900: "elsewhere"}))
    found = read(instructions=instructions, examples=examples)
    assert [(r.uid, r.example_id, r.user_id, r.target_item, r.terms) for r in found][:1] == [
        ("107", 107, 0, 6, ("nut", "brass"))
    ]
    assert [r.prompt for r in found] == ["A brass nut on oak.", '"<a_1><b_2> A washer"', ""]
    assert [r.ground_truth for r in found] == ["The teacher's nut", None, None]
    (oracle,) = read(
        RequestSettings(source="oracle", suffix=", 4k"), instructions=instructions, examples=examples
    )
    assert (oracle.uid, oracle.prompt, oracle.source) == ("107", "The teacher's nut, 4k", "oracle")
    assert (oracle.terms, oracle.item_ids, found[0].item_ids) == (("nut",), (6,), (5, 6))
    plain = read(RequestSettings(normalise=True, suffix=", 4k"), instructions=instructions)
    assert [r.prompt for r in plain] == ["A brass nut on oak., 4k", "A washer, 4k", ""], (
        "a suffix alone is no prompt"
    )


def test_prompts_of_elsewhere_and_our_own_again(tmp_path):
    lines = [
        {"source_row": {"uid": "u1", "source_dataset": "games"}, "target_ins": "a dragon", "target_type": "image"},
        {"uid": "u1", "source_dataset": "prods", "normalized_target_ins": "a mug", "ground_truth_ins": "the mug", "target_type": "image"},
        {"uid": "u2", "target_ins": "a clip", "target_type": "video"},
    ]  # fmt: skip
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    found = read(prompts=str(file))
    assert [(r.name, r.prompt) for r in found] == [("games/u1", "a dragon"), ("prods/u1", "a mug")]
    assert [r.prompt for r in read(prompts=str(file), kind="video")] == ["a clip"]
    (tmp_path / "again.jsonl").write_text(as_lines(found))
    assert read(prompts=str(tmp_path / "again.jsonl")) == found
    with pytest.raises(InputError, match="p.jsonl:1 lacks uid or the text of source oracle"):
        read(RequestSettings(source="oracle"), prompts=str(file))
    file.write_text('{"uid": 1, "prompt": "x"}\n{"uid": "1", "prompt": "y"}\n')
    with pytest.raises(InputError, match="shop/1 comes 2 times"):
        read(prompts=str(file))
    file.write_text("not json\n")
    with pytest.raises(InputError, match="p.jsonl:1 is not valid JSON"):
        read(prompts=str(file))
    for wrong, what in (
        ('"item_ids": ["B01"]', "item_ids"),
        ('"item_ids": 7', "item_ids"),
        ('"user_id": "ann"', "user_id"),
    ):
        file.write_text(f'{{"uid": 1, "prompt": "x", {wrong}}}\n')
        with pytest.raises(InputError, match=f"p.jsonl:1: {what} are"):
            read(prompts=str(file))
    file.write_text('{"uid": 1, "prompt": "x", "target_tid": "[\'nut\', \'bolt\']"}\n')
    assert read(prompts=str(file))[0].terms == ("nut", "bolt")
    with pytest.raises(InputError, match="requests.sample_seed 3 is read only with requests.sample"):
        RequestSettings(sample_seed=3)


def test_choices(tmp_path):
    file, ids = tmp_path / "p.jsonl", tmp_path / "ids"
    file.write_text("".join(f'{{"uid": "u{i}", "prompt": "p"}}\n' for i in range(9)))

    def uids(**settings):
        return [r.uid for r in read(RequestSettings(**settings), prompts=str(file))]

    assert uids(first=2) == ["u0", "u1"]
    assert uids(sample=3) == uids(sample=3) != uids(sample=3, sample_seed=1) and len(uids(sample=3)) == 3
    for text in ('{"image": ["u7", "u2"]}', '["u2", "u7"]', "u2\nu7\n"):
        ids.write_text(text)
        assert uids(ids=str(ids)) == ["u2", "u7"]
    ids.write_text("u2\ngone")
    with pytest.raises(InputError, match="names 1 uids that are not there .first: gone"):
        uids(ids=str(ids))
    file.write_text('{"uid": "user 1", "prompt": "p"}\n{"uid": "user", "prompt": "p"}\n')
    ids.write_text("\n user 1 \r\n\n")
    assert uids(ids=str(ids)) == ["user 1"], "a uid may hold blanks"
    with pytest.raises(InputError, match="two ways to choose"):
        RequestSettings(first=1, sample=1)


def test_pictures_are_checked(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    file = tmp_path / "a.png"
    Image.fromarray(noise).save(file)
    facts = check_picture(file, size=(12, 8))
    assert (facts.width, facts.height, facts.frames) == (12, 8, 1)
    assert facts.contrast == pytest.approx(np.asarray(Image.fromarray(noise).convert("L")).std())
    with pytest.raises(Faulty, match="12x8 pixels in place of 8x12"):
        check_picture(file, size=(8, 12))
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(Faulty, match="not decodable"):
        check_picture(file, size=(12, 8))
    Image.new("RGB", (12, 8), "black").save(file)
    with pytest.raises(Faulty, match="blank"):
        check_picture(file, size=(12, 8))


def test_pictures_that_look_alike(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(3)]
    pictures.append(pictures[1].point(lambda level: level * 0.9))  # the same, a little darker
    assert near_pairs([difference_hash(picture) for picture in pictures]).tolist() == [
        False,
        True,
        False,
        True,
    ]
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for picture, file in zip(pictures, files, strict=False):
        picture.save(file)
    assert contact_sheet(files * 3).size == (8 * 160, 2 * 160)


def test_a_bad_row_costs_its_neighbours_nothing_and_is_made_again(tmp_path):
    requests = [request(f"u{i}", f"prompt {i}") for i in range(5)] + [
        request("long", "x" * 50),
        request("none", ""),
    ]
    broken = Sketch(batch=3, bad=["prompt 1"], black=["prompt 4"])
    with pytest.raises(
        NumericError, match="2 of 7 rows failed .first: d/u1: RuntimeError: a prompt that breaks"
    ):
        draw(tmp_path / "o", requests, broken)
    assert not (tmp_path / "o/manifest.json").exists() and sorted(broken.drawn) == ["u0", "u2", "u3", "u4"]
    table = artifacts.read_file(tmp_path / "o/index.parquet")
    assert table["status"].to_pylist() == ["made", "failed", "made", "made", "failed", "refused", "refused"]
    assert table["reason"].to_pylist()[1:7:3] == [
        "RuntimeError: a prompt that breaks the model",
        "blank (contrast 0.00 of 255)",
    ]
    (tmp_path / "o/files/d/u2.png").write_bytes(b"cut short")
    sound = Sketch(batch=3)
    requests[0] = replace(requests[0], prompt="another")
    draw(tmp_path / "o", requests, sound)
    assert sorted(sound.drawn) == ["u0", "u1", "u2", "u4"]
    rows = artifacts.read(tmp_path / "o", artifacts.MEDIA).to_pylist()
    assert [row["status"] for row in rows] == ["made"] * 5 + ["refused"] * 2
    assert [row["reason"] for row in rows[5:]] == ["too long", "the prompt is empty"]
    assert {p.name for p in (tmp_path / "o").iterdir()} == {
        "contact_sheet.jpg", "files", "index.parquet", "log.txt", "manifest.json", "prompts.jsonl"
    }  # fmt: skip
    for row in rows[:5]:
        check_picture(tmp_path / "o" / row["path"], size=SIZE)


def test_the_index_has_the_seed_of_every_picture(tmp_path):
    requests = [request(f"u{i}", f"prompt {i}") for i in range(5)]
    with pytest.raises(NumericError, match="1 of 5 rows failed"):
        draw(tmp_path / "o", requests, Sketch(batch=4, per_seed=2, bad=["prompt 4"]))
    (tmp_path / "o/files/d/u1.png").unlink()
    draw(tmp_path / "o", requests, Sketch(batch=4, per_seed=2))
    rows = artifacts.read(tmp_path / "o", artifacts.MEDIA).to_pylist()
    own = [one.noise_seed(0) for one in requests]
    assert [row["seed"] for row in rows] == [own[0], own[1], own[2], own[2], own[1]]
    for row in rows:
        noise = np.random.default_rng(row["seed"]).integers(0, 256, (*SIZE, 3), np.uint8)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "o" / row["path"])), noise)


def test_rows_of_awkward_names_are_made_once_each(tmp_path):
    names = [("a", "b/c"), ("a/b", "c"), ("shard-00000", "of"), ("shard-x", "1"), ("x" * 200, "y" * 200)]
    requests = [replace(request(uid, "prompt"), dataset=dataset) for dataset, uid in names]
    broken = [*requests, request("bad", "bad")]
    with pytest.raises(NumericError, match="1 of 6 rows failed"):
        draw(tmp_path / "o", broken, Sketch(bad=["bad"]))
    sound = Sketch()
    draw(tmp_path / "o", broken, sound)
    assert sound.drawn == ["bad"], "every other row has a record of its own"
    rows = artifacts.read(tmp_path / "o", artifacts.MEDIA).to_pylist()
    assert [(row["dataset"], row["uid"]) for row in rows[:5]] == names and len(
        {row["path"] for row in rows}
    ) == 6


def test_nothing_more_is_tried_where_everything_fails(tmp_path):
    requests = [request(f"u{i}", "bad") for i in range(40)]
    maker = Sketch(batch=2, bad=["bad"])
    with pytest.raises(NumericError, match="the first 8 rows all failed"):
        draw(tmp_path / "o", requests, maker)
    assert len(list((tmp_path / "o/chunks").glob("*.json"))) == 8


def test_rows_behind_many_that_fail_are_reached_once_something_was_made(tmp_path):
    requests = [
        request("good", "good"),
        *(request(f"u{i}", "bad") for i in range(9)),
        request("last", "late"),
    ]
    for bad, left in ((["bad", "late"], 10), (["bad"], 9)):
        with pytest.raises(NumericError, match=f"{left} of 11 rows failed"):
            draw(tmp_path / "o", requests, Sketch(batch=1, bad=bad))
