"""SASRec with one drawn negative, as published: training and scoring against a plain PyTorch loop of the same model.

python -m tests.bench.sequential            # 6,800 users, 3,700 items, about 31,000 train rows; a minute on one thread
python -m tests.bench.sequential --quick    # a fifth of the users

The reference pads every row to ten items in Python, draws its negative in Python, runs every row through the model and gathers
the target and the negative from the logits of all items, as the published loops do; how it fares with those two columns
alone is printed beside it. Ours trains rows of a user that continue one another in one pass. Both run whole epochs, interleaved, best of --repeats; `train` and `score` are
seconds of the reference over seconds of ours. Before that, loss and gradients of the same rows with the same negatives
must agree. Scoring gives log-probabilities of all items for every row. The last line is one JSON object.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from data.rows import Rows
from data.store.output import Output
from infer.models.sequential.model import SequentialModel
from infer.models.sequential.options import SasRec, ScorerOptions, SequentialShape
from infer.models.sequential.scoring import SequentialScorer
from infer.models.sequential.windows import padded
from tests.bench import frame
from train.scratch.loop import Run
from train.scratch.losses import drawn_negatives
from train.scratch.options import EpochOptions, ItemLoss
from train.scratch.sequential import SequentialTask, TrainRows

ITEMS, USERS, POSITIONS, BATCH = 3_700, 6_800, 10, 1024


def make_rows(users: int, seed: int = 0) -> Rows:
    """Every prefix of walks of 2 to 30 items, most of them short, and the item after it."""
    rng = np.random.default_rng(seed)
    table = []
    for user, length in enumerate(np.minimum(2 + rng.geometric(0.28, users), 30)):
        walk = rng.integers(0, ITEMS, length)
        table += [(user, walk[max(0, at - POSITIONS) : at], walk[at]) for at in range(1, length)]
    owner, histories, targets = zip(*table, strict=True)
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])])
    return Rows(
        np.arange(len(table)),
        np.array(owner),
        offsets,
        np.concatenate(histories).astype(np.int32),
        np.array(targets),
    )


class PlainSasRec(nn.Module):
    """The same network for padded rows: a state for every place, the last item's is taken; scores by a table of their own."""

    def __init__(self, ours: SequentialModel) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, history_BT: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
        trunk = self.ours.trunk
        x = nn.functional.embedding(history_BT, self.ours.item_ND) + trunk.position_JD
        x = functional.dropout(x, trunk.embedding_dropout, self.training)
        causal = torch.ones(POSITIONS, POSITIONS, dtype=torch.bool).tril()
        for block in trunk.blocks:
            q, k, v = block.qkv(block.before_attention(x)).chunk(3, dim=-1)
            weight = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(~causal, -torch.inf).softmax(-1)
            x = x + functional.dropout(block.out(weight @ v), block.dropout, self.training)
            y = block.down(functional.relu(block.up(block.before_layers(x))))
            x = x + functional.dropout(y, block.dropout, self.training)
        return trunk.norm(x)[torch.arange(len(x)), length_B - 1]


