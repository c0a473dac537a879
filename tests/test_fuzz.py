"""Every file format that is read, damaged at random: one line that says what is wrong, or the right values; never a bug's traceback.

A reader may refuse (a ProgramError with exit 2, 3 or 4) or answer. Where the format or our manifest carries a checksum, what it
answers is what was written; where a person may write the file, what an independent reader finds in it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

from configs import overlays, parallel
from configs.program import ROOT, ProgramError, classify
from data import artifacts
from data.adapters import amazon, tables
from data.adapters.options import AmazonOptions, TableFile, TablesOptions
from data.prepare import PrepareArgs
from data.releases import answers, index, minionerec, sidreasoner, text
from data.sid import read_sids, read_vocab
from data.store import checkpoints, fingerprints, manifest, output
from data.store.output import open_output
from infer import recommend
from infer.chat import journal
from infer.tables import published, results
from preprocess.examples import corpora
from preprocess.teacher import captions, foreign
from rq.stack import residual
from rq.vectors import external
from tests import handmade, tiny
from tests.damage import NASTY, damage


@dataclass(frozen=True)
class Format:
    """write(folder) -> the file that is damaged; read(folder) -> what is found in it; same(found, the undamaged one's, bytes) ->
    whether that is right."""

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    same: Callable[[Any, Any, bytes], bool] = lambda found, whole, raw: True


def written(name: str, content: str | bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder / name

    return write


def equal(found: Any, whole: Any, raw: bytes) -> bool:
    return found == whole


def as_json(found: Any, whole: Any, raw: bytes) -> bool:
    """What the library finds, NaN being equal to itself."""
    return repr(found) == repr(json.loads(raw))


def as_records(found: Any, whole: Any, raw: bytes) -> bool:
    lines = [json.loads(line) for line in raw.decode().splitlines() if line.strip()]
    return repr(found) == repr(lines)


def table(columns: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, write_page_checksum=True)
    return file.getvalue()


WHOLE = table({"x": list(range(99))})


def pages_hold(found: Any, whole: Any, raw: bytes) -> bool:
    """Every page has its checksum; the names and types in the footer have none."""
    footer = len(WHOLE) - 8 - int.from_bytes(WHOLE[-8:-4], "little")
    return found == whole or raw.startswith(WHOLE[:footer])


def array(made: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, made)
    return file.getvalue()


ROWS = [{"input": "a", "output": f"<a_{n}>", "predict": [f"<a_{n}>", "<a_9>"]} for n in range(3)]
LINES = "".join(
    json.dumps({"instruction": f"ask {n}", "input": "", "output": "say"}) + "\n" for n in range(4)
)
REVIEWS = "".join(
    json.dumps({"reviewerID": f"u{n % 2}", "asin": f"B{n}", "overall": 5.0, "unixReviewTime": 1_400_000_000 + n}) + "\n" for n in range(6)
)  # fmt: skip
ANSWERS = "".join(json.dumps({"key": f"{n}", "status": "ok", "text": "yes"}) + "\n" for n in range(3))
RAW_IDS = ["B0", "B1", "B2"]
PUBLISHED = "".join((ROOT / "configs/minionerec/published.csv").read_text().splitlines(keepends=True)[:9])
CSV = "user_id,history_item_id,item_id\n" + "".join(f'A{n},"[1, 2, {n}]",{n}\n' for n in range(4))
TALES = "history_item_sid,item_sid\n" + "".join(f"\"['<a_{n}>']\",<a_{n}>\n" for n in range(4))


def within(found: Any, whole: Any, raw: bytes) -> bool:
    """Vectors are finite, one row of the same width per item."""
    return found.shape == whole.shape and bool(np.isfinite(found).all())


def codes_of(found: Any, whole: Any, raw: bytes) -> bool:
    """An index answers with the codes that its texts spell, item by item."""
    names = {key: "".join(tokens) for key, tokens in json.loads(raw).items()}
    spelled = {
        name: "".join(f"<{'abc'[at]}_{code}>" for at, code in enumerate(row)) for name, row in found.items()
    }
    return spelled.keys() == names.keys() and all(
        names[name].startswith(row) for name, row in spelled.items()
    )


def read_codes(folder: Path) -> dict[str, list[int]]:
    found = index.read_index(folder / "x.index.json")
    return dict(zip(found.keys, found.codes_NL.tolist(), strict=True))


def quantizer(folder: Path) -> Path:
    """A quantizer directory whose weights no manifest knows: as one from elsewhere, or one whose damage was signed."""
    rng = np.random.default_rng(0)
    stack = residual.ResidualQuantizer(tuple(rng.normal(size=(4, 3)).astype(np.float32) for _ in range(2)))
    with open_output(handmade.Made(), "train_quantizer", version=1, inputs={}, directory=folder) as out:
        residual.save(out, stack, made_by={})
    return folder / residual.WEIGHTS


def signed(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """`read` of a directory whose manifest was made anew behind the damage: what is within must hold by itself."""

    def resigned(folder: Path) -> Any:
        handmade.resign(folder)
        return read(folder)

    return resigned


def raw_store(folder: Path) -> Path:
    rows = "user_id,item_id,order,timestamp\n" + "".join(
        f"{n % 2},{n % 3},{n // 2},{10 + n}\n" for n in range(6)
    )
    (folder / "items.csv").write_text("item_id,title\n0,zero\n1,one\n2,two\n")
    return written("interactions.csv", rows)(folder)


def read_tables(folder: Path) -> Any:
    chosen = TablesOptions(items=TableFile("items.csv"), interactions=TableFile("interactions.csv"))
    loaded, findings = tables.load(folder, chosen)
    return loaded, [str(finding) for finding in findings]


def told(found: Any, whole: Any, raw: bytes) -> bool:
    """What is wrong in words, or the rows that another reader counts (lines of nothing are no rows, before the names neither)."""
    loaded, findings = found
    if findings:
        return True
    return len(loaded.user) == len([line for line in csv.reader(io.StringIO(raw.decode())) if line]) - 1


def vectors(file: Path, keyed: str, ids: str | None = None) -> np.ndarray:
    return external.external_vectors(str(file), ids=ids, first_row=0, keyed_by=keyed, raw_ids=RAW_IDS)[0]


def log_of(folder: Path) -> Path:
    (folder / "sft").mkdir()
    return written("metrics.jsonl", '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')(folder / "sft")


def vocab_of(folder: Path) -> Path:
    from data.sid import write_vocab

    write_vocab(folder, tiny.vocabulary((3, 2)))
    return folder / "sid_vocab.json"


def sids_of(folder: Path) -> Path:
    handmade.write_sids(folder, data=None)
    return folder / "sids.parquet"


def reviews(folder: Path) -> Any:
    return amazon.dump.read_reviews(
        [folder / "reviews.json"], AmazonOptions(format=2018, max_bad_share=0.99)
    ).item_ids


FORMATS = {
    "parquet": Format(
        written("t.parquet", WHOLE),
        lambda d: artifacts.read_file(d / "t.parquet").to_pydict(),
        pages_hold,
    ),
    "parquet sids": Format(sids_of, lambda d: read_sids(d).codes_NL.tolist(), equal),
    "parquet sids signed": Format(sids_of, signed(lambda d: read_sids(d).codes_NL.tolist())),
    "parquet allowed": Format(
        written("a.parquet", table({"item_id": [0, 2]})),
        lambda d: recommend.read_allowed_file(str(d / "a.parquet"), 3).tolist(),
        equal,
    ),
    "parquet vectors": Format(
        written("v.parquet", table({"raw_id": RAW_IDS, "embedding": [[1.0, 2.0]] * 3})),
        lambda d: vectors(d / "v.parquet", "auto"),
        within,
    ),
    "json": Format(
        written("x.json", '{"a": [1, 2.5, "x"], "b": null}'), lambda d: text.read_json(d / "x.json"), as_json
    ),
    "json index": Format(
        written("x.index.json", '{"0": ["<a_1>", "<b_2>"], "1": ["<a_0>", "<b_3>"]}'), read_codes, codes_of
    ),
    "json manifest": Format(sids_of, lambda d: (manifest.read_manifest(d) or {}).get("content_hash")),
    "json mark": Format(written("COMPLETE.json", '{"step": 1, "files": {}}'), checkpoints.fault),
    "json record": Format(
        written("r.json", '{"a": 1}'), lambda d: fingerprints.read_record(d / "r.json"), as_json
    ),
    "json vocabulary": Format(vocab_of, lambda d: read_vocab(d).to_json()),
    "json captions": Format(
        written("c.json", '{"B0": "a bolt", "B1": "a nut"}'),
        lambda d: captions.read_captions(d / "c.json").texts,
    ),
    "json terms": Format(
        written("t.json", '[{"id": "B0", "tid": ["bolt", "steel"]}]'),
        lambda d: foreign.read_item_terms(d / "t.json"),
    ),
    "json registry": Format(
        lambda d: (written("x.json", LINES)(d), written("r.json", '{"x": {"file_name": "x.json"}}')(d))[1],
        lambda d: corpora.read_registry(d / "r.json", ["x"]),
    ),
    "json answers": Format(written("p.json", json.dumps(ROWS)), lambda d: answers.read_answers(d / "p.json")),
    "json lines": Format(
        written("x.jsonl", LINES), lambda d: list(corpora.read_records(d / "x.jsonl")), as_records
    ),
    "json journal": Format(written("a.jsonl", ANSWERS), lambda d: journal.read_results(d / "a.jsonl")),
    "json log": Format(log_of, results.read_logs),
    "json dump": Format(written("reviews.json", REVIEWS), reviews),
    "yaml": Format(
        written("a.yaml", "adapter: amazon\noutput_dir: x\n"),
        lambda d: overlays.merged(PrepareArgs, ["--config", str(d / "a.yaml")]),
    ),
    "yaml accelerate": Format(
        written("a.yaml", "distributed_type: MULTI_GPU\n"), lambda d: parallel.read_config(d / "a.yaml")
    ),
    "csv": Format(raw_store, read_tables, told),
    "csv release": Format(written("x.csv", CSV), lambda d: list(minionerec.read_csv_rows(d / "x.csv"))),
    "csv texts": Format(written("x.csv", TALES), lambda d: sidreasoner._lines(d / "x.csv")),
    "csv published": Format(
        written("p.csv", PUBLISHED),
        lambda d: published.read_published(d / "p.csv", dataset="office", split="test"),
    ),
    "npy": Format(
        written("v.npy", array(np.ones((3, 2), np.float32))),
        lambda d: vectors(d / "v.npy", "item_id"),
        within,
    ),
    "npy ids": Format(
        lambda d: (
            written("v.npy", array(np.ones((3, 2), np.float32)))(d),
            written("i.npy", array(np.array(RAW_IDS)))(d),
        )[1],
        lambda d: vectors(d / "v.npy", "auto", ids=str(d / "i.npy")),
        within,
    ),
    "safetensors": Format(quantizer, lambda d: residual.load(d)[0].tensors()["codebook_1"].tolist(), equal),
    "safetensors signed": Format(
        quantizer, signed(lambda d: residual.load(d)[0].tensors()["codebook_1"]), within
    ),
}


@pytest.fixture(autouse=True)
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_git_state", dict)


def held(format_: Format, change: Callable[[bytes], bytes], folder: Path) -> None:
    """Damage the file and read it: refused in one line, or right."""
    file = format_.write(folder)
    whole, raw = format_.read(folder), change(file.read_bytes())
    file.write_bytes(raw)
    try:
        found = format_.read(folder)
    except ProgramError as error:
        code, line = classify(error)
        assert code in (2, 3, 4) and "\n" not in line and len(line) < 1000, line
        return
    assert format_.same(found, whole, raw), found


def fuzzed(name: str, examples: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    @settings(
        max_examples=examples,
        derandomize=examples < 100,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(change=damage())
    def hold(change: Callable[[bytes], bytes]) -> None:
        held(FORMATS[name], change, tmp_path_factory.mktemp("fuzz"))

    hold()


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_refused_or_read_right(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    fuzzed(name, 6, tmp_path_factory)
    for made in NASTY[list(FORMATS).index(name) % 4 :: 4]:
        held(FORMATS[name], lambda whole, made=made: made, tmp_path_factory.mktemp("nasty"))


@pytest.mark.parametrize("at", [0, 32, 41])
def test_a_line_of_nothing_is_no_row(at: int, tmp_path: Path) -> None:
    """Before the names of the columns, behind them and between rows: csv.DictReader takes the first for columns without names."""
    file = raw_store(tmp_path)
    whole, text = read_tables(tmp_path), file.read_bytes()
    assert at == 0 or text[at - 1 : at] == b"\n"
    file.write_bytes(text[:at] + b"\n" + text[at:])
    found = read_tables(tmp_path)
    assert told(found, whole, file.read_bytes()) and found[0].user.tolist() == whole[0].user.tolist()


@pytest.mark.long
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_at_length(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    fuzzed(name, 1500, tmp_path_factory)
    for made in NASTY:
        held(FORMATS[name], lambda whole, made=made: made, tmp_path_factory.mktemp("nasty"))
