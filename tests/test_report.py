"""The results page of a small run: what it shows, that it is self-contained and escaped, what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from data.rows import read_rows
from data.sid import read_sids
from data.store.output import open_output, read_manifest
from infer.page import sections as page
from infer.tables import results
from rq.quality import charts
from tests.handmade import Made, call, refuse, resign, succeed, write_sids
from tests.store import HOSTILE, ITEMS, write_store
from tests.test_evaluate import BEAMS, CODES, prediction_table, write_run

VOID = {"meta", "br", "line", "circle", "rect", "polyline", "link", "img"}


class Checker(HTMLParser):
    """Balanced tags, and every attribute that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loads += [
            v for k, v in attrs if k in {"src", "href", "srcset", "data"} and not (v or "").startswith("#")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def train_stage(run: Path, name: str, lines: list[dict]) -> None:
    with open_output(Made(name), name, version=1, inputs={}, directory=run / name) as out:
        out.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    data = write_store(root / "store")
    sids = write_sids(root / "sids", data=data, codes=CODES, sizes=(5, 8))
    run = root / "run<b>1"
    call("infer.run_baselines", "--data", data, "--output_root", run / "eval", "--models", "[pop,itemknn]")
    train_stage(run, "sft_recommend", [{"step": s, "loss": 5.0 - s, "eval_loss": 4.5 - s} for s in (1, 2, 3)])
    train_stage(run, "grpo", [{"step": s, "reward": s / 10, "kl": s / 100} for s in (10, 20)])
    for split in ("valid", "test"):
        ids = read_rows(data, split, num_items=ITEMS).example_ids_R
        for seed, name in enumerate(("grpo", "sft_recommend")):
            write_run(
                run / "eval" / f"{name}.{split}", [prediction_table(ids, read_sids(sids), seed)], split=split
            )
        for name in ("pop", "itemknn", "sft_recommend", "grpo"):
            predictions = run / "eval" / f"{name}.{split}"
            call(
                "infer.evaluate",
                "--predictions",
                predictions,
                "--data",
                data,
                "--sids",
                sids,
                "--resamples",
                100,
            )
    return root, data, sids, run


def command(data: Path, sids: Path, run: Path, *more: object) -> tuple:
    common = ("infer.report", "--data", data, "--sids", sids, "--run", run, "--output_dir", run / "report")
    return (*common, *more)


def test_the_page_shows_what_the_stages_wrote(made):
    _, data, sids, run = made
    printed = succeed(*command(data, sids, run, "--users", 90)).splitlines()
    html = (run / "report" / "index.html").read_text()
    checker = Checker()
    checker.feed(html)
    assert (
        not checker.open and not checker.loads and not checker.tags & {"script", "iframe", "object", "link"}
    )
    assert "url(" not in html and "@import" not in html
    metrics = json.loads((run / "eval" / "grpo.test" / "metrics" / "metrics.json").read_text())
    for level in ("item_level", "sid_level"):
        assert f"{metrics[f'{level}/hr@10']['value']:.4f}"[1:] in html
    assert "HR@20" in html and "HR@50" not in html, "the baselines' longer lists, cut at 40 items"
    figures = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert figures == [
        "HR@10, item level", "NDCG@10, item level", "Reviews per month, by split", "Items per code, by level", "Loss",
        "Reward", "KL to the reference",
    ]  # fmt: skip
    assert html.count('<article class="story">') == 90
    assert f"not in the list of {BEAMS}" in html and "found at place" in html and "✓" in html
    assert "(no title, item B0002)" in html, "the source's id, not our number"
    assert re.search(
        r"review lines</th><td>750</td>.*width:100.0%.*\n.*final</th><td>727</td>.*width:96.9%", html
    )
    table = [line for line in printed if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[2:]] == ["pop", "itemknn", "sft_recommend", "grpo"]
    assert f"{metrics['item_level/ndcg@10']['value']:.4f} [" in table[-1]
    assert printed[-1] == f"page: {run / 'report' / 'index.html'}"


def test_models_are_called_what_they_are_and_masked_stands_beside_unmasked(made):
    _, data, sids, run = made
    call(*command(data, sids, run))
    html = (run / "report" / "index.html").read_text()
    valid = {
        name: json.loads((run / "eval" / f"{name}.valid" / "metrics" / "metrics.json").read_text())
        for name in ("grpo", "sft_recommend")
    }
    best = max(valid, key=lambda name: valid[name]["item_level/ndcg@10"]["value"])
    called = dict(re.findall(r"(\w+) <span class=\"called\">\((.*?)\)</span>", html))
    assert "newest" in called["grpo"] and "best on valid" in called[best] and set(called) == {"grpo", best}
    masked = json.loads((run / "eval" / "grpo.test" / "metrics" / "metrics.json").read_text())
    section = html.split("<h3>Masked:")[1].split("</table>")[0]
    assert f"{masked['item_level_unseen/hr@5']['value']:.4f}"[1:] in section
    assert f"<td>{masked['protocol']['rows_unseen']}</td>" in section


def test_what_the_page_says_of_valid_is_true(made, tmp_path):
    """One trained model of the table was measured on valid, beside floors and a teacher that are; a fusion has seen its rows."""
    _, data, sids, run = made
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "eval" / "sft_recommend.valid")
    place = copy / "eval" / "grpo.valid" / "metrics" / "metrics.json"
    values = json.loads(place.read_text())
    place.write_text(json.dumps(values | {"protocol": values["protocol"] | {"tuned_on": "valid"}}))
    resign(place.parent)
    call(*command(data, sids, copy))
    html = (copy / "report" / "index.html").read_text()
    assert (
        'grpo <span class="called">(the only trained one of these measured on valid, newest)</span>' in html
    )
    assert "<th>pop</th>" in html.split("<h3>Valid beside")[1].split("</table>")[0]
    assert "Weights or settings of grpo were fitted to these valid rows" in html
    call(*command(data, sids, run))
    assert "fitted to these valid rows" not in (run / "report" / "index.html").read_text()