def pad(histories: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [history + [0] * (POSITIONS - len(history)) for history in histories]
    return torch.tensor(rows), torch.tensor([len(history) for history in histories])


def plain_loss(
    model: PlainSasRec, histories: list[list[int]], targets: list[int], negatives: list[int], *, columns: bool
) -> torch.Tensor:
    state = model(*pad(histories))
    both = torch.tensor(list(zip(targets, negatives, strict=True)))
    if columns:
        logits = (model.ours.out_NE[both] * state[:, None]).sum(-1) + model.ours.bias_N[both]
    else:
        logits = functional.linear(state, model.ours.out_NE, model.ours.bias_N).gather(1, both)
    return functional.binary_cross_entropy_with_logits(logits, torch.tensor([[1.0, 0.0]]).expand_as(logits))


def plain_epoch(
    model: PlainSasRec,
    optimizer: torch.optim.Optimizer,
    table: list[tuple[list[int], int]],
    *,
    columns: bool = False,
) -> None:
    model.train()
    random.shuffle(table)
    for start in range(0, len(table), BATCH):
        histories, targets = zip(*table[start : start + BATCH], strict=True)
        negatives = []
        for target in targets:
            negative = random.randrange(ITEMS)
            while negative == target:
                negative = random.randrange(ITEMS)
            negatives.append(negative)
        optimizer.zero_grad()
        plain_loss(model, list(histories), list(targets), negatives, columns=columns).backward()
        optimizer.step()


@torch.no_grad()
def plain_scores(model: PlainSasRec, histories: list[list[int]]) -> np.ndarray:
    model.eval()
    parts = []
    for start in range(0, len(histories), 128):
        logits = model(*pad(histories[start : start + 128])) @ model.ours.out_NE.T + model.ours.bias_N
        parts.append(logits.log_softmax(1).numpy())
    return np.concatenate(parts)


def same(task: SequentialTask, rows: Rows, table: list[tuple[list[int], int]]) -> bool:
    """Loss, gradients and scores of both sides on the same rows."""
    model = task.model.eval()
    chosen = task.batches(0, np.random.default_rng(0))[0]
    batch = padded(task.current, chosen)
    negatives = drawn_negatives(batch.target_P, ITEMS, 1, np.random.default_rng(1))[:, 0]
    mine = [table[example] for example in batch.example_P]
    losses = [
        task.batch_loss(batch, np.random.default_rng(1)),
        plain_loss(
            PlainSasRec(model).eval(),
            [h for h, _ in mine],
            [t for _, t in mine],
            negatives.tolist(),
            columns=False,
        ),
    ]
    weights = [p for p in model.parameters() if p.numel()]
    ours, plain = (torch.autograd.grad(loss, weights) for loss in losses)
    agree = [torch.allclose(a, b, rtol=1e-3, atol=1e-7) for a, b in zip(ours, plain, strict=True)]
    few = rows.take(np.arange(500))
    scores = SequentialScorer(model).score(few), plain_scores(PlainSasRec(model), [h for h, _ in table[:500]])
    close = abs(float(losses[0] - losses[1])) < 1e-5
    return close and all(agree) and bool(np.allclose(*scores, atol=1e-4))


def best(ours: Callable[[], Any], plain: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Seconds of both, interleaved, the least of each."""
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(repeats):
        for side, work in enumerate((ours, plain)):
            start = time.perf_counter()
            work()
            seconds[side].append(time.perf_counter() - start)
    return min(seconds[0]), min(seconds[1])


def main() -> None:
    flags = frame.flags(__doc__, quick="a fifth of the users", repeats=3).parse_args()
    rows = make_rows(USERS // 5 if flags.quick else USERS)
    table = [
        (part.tolist(), int(t))
        for part, t in zip(np.split(rows.history_H, rows.offsets[1:-1]), rows.target_R, strict=True)
    ]
    shape = SequentialShape(ITEMS, "sasrec", ScorerOptions(positions=POSITIONS), SasRec())
    torch.manual_seed(0)
    random.seed(0)
    options = EpochOptions(rows=BATCH)
    task = SequentialTask(SequentialModel(shape), TrainRows.of_rows(rows), rows, loss=ItemLoss(), rows=BATCH)
    agree = same(task, rows, table)
    plain = PlainSasRec(SequentialModel(shape))
    optimizer = torch.optim.Adam(
        plain.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Run(task, options, out=Output(Path(folder), resuming=False), seed=0)

        def our_epoch() -> None:
            task.model.train()
            for batch in task.batches(0, np.random.default_rng(0)):
                run.step_on(batch)

        train = best(our_epoch, lambda: plain_epoch(plain, optimizer, table), flags.repeats)
        frugal = best(our_epoch, lambda: plain_epoch(plain, optimizer, table, columns=True), flags.repeats)
    scorer, histories = SequentialScorer(task.model), [history for history, _ in table]
    score = best(lambda: scorer.score(rows), lambda: plain_scores(plain, histories), flags.repeats)
    print(f"{len(rows):,} rows; trained {len(rows) / train[0]:,.0f} rows/s against {len(rows) / train[1]:,.0f} "
        f"(two columns alone: {frugal[1] / frugal[0]:.2f} times), "
          f"scored {len(rows) / score[0]:,.0f} rows/s against {len(rows) / score[1]:,.0f}", flush=True)  # fmt: skip
    ratios = {"train": round(train[1] / train[0], 2), "score": round(score[1] / score[0], 2)}
    frame.finish(
        {
            "bench": "sequential",
            "same": agree,
            "ratios": ratios,
            "values": {},
            "threads": torch.get_num_threads(),
            "device": "cpu",
        }
    )


if __name__ == "__main__":
    main()
