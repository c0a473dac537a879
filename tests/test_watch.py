"""metrics.jsonl against its schema, and a running job on the screen."""

from __future__ import annotations

import json
import platform

import pytest

from configs.program import InputError
from infer.work import watching
from infer.work.metric_lines import fields_of, read_lines
from tests.handmade import Made, open_output, refuse, succeed

LINES = [
    {"step": 0, "eval_ndcg@10": 0.1},
    {"step": 5, "loss": 2.5, "grad_norm": None, "epoch": 0.5},
    {"step": 10, "loss": 2.0},
]


def written(file, lines, end="\n"):
    file.write_text("\n".join(map(json.dumps, lines)) + end)
    return file


def test_a_file_of_the_schema_is_read_and_a_line_just_being_written_is_left_out(tmp_path):
    file = written(tmp_path / "metrics.jsonl", LINES)
    assert list(read_lines(file)) == LINES and fields_of(file) == {
        "step",
        "eval_ndcg@10",
        "loss",
        "grad_norm",
        "epoch",
    }
    file.write_text(file.read_text() + '{"step": 12, "lo')
    assert list(read_lines(file)) == LINES


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"loss": 1.0}], ":1: no object with a step"),
        ([{"step": 3}, {"step": 2}], ":2: step 2 behind 3"),
        ([{"step": 3, "loss": "nan"}], "loss is 'nan'"),
        ([{"step": 3, "wall clock!": 1.0}], "no schema names: wall clock!"),
    ],
)
def test_what_is_no_metrics_file_is_named(tmp_path, lines, said):
    with pytest.raises(InputError, match=said):
        fields_of(written(tmp_path / "metrics.jsonl", lines))
    (tmp_path / "bad.jsonl").write_text("step 3\n")
    with pytest.raises(InputError, match=":1: no JSON"):
        list(read_lines(tmp_path / "bad.jsonl"))


def test_a_running_job_is_shown_until_nothing_runs(tmp_path, monkeypatch, capsys):
    run, looks = tmp_path / "run", []

    def twice(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        open_output(Made(), "sft", version=1, inputs={}, directory=run / "sft") as out,
    ):
        written(out.path / "metrics.jsonl", LINES)
        (out.path / "log.txt").write_text("step 10/40, 2.0 steps/s, 15 s left\n")
        monkeypatch.setattr(watching.time, "sleep", twice)
        watching.watch(run, every=3.0)
    shown = capsys.readouterr().out
    assert looks == [3.0, 3.0] and shown.count("running") == 2 and "10/40" in shown and "15 s" in shown
    assert "step       5  loss 2.5\n" in shown and "step      10  loss 2" in shown
    assert platform.node() not in shown
    left = succeed("infer.report", "--watch", run)
    assert "interrupted" in left and "step      10  loss 2" in left, "one look, then it ends by itself"


def test_a_page_and_a_watch_are_two_things(tmp_path):
    assert "missing: data, sids, output_dir" in refuse("infer.report", "--run", tmp_path)
    assert "watch and run are given" in refuse("infer.report", "--watch", tmp_path, "--run", tmp_path)
    assert "no outputs in" in refuse("infer.report", "--watch", tmp_path)