def test_models_of_other_rows_stand_apart(made, tmp_path):
    """40 of the 90 rows: never in one table with the others, on the page and in print."""
    _, data, sids, run = made
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    ids = read_rows(data, "test", num_items=ITEMS).example_ids_R[:40]
    short = write_run(copy / "eval" / "short.test", [prediction_table(ids, read_sids(sids), 5)], max_rows=40)
    call("infer.evaluate", "--predictions", short, "--data", data, "--sids", sids, "--resamples", 50)
    printed = succeed(*command(data, sids, copy, "--model", "grpo"))
    first, second = re.split(r"\n(?=\| model)", printed.split("| model", 1)[1])
    assert "| grpo | 90 |" in first and "short" not in first
    assert "| short | 40 |" in second and "grpo" not in second
    html = (copy / "report" / "index.html").read_text()
    apart = html.split("On other rows (40)")[1].split("</table>")[0]
    assert "<th>short</th>" in apart and "grpo" not in apart and html.count("<th>short</th>") == 1


def test_hostile_titles_and_names_are_text(made):
    _, data, sids, run = made
    call(*command(data, sids, run, "--users", 90))
    html = (run / "report" / "index.html").read_text()
    assert HOSTILE not in html and "<script>" not in html
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &amp; Co" in html
    assert "<h1>run&lt;b&gt;1</h1>" in html


def test_an_unchanged_page_is_kept_and_still_prints_its_table(made):
    _, data, sids, run = made
    call(*command(data, sids, run))
    before = (run / "report" / "index.html").read_bytes()
    printed = succeed(*command(data, sids, run))
    assert "already complete" in printed and "| grpo |" in printed
    assert (run / "report" / "index.html").read_bytes() == before


def test_the_page_links_the_other_pages_of_its_run(made):
    """Quality page beside the runs, galleries below the run: relative addresses, and a new page is seen."""
    _, data, sids, run = made
    html = run / "report" / "index.html"
    succeed(*command(data, sids, run))
    assert "index.html" not in html.read_text()
    for folder in (run.parent / "quality" / data.name, run / "images", run / "videos/gallery 1"):
        folder.mkdir(parents=True)
        (folder / "index.html").write_text("<p>here</p>")
    succeed(*command(data, sids, run))
    links = re.findall(r'href="([^"#]*index.html)">([^<]*) ↗<', html.read_text())
    assert links == [
        (f"../../quality/{data.name}/index.html", "quality of semantic IDs"),
        ("../images/index.html", "images"),
        ("../videos/gallery%201/index.html", "videos/gallery 1"),
    ]
    for folder in ("images", "videos/gallery 1"):
        (run / folder / "index.html").unlink()
    (run.parent / "quality" / data.name / "index.html").unlink()


