"""Policy optimisation on the prompt tree against rows: every rollout its own row, whole-vocabulary logits, `generate`.

python -m tests.bench.grpo            # 4 prompts of 128 tokens, 16 rollouts
python -m tests.bench.grpo --quick    # 2 prompts of 64 tokens, 8 rollouts, for a look

Both sides run in this process on the model and the catalogue of tests/bench/decode.py (4 layers, hidden size 256, a
vocabulary of 152,704), interleaved, best of --repeats. The rows are those of TRL's layout: prompt and semantic ID, logits of
the positions that predict its codes over the whole vocabulary. Checked: log-probabilities within 1e-5 of their size, gradients within
1e-4. The last line is one JSON object:

ratios  full, level                  loss and backward of the rows / of the tree, with whole-vocabulary and level scores
        forward_full, forward_level  the same without a gradient: a reference, an old policy
        step                         generate, reference, loss and backward of the rows / search, reference, loss and backward
        memory                       peak above weights and gradients of loss and backward, rows / tree
values  max_logprob_diff, max_gradient_rel_diff    tree against rows
        rows_tokens, tree_tokens                   slots of the trunk
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from infer.search.prompts import left_pad
from infer.search.tree import search
from infer.search.trie import Trie
from tests.bench import frame
from tests.bench.decode import catalogue, interleaved, random_model, vocabulary
from tests.bench.sft import one_side
from tests.oracle import generate
from train.policy.logprobs import tree_logprobs
from train.policy.losses import Cells, Clip, loss_kind, policy_loss

BETA = 1e-3


class Step:
    """One step's prompts and rollouts on the same model, as rows and as a tree."""

    def __init__(self, *, batch: int, length: int, group: int) -> None:
        rng = np.random.default_rng(0)
        self.model, self.vocab, sids = random_model().train(), vocabulary(), catalogue(3686, rng)
        self.prompts = [rng.integers(1, 150_000, length - 4 * row).tolist() for row in range(batch)]
        self.ids, self.mask = left_pad(self.prompts, device="cpu")
        self.trie, self.group, self.levels = Trie(sids, self.vocab), group, sids.num_levels
        self.answers = self.vocab.token_ids(sids.sids_SL).tolist()
        self.beams = search(self.model, self.prompts, self.trie, group)
        self.cells = Cells(
            torch.randn(batch, group, 1), torch.ones(batch, group, self.levels, dtype=torch.bool)
        )
        self.reference_PGL = self.tree("full")().detach() - 0.05

    def rows(self) -> Callable[[], torch.Tensor]:
        """Log-probabilities [P, G, L] with a row per rollout."""
        codes = self.beams.codes_BKL
        tokens = torch.stack([self.trie.tokens[n][codes[..., n]] for n in range(self.levels)], 2).flatten(
            0, 1
        )
        ids = torch.cat([self.ids.repeat_interleave(self.group, 0), tokens], 1)
        mask = torch.cat([self.mask.repeat_interleave(self.group, 0), torch.ones_like(tokens)], 1)

        def score() -> torch.Tensor:
            logits = self.model(
                input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=self.levels + 1
            ).logits[:, :-1]
            logps = logits.float().log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
            return logps.view(codes.shape)

        return score

    def tree(self, space: str) -> Callable[[], torch.Tensor]:
        return lambda: (
            tree_logprobs(
                self.model, self.trie, self.prompts, self.beams, space=space, temperature=1.0
            ).logps_PGL
        )

    def loss(self, score: Callable[[], torch.Tensor]) -> torch.Tensor:
        counts = self.cells.counts()
        return policy_loss(
            score(), self.cells, counts, kind=loss_kind("grpo"), clip=Clip(), beta=BETA,
            reference_PGL=self.reference_PGL,
        ).loss  # fmt: skip

    def update(self, score: Callable[[], torch.Tensor]) -> None:
        self.model.zero_grad()
        self.loss(score).backward()

    def whole(self, side: str) -> None:
        """Rollout, reference and update; the rollouts of both sides are the same, so that the update stays what it is."""
        with torch.no_grad():
            if side == "rows":
                generate(self.model, self.ids, self.answers, self.group, mask=self.mask)
            else:
                search(self.model, self.prompts, self.trie, self.group)
        score = self.rows() if side == "rows" else self.tree("full")
        with torch.no_grad():
            score()
        self.update(score)


def forward(score: Callable[[], torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return score()


def agreement(step: Step) -> tuple[float, float]:
    """(largest difference of a log-probability, largest of a gradient over the gradient's largest entry)."""
    found = {}
    for name, score in (("rows", step.rows()), ("tree", step.tree("full"))):
        step.update(score)
        gradients = [parameter.grad.clone() for parameter in step.model.parameters()]
        found[name] = forward(score), gradients
    logps = float((found["rows"][0] - found["tree"][0]).abs().max())
    pairs = zip(found["rows"][1], found["tree"][1], strict=True)
    return logps, max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs)


def peak_mib(flags: list[str], side: str) -> float:
    """Peak memory above weights and gradients of loss and backward of `side`, in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.grpo", *flags, "--side", side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure(shape: dict[str, int], repeats: int, flags: list[str]) -> dict[str, Any]:
    """The bench's JSON object."""
    step = Step(**shape)
    logps, gradients = agreement(step)
    scale = float(step.reference_PGL.abs().max())
    scores = {"rows": step.rows(), "full": step.tree("full"), "level": step.tree("level")}
    calls = {name: lambda score=score: step.update(score) for name, score in scores.items()}
    calls |= {f"forward_{name}": lambda score=score: forward(score) for name, score in scores.items()}
    calls |= {f"step_{side}": lambda side=side: step.whole(side) for side in ("rows", "tree")}
    seconds, _ = interleaved(calls, repeats)
    print(", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in seconds.items()), flush=True)
    peaks = {side: peak_mib(flags, side) for side in ("rows", "tree")}
    print("peak above weights and gradients: " + ", ".join(f"{n} {m:.0f} MiB" for n, m in peaks.items()))
    branches = shape["group"] * (step.levels - 1)
    ratios = {
        "full": seconds["rows"] / seconds["full"],
        "level": seconds["rows"] / seconds["level"],
        "forward_full": seconds["forward_rows"] / seconds["forward_full"],
        "forward_level": seconds["forward_rows"] / seconds["forward_level"],
        "step": seconds["step_rows"] / seconds["step_tree"],
        "memory": peaks["rows"] / max(peaks["tree"], 1),
    }
    return {
        "bench": "grpo",
        "same": logps <= 1e-5 * max(scale, 1) and gradients <= 1e-4,
        "ratios": {name: round(value, 1) for name, value in ratios.items()},
        "values": {
            "max_logprob_diff": logps,
            "max_gradient_rel_diff": gradients,
            "rows_tokens": shape["batch"] * shape["group"] * (shape["length"] + step.levels),
            "tree_tokens": shape["batch"] * (shape["length"] + branches),
        },
        "threads": torch.get_num_threads(),
        "device": "cpu",
    }


def main() -> None:
    parser = frame.flags(__doc__, quick="2 prompts of 64 tokens and 8 rollouts", repeats=3)
    parser.add_argument("--side", choices=("rows", "tree"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = {"batch": 2, "length": 64, "group": 8} if args.quick else {"batch": 4, "length": 128, "group": 16}
    if args.side:
        step = Step(**shape)
        score = step.rows() if args.side == "rows" else step.tree("full")
        print(one_side(step.model, lambda: step.loss(score)))
        return
    frame.finish(measure(shape, args.repeats, ["--quick"] if args.quick else []))


if __name__ == "__main__":
    main()
