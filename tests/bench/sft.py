"""Supervised fine-tuning: batches that compute every prefix once against a padded batch with the logits of every position.

python -m tests.bench.sft --examples data/industrial/examples/rqkmeans --model outputs/minionerec-industrial/vocab \
    --sids data/industrial/sids/rqkmeans
python -m tests.bench.sft               # the generated store, built here: a minute more
python -m tests.bench.sft --quick       # fewer windows

One step (loss and backward) on the same windows of the history_to_sid rows in this process, interleaved, best of --repeats:
a random 4-layer Qwen3 (hidden size 256) whose vocabulary has 152k rows besides. Checked: loss and every gradient within
1e-4 of the padded batch. The last line is one JSON object:

ratios  packed      tokens/s of whole examples in rows with the head on labels / of the padded batch
        user_tree   windows/s of user trees / of the padded batch
        memory      peak above weights and gradients of the padded batch / of user trees
values  startup_seconds, startup_cached_seconds    150k examples: rendered and tokenised; read again, with their batches planned
        padded_tokens, packed_tokens, tree_tokens  slots computed for the same windows
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from data import artifacts
from infer.engine import DecodeSettings, load_engine
from tests.bench import frame
from tests.bench.decode import TEXT_ROWS, interleaved
from train.sft import SftArgs
from train.supervised.batches import IGNORED, Batches
from train.supervised.rows import make_batches, units_of
from train.supervised.tokens import TokenRows, cached_rows
from train.supervised.trainer import answer_loss

STARTUP_EXAMPLES = 150_000
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "head_dim": 64,
}


def random_model(rows: int) -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=rows, num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=0, pad_token_id=0, **WIDE,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def padded_loss(model: Any, rows: TokenRows) -> torch.Tensor:
    """Sum of label losses the ordinary way: one right-padded batch, logits of every position."""
    shape = (len(rows), int(rows.lengths_N.max()))
    ids, labels, mask = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED), torch.zeros(shape)
    for n, (start, length, prompt) in enumerate(
        zip(rows.starts_N, rows.lengths_N, rows.prompts_N, strict=True)
    ):
        tokens = torch.from_numpy(rows.tokens_S[start : start + length].astype(np.int64))
        ids[n, :length], labels[n, prompt:length], mask[n, :length] = tokens, tokens[prompt:], 1
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def step(model: Any, loss: Callable[[], torch.Tensor]) -> float:
    """Loss of one forward and backward; gradients stay in the model."""
    model.zero_grad()
    value = loss()
    value.backward()
    return float(value.detach())


def peak_mib(flags: list[str], side: str) -> float:
    """Peak memory above weights and gradients of one step of `side`, in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.sft", *flags, "--side", side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def one_side(model: Any, loss: Callable[[], torch.Tensor]) -> float:
    """MiB above what is resident with gradients in place (Linux: the peak is reset first)."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_mib("VmRSS")
    loss().backward()
    return _status_mib("VmHWM") - before


def _status_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024


def startup(engine: Any, table: pa.Table) -> tuple[float, float]:
    """(seconds to render and tokenise STARTUP_EXAMPLES rows, seconds to read them again and plan an epoch)."""
    many = table.take(np.arange(STARTUP_EXAMPLES) % table.num_rows)
    seconds = []
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(2):
            start = time.perf_counter()
            rows = cached_rows(many, engine.renderer, Path(directory), content="bench")
            batches_of(engine, many, rows, layout="user_tree", windows=128)
            seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[1]


def batches_of(engine: Any, table: pa.Table, rows: TokenRows, *, layout: str, windows: int) -> Batches:
    args = SftArgs(model="", examples="", sids="", output_dir="", layout=layout, row_tokens=256)
    end = engine.renderer.terminator_ids()[-1]
    units = units_of(args, table, rows, end_id=end, step_windows=windows)
    return make_batches(args, table, units, step_windows=windows, seed=0)


def measure(args: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    """The bench's JSON object."""
    engine = load_engine(args.model, args.sids, args.examples, DecodeSettings(), device="cpu")
    table = artifacts.read(args.examples, artifacts.EXAMPLES, file="train.parquet")
    whole = table
    table = table.filter(pc.equal(table["task"], "history_to_sid"))
    with tempfile.TemporaryDirectory() as directory:
        rows = cached_rows(table, engine.renderer, Path(directory), content="bench")
    window_count = 24 if args.quick else 64
    tree = batches_of(engine, table, rows, layout="user_tree", windows=window_count)
    chosen = tree.units.members_N[
        np.isin(np.repeat(np.arange(len(tree.units)), tree.units.windows_U), tree.order[: tree.cuts[1]])
    ]
    table, rows = table.take(chosen), rows.take(chosen)
    model = random_model(TEXT_ROWS + len(engine.renderer.tokenizer)).train()
    losses: dict[str, Callable[[], torch.Tensor]] = {"padded": lambda: padded_loss(model, rows)}
    slots = {"padded": len(rows) * int(rows.lengths_N.max())}
    for layout in ("packed", "user_tree"):
        batch = batches_of(engine, table, rows, layout=layout, windows=2 * len(rows))
        only = batch.collate(np.arange(len(batch.units)))
        losses[layout], slots[layout] = lambda only=only: answer_loss(model, only), only["input_ids"].numel()
    if args.side:
        print(one_side(model, losses[args.side]))
        sys.exit(0)
    same, expected, gradients = True, 0.0, []
    for name, loss in losses.items():
        value = step(model, loss)
        found = [parameter.grad.clone() for parameter in model.parameters()]
        if name == "padded":
            expected, gradients = value, found
        same &= abs(value - expected) <= 1e-4 * abs(expected)
        pairs = zip(found, gradients, strict=True)
        same &= all(bool((a - b).abs().max() <= 1e-4 * b.abs().max()) for a, b in pairs)
    calls = {name: lambda loss=loss: step(model, loss) for name, loss in losses.items()}
    seconds, _ = interleaved(calls, args.repeats)
    print(
        f"{len(rows)} windows: " + ", ".join(f"{name} {1e3 * s:.0f} ms" for name, s in seconds.items()),
        flush=True,
    )
    peaks = {name: peak_mib(flags, name) for name in ("padded", "user_tree")}
    print(
        "peak above weights and gradients: " + ", ".join(f"{n} {m:.0f} MiB" for n, m in peaks.items()),
        flush=True,
    )
    first, again = startup(engine, whole)
    return {
        "bench": "sft",
        "same": same,
        "ratios": {
            "packed": round(seconds["padded"] / seconds["packed"], 1),
            "user_tree": round(seconds["padded"] / seconds["user_tree"], 1),
            "memory": round(peaks["padded"] / max(peaks["user_tree"], 1), 1),
        },
        "values": {
            "startup_seconds": round(first, 1),
            "startup_cached_seconds": round(again, 2),
            "padded_tokens": slots["padded"],
            "packed_tokens": slots["packed"],
            "tree_tokens": slots["user_tree"],
        },
        "threads": torch.get_num_threads(),
        "device": "cpu",
    }


