"""Supervised fine-tuning at the shape of Qwen2.5-0.5B: user trees and packed rows beside a padded batch with all logits.

python -m tests.gpu.sft              # bfloat16 on CUDA, one JSON line
python -m tests.gpu.sft --tiny       # a small model in float32 wherever it runs

A random model, random users: an instruction of 24 tokens, up to 20 items of 3 codes, next item as answer, all windows of a
user. A step is forward, backward and Adam, best of a few; peak memory is that of the whole step, beside what
configs/memory.py foretells.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from configs.memory import GIB, MemoryPlan, Shape, estimate
from tests.test_sft_batches import token_rows
from train.scale.work import peak_here, work_of
from train.supervised.batches import IGNORED, Batches
from train.supervised.tokens import TokenRows
from train.supervised.trainer import answer_loss
from train.supervised.units import single_units, tree_units

QWEN = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
}  # fmt: skip
TINY = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
CODES, LEVELS, PROMPT, MOST = 256, 3, 24, 20


def windows(users: int, vocab: int, seed: int = 0) -> tuple[TokenRows, np.ndarray]:
    """(all windows of random users, whose they are)."""
    rng = np.random.default_rng(seed)
    first = vocab - CODES * LEVELS
    sequences, groups = [], []
    instruction = rng.integers(1, first, PROMPT).tolist()
    for user in range(users):
        codes = rng.integers(0, CODES, (int(rng.integers(4, MOST + 1)), LEVELS))
        items = (codes + first + CODES * np.arange(LEVELS)).tolist()
        for end in range(1, len(items)):
            history = [token for item in items[:end] for token in item]
            sequences.append((instruction + history, items[end]))
            groups.append(user)
    return token_rows(sequences), np.array(groups)


def random_model(shape: dict[str, int], vocab: int, device: str) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocab, max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0,
        pad_token_id=0, **shape,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).to(device).train()


def padded_loss(model: Any, rows: TokenRows, device: str) -> torch.Tensor:
    """Sum of label losses the ordinary way: one right-padded batch, logits of every position."""
    width = int(rows.lengths_N.max())
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for n in range(len(rows)):
        start, length, prompt = int(rows.starts_N[n]), int(rows.lengths_N[n]), int(rows.prompts_N[n])
        tokens = torch.from_numpy(rows.tokens_S[start : start + length].astype(np.int64))
        ids[n, :length], labels[n, prompt:length], mask[n, :length] = tokens, tokens[prompt:], 1
    ids, labels, mask = (tensor.to(device) for tensor in (ids, labels, mask))
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def losses_of(
    model: Any, rows: TokenRows, groups_N: np.ndarray, device: str
) -> dict[str, tuple[Callable[[], torch.Tensor], int, int]]:
    """{layout: (its loss, real tokens, slots)} of the same windows."""
    found: dict[str, tuple[Callable[[], torch.Tensor], int, int]] = {}
    tree = tree_units(rows, groups_N=groups_N, tasks_N=np.zeros(len(rows), np.int64), most=64)
    for name, units in (("user_tree", tree), ("packed", single_units(rows))):
        made = Batches(units, step_windows=len(rows), row_tokens=512, seed=None).collate(
            np.arange(len(units))
        )
        batch = {key: value.to(device) if torch.is_tensor(value) else value for key, value in made.items()}
        found[name] = (
            lambda batch=batch: answer_loss(model, batch), made["real_tokens"], made["input_ids"].numel()
        )  # fmt: skip
    real = int(rows.lengths_N.sum()) - len(rows)
    found["padded"] = (lambda: padded_loss(model, rows, device), real, len(rows) * int(rows.lengths_N.max()))
    return found


def measured(model: Any, loss: Callable[[], torch.Tensor], *, bf16: bool, repeats: int) -> dict[str, Any]:
    """Seconds of a step, its loss, and the peak memory in GiB; {"error"} where memory does not suffice."""
    cuda = next(model.parameters()).is_cuda
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=cuda)
    seconds, value = [], 0.0
    try:
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        for _ in range(repeats + 1):
            start = time.perf_counter()
            optimizer.zero_grad()
            with torch.autocast("cuda" if cuda else "cpu", torch.bfloat16, enabled=bf16):
                total = loss()
            total.backward()
            optimizer.step()
            value = float(total.detach())
            seconds.append(time.perf_counter() - start)
    except torch.cuda.OutOfMemoryError as error:
        return {"error": str(error).splitlines()[0][:120]}
    peak = round(torch.cuda.max_memory_allocated() / GIB, 2) if cuda else None
    return {"seconds": min(seconds[1:]), "loss": value, "peak_gib": peak}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--users", type=int, default=48)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape, vocab = (TINY, 2000) if args.tiny else (QWEN, 151_936)
    bf16 = device == "cuda"
    rows, groups = windows(4 if args.tiny else args.users, vocab)
    model = random_model(shape, vocab, device)
    work, peak, told = work_of(model), peak_here(bf16=bf16), {}
    for name, (loss, tokens, slots) in losses_of(model, rows, groups, device).items():
        found = measured(model, loss, bf16=bf16, repeats=1 if args.tiny else 5)
        if "seconds" in found:
            done = work(tokens=tokens, labels=rows.label_tokens) / found["seconds"]
            found |= {
                "windows_per_s": round(len(rows) / found["seconds"], 1), "tokens": tokens, "slots": slots,
                "tokens_per_s": round(tokens / found["seconds"], 1), "mfu": None if peak is None else round(done / peak, 4),
            }  # fmt: skip
            plan = MemoryPlan(tokens=slots, cached=0)
            found["foretold_gib"] = round(estimate(Shape.of(model.config.to_dict()), plan).total / GIB, 2)
        told[name] = found
    print(
        json.dumps(
            {"windows": len(rows), "parameters": model.num_parameters(), "bf16": bf16, "layouts": told}
        )
    )


if __name__ == "__main__":
    main()
