"""The compact generator's loss along the paths of targets against the same loss with every node of the tree.

python -m tests.bench.compact             # 12,000 items of 3 x 256 codes, 512 positions, a text kernel of 256 items, two minutes
python -m tests.bench.compact --quick     # 3,000 items, 128 positions

`hard`: one target for each position; `drawn`: one with weight .3 and 16 drawn answers beside it. Both sides get the same states and
targets and make loss and gradients, nodes included, as a step of train.train_compact does behind its trunk; the trunk is not in
it. They run interleaved in this process with the same threads, best of --repeats. `same`: losses within 1e-5 and gradients within
1e-4 of their length. The last line is one JSON object.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from tests.bench import frame

CODES, LEVELS, HIDDEN, STEPS, SIMILAR, DRAWS = 256, 3, 128, 10, 256, 16


def network(items: int) -> Any:
    """A compact generator over drawn semantic IDs, as skewed as those of texts; similar items are drawn near one another."""
    import torch

    from infer.models.retrievers.compact_network import CompactModel
    from infer.models.retrievers.compact_options import CompactOptions, CompactShape

    rng = np.random.default_rng(0)
    codes_NL = np.stack([(CODES * rng.random(items) ** 1.5).astype(np.int32) for _ in range(LEVELS)], 1)
    similar = min(SIMILAR, items - 1)
    shape = CompactShape(items, (CODES,) * LEVELS, CompactOptions(hidden=HIDDEN, positions=STEPS), 0, similar)
    torch.manual_seed(0)
    model = CompactModel(shape, codes_NL)
    near_NK = (np.arange(items)[:, None] + rng.integers(1, items, (items, similar))) % items
    model.learn_of(
        popularity_N=rng.integers(1, 50, items),
        similar=(near_NK, rng.random((items, similar)).astype(np.float32)),
    )
    return model.eval()


def masses(items: int, positions: int, draws: int) -> tuple[Any, Any]:
    """The same targets for the paths, and with every node asked for."""
    import torch

    from infer.models.retrievers.compact_softmax import TargetMass

    generator = torch.Generator().manual_seed(1)
    item_PT = torch.randint(0, items, (positions, 1 + draws), generator=generator)
    share_PT = torch.full((positions, 1 + draws), 0.7 / max(draws, 1))
    share_PT[:, 0] = 0.3 if draws else 1.0
    nothing = lambda rows: torch.zeros(rows.stop - rows.start, items)  # noqa: E731
    return TargetMass(item_PT, share_PT), TargetMass(item_PT, share_PT, nothing)


def step(model: Any, state: Any, recent: Any, mass: Any) -> tuple[float, float, list[Any]]:
    """(seconds, loss, gradients)."""
    from infer.models.retrievers.compact_softmax import tree_cross_entropy

    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    loss = tree_cross_entropy(model, state, recent, mass)
    loss.backward()
    seconds = time.perf_counter() - start
    return seconds, loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def race(model: Any, items: int, positions: int, draws: int, repeats: int) -> tuple[float, bool, float]:
    """(dense seconds over those of the paths, whether both agree, milliseconds of the paths)."""
    import torch

    generator = torch.Generator().manual_seed(2)
    state = torch.randn(positions, HIDDEN, generator=generator)
    recent = torch.randint(0, items, (positions, STEPS), generator=generator)
    fast, slow = [], []
    for _ in range(repeats):
        for times, mass in zip((fast, slow), masses(items, positions, draws), strict=True):
            times.append(step(model, state, recent, mass))
    agree = abs(fast[0][1] - slow[0][1]) < 1e-5 * abs(slow[0][1]) and all(
        (one - other).norm() <= 1e-4 * other.norm() + 1e-7
        for one, other in zip(fast[0][2], slow[0][2], strict=True)
    )
    least = min(one[0] for one in fast)
    return min(one[0] for one in slow) / least, bool(agree), 1000 * least


def main() -> None:
    args = frame.flags(__doc__, quick="3,000 items, 128 positions", repeats=5).parse_args()
    import torch

    items, positions = (3_000, 128) if args.quick else (12_000, 512)
    model = network(items)
    hard = race(model, items, positions, 0, args.repeats)
    drawn = race(model, items, positions, DRAWS, args.repeats)
    frame.finish(
        {
            "bench": "compact",
            "same": hard[1] and drawn[1],
            "ratios": {"hard": round(hard[0], 2), "drawn": round(drawn[0], 2)},
            "values": {"hard_ms": round(hard[2], 1), "drawn_ms": round(drawn[2], 1)},
            "threads": torch.get_num_threads(),
            "device": "cpu",
        }
    )


if __name__ == "__main__":
    main()