def test_metrics_of_other_predictions_or_data_are_refused(made, tmp_path):
    root, data, sids, run = made
    other = write_store(tmp_path / "other", [[0, 1, 2, 3]] * 5)
    assert "computed on another data set" in refuse(*command(other, sids, run))
    stale = tmp_path / "run"
    ids = read_rows(data, "test", num_items=ITEMS).example_ids_R
    table = prediction_table(ids, read_sids(sids), 5)
    predictions = write_run(stale / "eval" / "m.test", [table])
    call("infer.evaluate", "--predictions", predictions, "--data", data, "--resamples", 20)
    kept = shutil.copytree(predictions / "metrics", tmp_path / "kept")
    write_again = open_output(Made(overwrite=True), "recommend", version=2, inputs={}, directory=predictions)
    with write_again as out:
        out.facts |= {"split": "test"}
    assert not (predictions / "metrics").exists(), "metrics go with the predictions that they measure"
    shutil.copytree(kept, predictions / "metrics")
    assert "is of older predictions" in refuse(*command(data, sids, stale))
    assert "no metrics of model nope" in refuse(*command(data, sids, run, "--model", "nope"))
    assert "run evaluate.sh" in refuse(*command(data, sids, tmp_path / "empty"))


def test_rows_that_a_change_left_behind_stay_off_the_page(made, tmp_path, capsys):
    """Of the data or semantic IDs of before: named once, with what to do; a page of nothing else is refused."""
    root, data, sids, run = made
    changed = shutil.copytree(data, tmp_path / "changed")
    (changed / "note.txt").write_text("another state of the data")
    resign(changed, files=read_manifest(changed)["files"] | {"note.txt": {}})
    codes = write_sids(tmp_path / "sids", data=changed, codes=CODES[::-1].copy(), sizes=(5, 8))
    ids = read_rows(changed, "test", num_items=ITEMS).example_ids_R
    copy = shutil.copytree(run, tmp_path / "run")
    table = prediction_table(ids, read_sids(codes), 5)
    again = write_run(copy / "eval" / "again.test", [table], sids_sha256=read_sids(codes).sha256)
    old = write_run(copy / "eval" / "old.test", [table], sids_sha256="0" * 64)
    for predictions in (again, old):
        call("infer.evaluate", "--predictions", predictions, "--data", changed, "--resamples", 20)
    capsys.readouterr()
    call(*command(changed, codes, copy))
    told = capsys.readouterr()
    (warning,) = told.err.splitlines()
    assert warning.startswith(f"WARNING: left out of {copy}/eval: ")
    assert warning.endswith(" -> predict and measure again, or remove them")
    assert warning.count(f"(of another data set than {changed})") == 8
    assert f"old.test (of other semantic IDs than {codes})" in warning and again.name not in warning
    rows = [line.split("|")[1].strip() for line in told.out.splitlines() if line.startswith("| ")]
    assert rows[-1] == "again" and not {"pop", "itemknn", "old", "grpo"} & set(rows)
    shutil.rmtree(again)
    assert "other semantic IDs than" in refuse(*command(changed, codes, copy))


