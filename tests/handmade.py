"""A data set small enough to check by hand, written through the product's own output frame; programs as a user runs them."""

from __future__ import annotations

import ast
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import CodeType
from typing import Any, get_type_hints
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs import program
from configs.integrity import content_hash, sha256
from configs.program import ROOT
from data import artifacts
from data.reasoning import TaughtText, reasoning_table
from data.store.manifest import read_manifest, sealed
from data.store.output import open_output
from data.tids import tid_table
from preprocess.model.base_model import train_tokenizer

TITLES = [
    "Steel  bolt, 10 mm ",  # 0: whitespace to collapse
    "Steel nut",  # 1: shares its title with item 7, whose semantic ID is another
    'Brass "gold" washer {5}',  # 2: quotes and braces
    "",  # 3: no title
    "ab",  # 4: too short
    "Écrou en laiton 黄铜",  # 5: shares its semantic ID with item 6
    "Brass nut",  # 6
    "Steel nut",  # 7
    "Nail <|end|> gun",  # 8: a marker of a tokenizer
    "Hammer <a_1>",  # 9: a semantic ID
    "Wood glue",  # 10
    "Wood glue",  # 11: same title and same semantic ID as item 10
]
TERMS = [  # a TID per item
    ("steel bolt", "metric"), ("nut", "steel"), ("washer", "brass"), (), ("part",), ("nut", "brass"), ("nut", "brass", "small"),
    ("nut", "steel"), ("nail gun",), ("hammer",), ("glue",), ("glue",),
]  # fmt: skip
SIZES = (4, 3, 5)
CODES = np.array(
    [[0, 0, 0], [0, 1, 2], [1, 2, 4], [1, 0, 0], [1, 0, 1], [2, 2, 2], [2, 2, 2], [3, 0, 4], [3, 1, 1], [3, 2, 0],
     [2, 1, 3], [2, 1, 3]],
    np.int32,
)  # fmt: skip
SEQUENCES: list[tuple[str, int, list[int], int]] = [  # split, user, history, target
    ("train", 0, [0], 1),
    ("train", 0, [0, 1], 2),
    ("train", 0, [0, 1, 2], 2),
    ("train", 1, [5, 6, 7, 8, 9], 10),
    ("train", 2, [], 4),
    ("valid", 0, [0, 1, 2, 2], 3),
    ("valid", 1, [5, 6, 7, 8, 9, 10], 11),
    ("test", 0, [0, 1, 2, 2, 3], 6),
]


@dataclass
class Made:
    """The configuration that the manifests of hand-made outputs record."""

    what: str = "by hand"
    overwrite: bool = False


def write_data(
    directory: Path,
    *,
    titles: Sequence[str] = TITLES,
    sequences: Sequence[tuple[str, int, list[int], int]] = SEQUENCES,
) -> Path:
    """A prepared data set."""
    count = len(titles)
    items = {
        "item_id": pa.array(range(count), pa.int32()),
        "raw_id": [f"B{i:04d}" for i in range(count)],
        "title": list(titles),
        "description": [f"A long description of item number {i}." for i in range(count)],
        "categories": pa.array([["Industrial", "Fasteners"]] * count, artifacts.TEXT_LIST),
        "brand": ["Acme"] * count,
    }
    splits, users, histories, targets = zip(*sequences, strict=True)
    rows = {
        "example_id": pa.array(range(100, 100 + len(sequences)), pa.int64()),
        "user_id": pa.array(users, pa.int32()),
        "history": pa.array(histories, artifacts.INT_LIST),
        "target": pa.array(targets, pa.int32()),
        "split": pa.array(splits, pa.string()),
    }
    with open_output(Made(), "prepare", version=1, inputs={}, directory=directory) as out:
        out.write_table("items.parquet", pa.table(items))
        out.write_table("sequences.parquet", pa.table(rows))
    return directory


def write_sids(
    directory: Path, *, data: Path | None, codes: np.ndarray = CODES, sizes: tuple[int, ...] = SIZES
) -> Path:
    """Semantic IDs; with `data` their manifest records the data set that they were made from."""
    table = {"item_id": pa.array(range(len(codes)), pa.int32()), "codes": artifacts.int_rows(codes)}
    with open_output(Made(), "assign_sids", version=1, inputs={"data": data}, directory=directory) as out:
        out.write_table("sids.parquet", pa.table(table))
        out.facts["sizes"] = list(sizes)
    return directory


def write_tids(directory: Path, *, data: Path, terms: Sequence[Sequence[str]] = TERMS) -> Path:
    """Textual identifiers of the items."""
    table = tid_table(terms, ["keywords" if row else "no_caption" for row in terms])
    with open_output(Made(), "generate_tids", version=1, inputs={"data": data}, directory=directory) as out:
        out.write_table("tids.parquet", table)
    return directory


