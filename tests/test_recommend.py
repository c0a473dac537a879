"""infer.recommend: the same predictions however the work is cut, kept when it is interrupted, refused when a part is missing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from configs.program import ROOT, InputError
from data.artifacts import EXAMPLES, INT_LIST
from data.predictions import prediction_files, read_predictions
from infer.recommend import RecommendArgs
from infer.work import shards
from infer.work.decoding import selected_rows
from tests import handmade
from tests.agreement import disagreement

FLAGS = ["--decode.beams", "12", "--decode.batch_size", "8", "--chunk_rows", "16", "--device", "cpu"]
THINK = ["--mode", "think", "--think.max_tokens", "5", "--think.thoughts", "2", "--think.temperature", "1"]


def flags(chain, output: Path, *more: object) -> list[object]:
    return [*chain.flags(), "--output_dir", output, *FLAGS, *more]


def rows(directory: Path) -> pa.Table:
    """All parts, checked for completeness, as one table."""
    return pa.concat_tables([pq.read_table(path) for path in prediction_files(directory)]).combine_chunks()


def agree(one: Path, other: Path) -> bool:
    """The same rows in the same order but for ties: other processes and other chunks round otherwise."""
    rankings: list[dict[int, list]] = [{}, {}]
    for directory, ranked in zip((one, other), rankings, strict=True):
        for row in rows(directory).to_pylist():
            key = (tuple(row["codes"]), tuple(row["item_ids"]))
            assert row["rank"] == 1 + len(ranked.setdefault(row["example_id"], []))
            ranked[row["example_id"]].append((key, row["score"]))
    assert list(rankings[0]) == list(rankings[1]) and rows(one).schema == rows(other).schema
    faults = [disagreement(ranking, rankings[1][example]) for example, ranking in rankings[0].items()]
    return not any(faults)


def manifest(directory: Path) -> dict:
    return json.loads((directory / "manifest.json").read_text())


def environment(**variables: str) -> dict[str, str]:
    return os.environ | {"QUIET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | variables


@pytest.fixture(scope="module")
def whole(chain, tmp_path_factory) -> Path:
    """One process, no interruption."""
    output = tmp_path_factory.mktemp("whole") / "model.test"
    handmade.call("infer.recommend", *flags(chain, output))
    return output


def test_one_process_answers_every_row_and_says_how(chain, whole):
    table, examples = rows(whole), pq.read_table(chain.examples / "test.parquet")
    wanted = [row["example_id"] for row in examples.to_pylist() if row["task"] == "history_to_sid"]
    assert table["example_id"].to_pylist() == [example for example in wanted for _ in range(12)]
    assert read_predictions(whole)[1]["counts"] == {"examples": len(wanted), "predictions": table.num_rows}
    assert pq.ParquetFile(prediction_files(whole)[0]).num_row_groups == -(-len(wanted) // 16)
    facts = manifest(whole)["facts"]
    settings = {
        "beams": 12, "score_space": "full", "temperature": 1.0, "repetition_penalty": 1.0, "length_penalty": 0.0,
        "terminator": False, "penalise": "logprobs", "strategy": "beam", "decode_seed": 0, "mode": "direct",
        "batch_size": 8, "batch_tokens": 32768, "max_prompt": None, "max_rows": None, "split": "test",
    }  # fmt: skip
    assert settings.items() <= facts.items() and facts["users_per_second"] > 0
    assert sorted(path.name for path in whole.iterdir() if not path.name.startswith(".")) == [
        "log.txt",
        "manifest.json",
        "predictions-00000-of-00001.parquet",
    ]


def test_independent_shards_join_to_what_one_process_writes_and_a_missing_one_is_an_error(
    chain, whole, tmp_path
):
    output = tmp_path / "eval" / "model.test"
    refusal = handmade.refuse("infer.recommend", *flags(chain, output, "--of", 3))
    assert "3 of 3 shards are not done" in refusal and not output.exists()
    for shard in (2, 0):
        handmade.call("infer.recommend", *flags(chain, output, "--shard", shard, "--of", 3))
    with pytest.raises(InputError, match="1 of 3 shards are not done .first: 1"):
        handmade.call("infer.recommend", *flags(chain, output, "--of", 3))
    with pytest.raises(InputError, match="is unfinished"):
        read_predictions(output)
    with pytest.raises(InputError, match="holds another run"):
        handmade.call("infer.recommend", *flags(chain, output, "--shard", 1, "--of", 3, "--seed", 5))
    handmade.call("infer.recommend", *flags(chain, output, "--shard", 1, "--of", 3))
    handmade.call("infer.recommend", *flags(chain, output, "--of", 3))
    assert len(prediction_files(output)) == 3 and agree(output, whole)
    assert manifest(output)["facts"]["sids_sha256"] == manifest(whole)["facts"]["sids_sha256"]
    assert not (output / shards.FOLDER).exists() and not shards.claim_file(output).exists()
    # Finished: whoever asks again, in whatever cut, is told so and nothing changes.
    before = (output / "manifest.json").read_bytes()
    for more in ([], ["--of", 3], ["--shard", 0, "--of", 3]):
        handmade.call("infer.recommend", *flags(chain, output, *more))
    assert (output / "manifest.json").read_bytes() == before


def test_what_shards_left_can_be_gone_on_with_by_one_process(chain, whole, tmp_path):
    output = tmp_path / "model.test"
    handmade.call("infer.recommend", *flags(chain, output, "--shard", 1, "--of", 2))
    chunk = max((output / shards.FOLDER).glob("predictions-*.parquet"))
    stamp = chunk.stat().st_mtime_ns
    handmade.call("infer.recommend", *flags(chain, output, "--shard", 1, "--of", 2))
    assert chunk.stat().st_mtime_ns == stamp
    handmade.call("infer.recommend", *flags(chain, output))
    assert [path.name for path in prediction_files(output)] == ["predictions-00000-of-00001.parquet"]
    assert agree(output, whole)


def test_more_shards_than_chunks(chain, whole, tmp_path):
    for shard in range(8):  # six chunks
        handmade.call("infer.recommend", *flags(chain, tmp_path / "out", "--shard", shard, "--of", 8))
    handmade.call("infer.recommend", *flags(chain, tmp_path / "out", "--of", 8))
    found, _ = read_predictions(tmp_path / "out")
    assert agree(tmp_path / "out", whole) and len(found.example_ids_R) == 90


@pytest.fixture(scope="module")
def closed(chain, tmp_path_factory) -> Path:
    """One process, behind an empty think block."""
    output = tmp_path_factory.mktemp("closed") / "model.test"
    handmade.call("infer.recommend", *flags(chain, output, "--mode", "empty_think"))
    return output


def test_the_shell_stage_in_two_processes_writes_what_one_writes(chain, closed, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/toystore").symlink_to(chain.data)
    variables = {
        "PAPER": "toy", "DATASET": "toystore", "SIDS": "x", "DATA_ROOT": str(tmp_path / "data"), "RUN": "r", "NAME": "m",
        "OUTPUT_ROOT": str(tmp_path / "outputs"), "MODEL": str(chain.model), "NUM_GPUS": "2", "MODE": "empty_think",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(ROOT / "evaluate.sh"), *FLAGS],
        cwd="/", env=environment(**variables), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    output = tmp_path / "outputs/r/eval/m.test.empty_think"
    assert done.returncode == 0, done.stderr
    assert [path.name for path in prediction_files(output)] == [
        f"predictions-0000{i}-of-00002.parquet" for i in (0, 1)
    ]
    assert agree(output, closed)
    assert manifest(output)["counts"] == manifest(closed)["counts"]
    protocol = json.loads((output / "metrics/metrics.json").read_text())["protocol"]
    assert (
        protocol["mode"] == "empty_think"
        and protocol["repetition_penalty"] == 1.0
        and protocol["beams"] == 12
    )


def test_a_killed_run_goes_on_where_it_was(chain, whole, tmp_path):
    output = tmp_path / "model.test"
    small = flags(chain, output, "--chunk_rows", 1)
    run = subprocess.Popen(
        [sys.executable, "-m", "infer.recommend", *map(str, small)],
        cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(kept := sorted(output.glob(f"{shards.FOLDER}/predictions-*.parquet"))) < 3:
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (output / "manifest.json").exists()
    stamps = {path: path.stat().st_mtime_ns for path in kept}
    seen: dict[Path, int] = {}
    original = shards.write_part

    def look(out, plan, steps):
        seen.update({path: path.stat().st_mtime_ns for path in kept})
        original(out, plan, steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "write_part", look)
        handmade.call("infer.recommend", *small)
    assert seen == stamps  # finished chunks were not made again
    assert agree(output, whole)
    assert not list(output.rglob("*.tmp"))


def test_thoughts_and_beams_are_two_steps_on_disk(chain, tmp_path):
    """Interrupted between the steps, cut into shards or not: the same thoughts, the same predictions."""
    once, apart = tmp_path / "model.test.think", tmp_path / "apart.test.think"
    handmade.call("infer.recommend", *flags(chain, once, *THINK))
    with pytest.raises(InputError, match="only_thoughts True is read only with mode think"):
        handmade.call("infer.recommend", *flags(chain, apart, "--only_thoughts", "true"))
    handmade.call("infer.recommend", *flags(chain, apart, *THINK, "--only_thoughts", "true"))
    assert not (apart / "manifest.json").exists() and not list(apart.glob("predictions-*"))
    first = apart / shards.FOLDER / "thoughts-00000.parquet"
    stamp = first.stat().st_mtime_ns
    for shard in (0, 1):
        handmade.call("infer.recommend", *flags(chain, apart, *THINK, "--shard", shard, "--of", 2))
    assert first.stat().st_mtime_ns == stamp
    handmade.call("infer.recommend", *flags(chain, apart, *THINK, "--of", 2))
    assert agree(apart, once)
    thoughts = pq.read_table(once / "thoughts.parquet")
    assert thoughts.equals(pq.read_table(apart / "thoughts.parquet"))
    assert thoughts.schema.field("token_ids").type == INT_LIST
    examples = sorted(set(rows(once)["example_id"].to_pylist()))
    assert sorted(thoughts["example_id"].to_pylist()) == sorted(examples * 2)
    found = manifest(once)
    unfinished = np.mean([not done for done in thoughts["finished"].to_pylist()])
    assert found["counts"]["thoughts"] == 2 * len(examples)
    assert found["counts"]["forced_close"] == sum(not done for done in thoughts["finished"].to_pylist())
    assert found["facts"]["unfinished_thought_rate"] == pytest.approx(unfinished)
    assert found["facts"]["think_aggregate"] == "logsumexp" and found["facts"]["mode"] == "think"


def test_one_set_of_thoughts_serves_one_thought_several_and_a_race(chain, whole, tmp_path):
    """Taken or written, the first thought of a row is the same; the modes stand side by side in one table."""
    several = tmp_path / "eval" / "m.test.several"
    handmade.call("infer.recommend", *flags(chain, several, *THINK))
    once, single = [*THINK, "--think.thoughts", "1"], tmp_path / "eval" / "m.test.think"
    handmade.call("infer.recommend", *flags(chain, tmp_path / "written", *once))
    handmade.call("infer.recommend", *flags(chain, single, *once, "--thoughts", several))
    assert agree(single, tmp_path / "written")
    first = pq.read_table(several / "thoughts.parquet").filter(pc.field("thought_index") == 0)
    assert pq.read_table(single / "thoughts.parquet").equals(first)
    race = tmp_path / "eval" / "m.test.race"
    raced = [*THINK, "--mode", "race", "--think.aggregate", "max", "--thoughts", several]
    for shard in (0, 1):
        handmade.call("infer.recommend", *flags(chain, race, *raced, "--shard", shard, "--of", 2))
    handmade.call("infer.recommend", *flags(chain, race, *raced, "--of", 2))
    # The best score of any list, whichever it was, never loses to that of decoding without a thought.
    best, direct = (
        {row["example_id"]: row["score"] for row in rows(path).to_pylist() if row["rank"] == 1}
        for path in (race, whole)
    )
    assert best.keys() == direct.keys() and all(best[key] >= direct[key] - 1e-4 for key in best)
    assert any(best[key] > direct[key] + 1e-3 for key in best)
    with pytest.raises(InputError, match="has thoughts of think_temperature 1.0, this run is of 0.5"):
        handmade.call("infer.recommend", *flags(chain, tmp_path / "no", *once, "--think.temperature", "0.5", "--thoughts", several))  # fmt: skip
    with pytest.raises(InputError, match="has no 3 thoughts for each of these rows"):
        handmade.call("infer.recommend", *flags(chain, tmp_path / "no", *once, "--think.thoughts", "3", "--thoughts", several))  # fmt: skip
    shutil.copytree(whole, tmp_path / "eval" / "m.test")
    for name in ("m.test", "m.test.think", "m.test.race"):
        handmade.call(
            "infer.evaluate", "--predictions", tmp_path / "eval" / name, "--data", chain.data, "--sids", chain.sids,
            "--resamples", "20",
        )  # fmt: skip
    handmade.call(
        "infer.compare", "--runs", f"[{tmp_path}]", "--reference", "m", "--levels", "[item_level]", "--metrics", "[hr@5,ndcg@5]",
        "--lists", "[coverage,gini,unfinished_rate,invalid_rate]", "--output_dir", tmp_path / "table",
    )  # fmt: skip
    table = {row["name"]: row for row in json.loads((tmp_path / "table/compare.json").read_text())["table"]}
    assert set(table) == {"m", "m.think", "m.race"}
    assert table["m.race"]["cells"]["item_level/ndcg@5"]["p_value"] is not None
    unfinished = manifest(race)["facts"]["unfinished_thought_rate"]
    assert table["m.race"]["cells"]["all/unfinished_rate"]["value"] == unfinished > 0
    assert "all/unfinished_rate" not in table["m"]["cells"]
    assert (
        0 < table["m"]["cells"]["all/gini@10"]["value"] < 1
        and table["m"]["cells"]["all/invalid_rate"]["value"] == 0
    )
    text = (tmp_path / "table/compare.md").read_text()
    assert "COVERAGE@10 | GINI@10 | UNFINISHED_RATE | INVALID_RATE" in text and "mode race" in text


def test_the_empty_think_block_is_a_mode_of_its_own(whole, closed):
    assert manifest(closed)["facts"]["mode"] == "empty_think"
    assert not agree(closed, whole)


def test_a_list_of_allowed_items_is_the_whole_catalogue(chain, tmp_path):
    listed = [3, 11, 7, 30]
    pq.write_table(pa.table({"item_id": listed}), tmp_path / "stock.parquet")
    handmade.call("infer.recommend", *flags(chain, tmp_path / "out", "--allowed", tmp_path / "stock.parquet"))
    handmade.call(
        "infer.evaluate", "--predictions", tmp_path / "out", "--data", chain.data, "--resamples", 20
    )
    metrics = json.loads((tmp_path / "out/metrics/metrics.json").read_text())
    assert metrics["item_level/hr@10"] == metrics["item_level/hr@5"], (
        "a list of fewer than 5 is complete up to 10"
    )
    table = rows(tmp_path / "out")
    per_row: dict[int, set[int]] = {}
    for example, items in zip(table["example_id"].to_pylist(), table["item_ids"].to_pylist(), strict=True):
        per_row.setdefault(example, set()).update(items)
    assert per_row and all(items == set(listed) for items in per_row.values())
    pq.write_table(pa.table({"item_id": [1, 999]}), tmp_path / "stock.parquet")
    with pytest.raises(InputError, match="unknown item ids .999."):
        handmade.call(
            "infer.recommend", *flags(chain, tmp_path / "no", "--allowed", tmp_path / "stock.parquet")
        )
    pq.write_table(pa.table({"item": [1]}), tmp_path / "stock.parquet")
    with pytest.raises(InputError, match="no rows with a column item_id"):
        handmade.call(
            "infer.recommend", *flags(chain, tmp_path / "no", "--allowed", tmp_path / "stock.parquet")
        )


def test_every_setting_of_a_decode_changes_the_output_it_may_be_kept_as(chain, whole):
    with pytest.raises(InputError, match="decode.repetition_penalty 1.0 -> 1.1"):
        handmade.call("infer.recommend", *flags(chain, whole, "--decode.repetition_penalty", "1.1"))


def test_bad_arguments_are_refused():
    paths = {"model": "m", "sids": "s", "examples": "e", "output_dir": "o"}
    for bad, words in (
        ({"mode": "aloud"}, "unknown mode"),
        ({"shard": 1}, "give both"),
        ({"shard": 2, "of": 2}, "must lie in 0..1"),
        ({"of": 0}, "give both"),
        ({"of": 2, "mode": "think", "only_thoughts": True}, "joins finished shards"),
        ({"thoughts": "elsewhere"}, "thoughts elsewhere is read only with mode think or race"),
        ({"chunk_rows": 0}, "at least 1"),
        ({"max_rows": 0}, "at least 1"),
    ):
        with pytest.raises(InputError, match=words):
            RecommendArgs(**paths, **bad)


def test_shards_cover_every_chunk_once_whatever_their_number():
    for count in (1, 5, 16, 17, 100):
        for of in (1, 2, 3, 7, 40):
            plan = shards.Plan(np.arange(count), 4, of=of)
            chunks = [chunk for shard in range(of) for chunk in plan.chunks(shard)]
            assert chunks == list(range(plan.num_chunks))
            sizes = [len(plan.chunks(shard)) for shard in range(of)]
            assert max(sizes) - min(sizes) <= 1
            assert np.array_equal(np.concatenate([plan.rows(chunk) for chunk in chunks]), np.arange(count))


def test_streaming_reads_the_rows_asked_for(tmp_path, monkeypatch):
    """Batches smaller and larger than the chunks, gaps, and a last chunk that is short."""
    count = 50
    table = pa.table(
        {
            "example_id": pa.array(range(count), pa.int64()),
            "task": ["history_to_sid"] * count,
            "messages": pa.array([[]] * count, EXAMPLES.required["messages"]),
            "answer": pa.array([{"item_id": 1}] * count, EXAMPLES.required["answer"]),
            "history": pa.array([[1]] * count, INT_LIST),
            "target": pa.array([[1]] * count, INT_LIST),
            "weight": pa.array([1.0] * count, pa.float32()),
        }
    )
    pq.write_table(table, tmp_path / "e.parquet", row_group_size=13)
    positions = np.array([0, 3, 4, 11, 12, 13, 14, 29, 30, 48, 49])
    for batch in (1, 5, 64):
        monkeypatch.setattr(shards, "READ_ROWS", batch)
        plan = shards.Plan(positions, 3)
        for wanted in (range(4), (1, 3)):
            read = dict(
                shards.stream([tmp_path / "e.parquet"], ((chunk, plan.rows(chunk)) for chunk in wanted))
            )
            assert {chunk: rows["example_id"].to_pylist() for chunk, rows in read.items()} == {
                chunk: plan.rows(chunk).tolist() for chunk in wanted
            }


def test_an_empty_split_is_named():
    for rows, what in (([], "no rows at all"), (["title_to_sid"], "no history_to_sid rows")):
        with pytest.raises(InputError, match=f"x/valid.parquet has {what}"):
            selected_rows(
                pa.chunked_array([pa.array(rows, pa.string())]),
                max_rows=None,
                seed=0,
                where="x/valid.parquet",
            )