def test_a_broken_log_line_is_named_and_an_unfinished_one_is_not_read(tmp_path):
    stage = tmp_path / "sft"
    stage.mkdir()
    (stage / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "note": "text"}\n{"step": 2, "lo')
    log = results.read_logs(tmp_path)[0]
    assert (log.series, log.finished) == ({"loss": [(1, 2.0)]}, False)
    (stage / "metrics.jsonl").write_text('{"loss": 1}\n{"step": 2, "loss": 1.0}\n')
    with pytest.raises(Exception, match="metrics.jsonl:1 is not a log line"):
        results.read_logs(tmp_path)


def test_raw_reviews_over_time_are_kept_and_left_out(tmp_path):
    assert page.reviews_read(tmp_path) is None
    read = {"2019-11": 5, "2020-01": 7, "2020-02": 2}
    funnel = {"steps": [], "months_read": read, "months": {"2020-01": 4, "2020-02": 2}}
    (tmp_path / "funnel.json").write_text(json.dumps(funnel))
    figure = page.reviews_read(tmp_path)
    assert figure.caption == "Raw reviews per month, before any filter" and figure.names == [
        "kept",
        "left out",
    ]
    bars = re.findall(
        r'class="bar (s\d)" x="[\d.]+" y="[\d.]+" width="[\d.]+" height="([\d.]+)"', figure.chart
    )
    unit = float(bars[-1][1]) / 2
    assert [(kind, round(float(height) / unit)) for kind, height in bars] == [
        ("s1", 5),
        ("s0", 4),
        ("s1", 3),
        ("s0", 2),
    ]
    funnel["months_read"] = {"1938-04": 1, "2020-01": 7}
    (tmp_path / "funnel.json").write_text(json.dumps(funnel))
    assert page.reviews_read(tmp_path).caption == "Raw reviews per 9 months, before any filter"
    assert page.read_funnel(tmp_path).facts == []


def test_the_funnel_leaves_out_what_says_nothing(tmp_path):
    steps = [{"step": "review lines", "rows": 1200}, {"step": "final", "rows": 900, "users": 40, "items": 30}]
    raw = {
        "review_lines_broken": 0,
        "first_broken": None,
        "truncated_files": ["a", "b"],
        "months": {"2020-01": 900},
    }
    raw |= {"windows": {"train": 1800, "test": 2}, "metadata_lines": 1500, "share_with_time": 1.0}
    (tmp_path / "funnel.json").write_text(json.dumps({"steps": steps, **raw}))
    funnel = page.read_funnel(tmp_path)
    assert funnel.steps == steps
    assert funnel.facts == [
        ("truncated files", "a, b"), ("windows", "train 1,800, test 2"), ("metadata lines", "1,500")
    ]  # fmt: skip


def test_the_embedding_map_draws_every_item_once_in_the_colour_of_its_first_code(tmp_path):
    import numpy as np
    import pyarrow.parquet as pq

    from data.sid import SidTable
    from rq.quality.figures import sid_figures
    from rq.vectors.embedding_map import FILE, map_table

    table = SidTable(np.array([[0, 1], [0, 2], [3, 1], [3, 1]], np.int32), (4, 3))
    assert [figure.caption for figure in sid_figures(tmp_path, table)] == ["Items per code, by level"]
    xy = np.array([[0, 0], [0.1, 0], [5, 5], [np.nan, np.nan]], np.float32)
    pq.write_table(map_table(["a", "b", "c", "d"], xy), tmp_path / FILE)
    usage, drawn = sid_figures(tmp_path, table)
    assert usage.names == ["a: 2 of 4 codes used", "b: 2 of 3 codes used"]
    assert drawn.caption == "Embedding map: 3 items, coloured by first code"
    paths = re.findall(r'<path d="([^"]*)" stroke="(#[0-9a-f]{6})"', drawn.chart)
    assert [path.count("M") for path, _ in paths] == [2, 1] and paths[0][1] != paths[1][1]
    assert "nan" not in drawn.chart
    flat = charts.point_map([("#000000", [(1.0, 1.0)])], label="one")
    assert "M185.0 185.0h0" in flat


def test_charts_place_values_where_the_axis_says():
    frame = charts.Frame(0, 10, [0.0, 0.5, 1.0])
    assert frame.y(0.0) - frame.y(0.5) == pytest.approx(frame.y(0.5) - frame.y(1.0))
    assert frame.x(0) == charts.LEFT and frame.x(10) == charts.WIDTH - charts.RIGHT
    flat = charts.line_chart([charts.Line("a<b", [(1, 2.0), (2, 2.0)])], label='say "x" & <y>')
    assert 'aria-label="say &quot;x&quot; &amp; &lt;y&gt;"' in flat and "nan" not in flat
    assert charts.nice_ticks(3.0, 3.0)[0] <= 3.0