def write_taught(directory: Path, *, data: Path, kind: str, texts: dict[int, str], **changes: Any) -> Path:
    """Texts of a teacher by the example id of their row, which says split and target; `changes` to all rows."""
    rows = {row["example_id"]: row for row in artifacts.read_sequences(data).to_pylist()}
    made = [
        TaughtText(
            **{
                "key": key, "kind": kind, "split": rows[key]["split"], "text": text, "teacher": "heuristic:test",
                "prompt_sha256": "", "status": "ok", "attempts": 1, "target": rows[key]["target"],
            }
            | changes
        )
        for key, text in texts.items()
    ]  # fmt: skip
    with open_output(Made(), "teach", version=1, inputs={"data": data}, directory=directory) as out:
        out.write_table("reasoning.parquet", reasoning_table(made))
    return directory


def resign(directory: Path, **changes: Any) -> Path:
    """Make the manifest of an output true to its files after a test edited them; `changes` replace keys of it."""
    record = read_manifest(directory) | changes
    kept = [name for name in record["files"] if (directory / name).exists()]
    files = {
        name: {"bytes": (directory / name).stat().st_size, "sha256": sha256(directory / name)}
        for name in kept
    }
    record |= {
        "files": files,
        "content_hash": content_hash({name: entry["sha256"] for name, entry in files.items()}),
    }
    (directory / "manifest.json").write_text(json.dumps(sealed(record)))
    return directory


def call(module: str, *arguments: object) -> None:
    """What `python -m module arguments` does, in this process: an import of torch costs seconds. Raises its errors."""
    program_module = import_module(module)
    args_class = get_type_hints(program_module.main)["args"]
    args, _ = program.parse(args_class, [str(argument) for argument in arguments])
    with suppress(program.AlreadyComplete):
        program_module.main(args)


def environment(**variables: str) -> dict[str, str]:
    """The variables of a program under test: quiet, one thread, our packages first."""
    return os.environ | {"QUIET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | variables


@cache
def started(module: str) -> CodeType:
    """What stands below `if __name__ == "__main__":`, to be run where the module lies already: its arguments are known there."""
    path = Path(import_module(module).__file__)
    last = ast.parse(path.read_text()).body[-1]
    assert ast.unparse(last.test) == "__name__ == '__main__'", f"{path} ends otherwise"
    return compile(ast.Module(last.body, []), str(path), "exec")


def run(module: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python -m module arguments` from the repository root, quietly, in this process: its output and its exit code."""
    argv = [module, *(str(argument) for argument in arguments)]
    handlers = {number: signal.getsignal(number) for number in program.STOP_SIGNALS}
    with (
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as errors,
        chdir(ROOT),
        patch.object(sys, "argv", argv),
        patch.dict(os.environ, {"QUIET": "1"} | variables),
    ):
        try:
            exec(started(module), vars(import_module(module)))
        except SystemExit as left:
            code = left.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return subprocess.CompletedProcess(argv, code, out.getvalue(), errors.getvalue())


def process(module: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own, where that is the point: time zones, locks, threads."""
    return subprocess.run(
        [sys.executable, "-m", module, *(str(argument) for argument in arguments)],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=300,
    )


def succeed(module: str, *arguments: object) -> str:
    """Stdout of a run that must exit with 0."""
    done = run(module, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refuse(module: str, *arguments: object, code: int = 2) -> str:
    """The one line of stderr of a run that must exit with `code`."""
    done = run(module, *arguments)
    lines = done.stderr.strip().splitlines()
    assert (done.returncode, len(lines)) == (code, 1), (done.returncode, done.stderr)
    assert lines[0].startswith(f"ERROR {code}: ")
    return lines[0]


def tokenizer(kind: str) -> Any:
    """`ours` (chat template, pad token), `gpt2` (byte-level, no template, no pad), `llama` (metaspace, bos, template)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [title for title in TITLES if "<" not in title] * 3 + [
        "sid of: title of: next: Which item will they choose next?"
    ]
    if kind == "ours":
        return train_tokenizer(iter([texts]), vocab_size=400, max_positions=512)
    if kind == "gpt2":
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer, bpe.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        special, alphabet = ["<|endoftext|>"], pre_tokenizers.ByteLevel.alphabet()
    else:
        bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        bpe.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        special, alphabet = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))], []
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    if kind == "gpt2":
        return PreTrainedTokenizerFast(
            tokenizer_object=bpe, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
        )
    bpe.post_processor = processors.TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    return made


def prepared(
    folder: Path,
    *,
    items: int = 200,
    untitled: int = 0,
    timed: float = 1.0,
    histories: tuple[int, ...] = (1, 2, 3),
    **split: Any,
) -> Path:
    """What a plan reads of a data set: the counts of stage 01, and train rows with histories of those lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {"items": items, "users": 50, "train": 900, "valid": 50, "test": 50}
    facts = {"funnel": {"items_without_title": untitled, "share_with_time": timed}}
    (folder / "manifest.json").write_text(
        json.dumps({"counts": counts, "facts": facts, "config": {"split": split}})
    )
    rows = {
        "split": ["train"] * len(histories) + ["test"],
        "history": [[0] * size for size in (*histories, 99)],
    }
    pq.write_table(pa.table(rows), folder / "sequences.parquet")
    return folder