def generated(root: Path) -> dict[str, Path]:
    """The generated store's examples and model, by the stages."""
    from tests import handmade

    raw, data = root / "raw", root / "data"
    sids, examples, model = data / "sids/x", data / "examples/x", root / "vocab"
    handmade.call("data.toy", "--size", "small", "--output_dir", raw)
    handmade.call(
        "data.prepare", "--config", "configs/toy/toystore/prepare.yaml", "--raw", raw, "--output_dir", data
    )
    items = artifacts.read_items(data).num_rows
    codes = np.stack(np.unravel_index(np.random.default_rng(0).permutation(256**2)[:items], (64, 64, 16)), 1)
    handmade.write_sids(sids, data=data, codes=codes.astype(np.int32), sizes=(64, 64, 16))
    handmade.call("preprocess.build_examples", "--data", data, "--sids", sids, "--output_dir", examples)
    handmade.call(
        "preprocess.init_base_model",
        "--config",
        "configs/toy/base_model.yaml",
        "--data",
        data,
        "--output_dir",
        root / "base",
    )
    handmade.call("preprocess.expand_vocab", "--model", root / "base", "--sids", sids, "--output_dir", model)
    return {"examples": examples, "model": model, "sids": sids}


def main() -> None:
    parser = frame.flags(__doc__, quick="24 windows instead of 64", repeats=3)
    for name in ("examples", "model", "sids"):
        parser.add_argument(f"--{name}", help=f"{name} directory; without all three the generated store")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        if not (args.examples and args.model and args.sids):
            for name, path in generated(Path(directory)).items():
                setattr(args, name, str(path))
        flags = [f"--{name}={getattr(args, name)}" for name in ("examples", "model", "sids")]
        frame.finish(measure(args, flags + (["--quick"] if args.quick else [])))


if __name__ == "__main__":
    main()
