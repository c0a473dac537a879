"""The tree decoder against `generate` of transformers with a straightforward dictionary trie.

python -m tests.bench.decode            # 8 prompts of 128 tokens, 50 beams, a few minutes
python -m tests.bench.decode --quick    # 2 prompts of 64 tokens, 20 beams, for a look

Both sides run in this process on the same random 4-layer model (hidden size 256, vocabulary 152,704) and the same prompts
of mixed lengths, interleaved, best of --repeats; the catalogue has the shape of a published index (3,686 items, 256 codes
per level, 94 of them used first). Checked: scores of every beam of every prompt within 1e-3 and items in the same order
wherever scores differ by more than 1e-4, masks equal entry by entry, level-scored items legal and distinct. The last line is one JSON object:

ratios  full, level    whole search of `generate` / ours with whole-vocabulary scores and with scores over the level's codes
        mask           the logits processor of all three steps / the penalty table over the level's columns
values  step_cost_1m_over_4k   a step after the trunk (level head, mask, top-k) with 1M items over the same with the catalogue
        trie_1m_seconds        semantic IDs of 1M items in random order to a finished trie, sorting included
        trie_1m_mib            peak memory of that, arrays of the semantic IDs included
        prefill_share_level    the library's own forward over the prompts / the whole search with level scores
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from data.sid import FORMATS, LETTERS, LevelTokens, SidTable, SidVocab
from infer.search.prompts import left_pad
from infer.search.sampling import Best
from infer.search.scoring import LevelScorer
from infer.search.tree import search
from infer.search.trie import Trie, without_forbidden
from tests.agreement import disagreement, ranking
from tests.bench import frame
from tests.oracle import TrieProcessor, generate

TEXT_ROWS = 151_936  # rows of Qwen3's embedding before the semantic IDs
CODES = 256
SIZES = (CODES, CODES, CODES)


def catalogue(items: int, rng: np.random.Generator) -> SidTable:
    """Skewed first codes, 64 second codes behind each: the branching of a published index."""
    popularity = np.arange(1, 95) ** -0.5
    first = rng.choice(94, items, p=popularity / popularity.sum())
    second = np.stack([rng.permutation(CODES)[:64] for _ in range(94)])
    codes = [first, second[first, rng.integers(0, 64, items)], rng.integers(0, CODES, items)]
    return SidTable(np.stack(codes, axis=1).astype(np.int32), SIZES)


def million(rng: np.random.Generator) -> np.ndarray:
    """Codes int32 [1M, 3] of distinct semantic IDs in random order."""
    numbers = rng.choice(CODES**3, 1_000_000, replace=False)
    return np.stack(np.unravel_index(numbers, SIZES), axis=1).astype(np.int32)


def vocabulary() -> SidVocab:
    levels = [LevelTokens(LETTERS[i], CODES, first=TEXT_ROWS + i * CODES) for i in range(len(SIZES))]
    return SidVocab(FORMATS["letters"], tuple(levels))


def random_model() -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=TEXT_ROWS + sum(SIZES), hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(6)  # so that beams are no near-ties
    return model


def interleaved(calls: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """(best seconds, last result) of every call; one round to warm up is not timed."""
    best, results = dict.fromkeys(calls, float("inf")), {}
    for round_number in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            results[name] = call()
            if round_number:
                best[name] = min(best[name], time.perf_counter() - start)
    return best, results


def whole_search(
    model: Any, sids: SidTable, vocab: SidVocab, batch: int, length: int, beams: int, repeats: int
) -> tuple[bool, dict[str, float], float]:
    """(same, ratios, prefill share)."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(1, 150_000, length - 4 * row).tolist() for row in range(batch)]
    ids, mask = left_pad(prompts, device="cpu")
    answers = vocab.token_ids(sids.sids_SL).tolist()
    trie = Trie(sids, vocab)
    with torch.no_grad():
        seconds, results = interleaved(
            {
                "generate": lambda: generate(model, ids, answers, beams, mask=mask),
                "full": lambda: search(model, prompts, trie, beams, "full"),
                "level": lambda: search(model, prompts, trie, beams, "level"),
                "prefill": lambda: model.base_model(input_ids=ids, attention_mask=mask, use_cache=True),
            },
            repeats,
        )
    print(", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in seconds.items()))
    tokens, scores = results["generate"]
    theirs_BKL = tokens.view(batch, beams, -1) - torch.stack([ids[0] for ids in trie.tokens])
    full, level, same = results["full"], results["level"], True
    for row in range(batch):
        expected = ranking(theirs_BKL[row], scores.view(batch, beams)[row])
        same &= not disagreement(ranking(full.codes_BKL[row], full.scores_BK[row]), expected, atol=1e-3)
        same &= (
            bool(trie.legal(level.codes_BKL[row]).all()) and len(set(level.nodes_BK[row].tolist())) == beams
        )
    ratios = {name: seconds["generate"] / seconds[name] for name in ("full", "level")}
    return same, ratios, seconds["prefill"] / seconds["level"]


def walked(trie: Trie, rows: int) -> list[torch.Tensor]:
    """Nodes int64 [rows] before each level on the way to random items."""
    items = np.random.default_rng(2).integers(0, len(trie.sids.sids_SL), rows)
    codes = torch.as_tensor(trie.sids.sids_SL[items]).long()
    nodes = [torch.zeros(rows, dtype=torch.long)]
    for level in range(trie.num_levels - 1):
        nodes.append(trie.child(level, nodes[-1], codes[:, level]))
    return nodes


def mask_step(trie: Trie, vocab: SidVocab, rows: int, repeats: int) -> tuple[bool, float]:
    """(same, processor seconds / table seconds) of the constraint alone, summed over the levels."""
    answers = vocab.token_ids(trie.sids.sids_SL)
    items = np.random.default_rng(2).integers(0, len(answers), rows)
    scores = torch.randn(rows, TEXT_ROWS + sum(SIZES)).log_softmax(-1)
    prompt = torch.randint(0, TEXT_ROWS, (rows, 128))
    processor = TrieProcessor(answers.tolist(), 128)
    same, seconds = True, {"processor": 0.0, "table": 0.0}
    for level, nodes in enumerate(walked(trie, rows)):
        fed = torch.cat([prompt, torch.as_tensor(answers[items, :level])], dim=1)
        columns = trie.columns[level]

        def table(level=level, nodes=nodes, columns=columns) -> torch.Tensor:
            _, penalty = trie.candidates(level, nodes)
            return without_forbidden(scores[:, columns], penalty)

        best, results = interleaved(
            {"processor": lambda fed=fed: processor(fed, scores), "table": table}, max(repeats, 8)
        )
        same &= torch.equal(results["processor"][:, columns], results["table"])
        seconds = {name: total + best[name] for name, total in seconds.items()}
    print(f"mask of {rows} rows: " + ", ".join(f"{name} {1e3 * t:.3f} ms" for name, t in seconds.items()))
    return same, seconds["processor"] / seconds["table"]


def step_cost(model: Any, tries: dict[str, Trie], batch: int, beams: int, repeats: int) -> float:
    """Seconds of the second and third step after the trunk with "1m" over those with "4k"."""
    hidden = torch.randn(batch, beams, 256)
    calls = {}
    for name, trie in tries.items():
        scorer, nodes = LevelScorer(model, trie, "level"), walked(trie, batch * beams)

        def steps(trie=trie, scorer=scorer, nodes=nodes) -> None:
            for level in (1, 2):
                at = nodes[level].view(batch, beams)
                step, codes = scorer(hidden, level, at)
                parent, column, _ = Best(beams)(torch.zeros(batch, beams), step, beams, codes)
                trie.child_at(level, at.gather(1, parent), column)

        calls[name] = steps
    with torch.no_grad():
        best, _ = interleaved(calls, max(5 * repeats, 20))
    print(
        "step after the trunk: " + ", ".join(f"{name} {1e3 * value:.3f} ms" for name, value in best.items())
    )
    return best["1m"] / best["4k"]


def measure(*, batch: int, length: int, beams: int, repeats: int) -> dict[str, Any]:
    """The bench's JSON object."""
    rng = np.random.default_rng(0)
    model, vocab, sids = random_model(), vocabulary(), catalogue(3686, rng)
    codes = million(rng)
    built, results = interleaved({"trie": lambda: Trie(SidTable(codes, SIZES), vocab)}, repeats)
    tracemalloc.start()
    Trie(SidTable(codes, SIZES), vocab)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    small = Trie(sids, vocab)
    same, ratios, share = whole_search(model, sids, vocab, batch, length, beams, repeats)
    same_mask, ratios["mask"] = mask_step(small, vocab, batch * beams, repeats)
    cost = step_cost(model, {"4k": small, "1m": results["trie"]}, batch, beams, repeats)
    return {
        "bench": "decode",
        "same": same and same_mask,
        "ratios": {name: round(value, 1) for name, value in ratios.items()},
        "values": {
            "step_cost_1m_over_4k": round(cost, 2),
            "trie_1m_seconds": round(built["trie"], 2),
            "trie_1m_mib": round(peak, 1),
            "prefill_share_level": round(share, 3),
        },
        "threads": torch.get_num_threads(),
        "device": "cpu",
    }


def main() -> None:
    args = frame.flags(__doc__, quick="2 prompts of 64 tokens and 20 beams", repeats=3).parse_args()
    shape = (
        {"batch": 2, "length": 64, "beams": 20} if args.quick else {"batch": 8, "length": 128, "beams": 50}
    )
    result = measure(**shape, repeats=args.repeats)
    frame.finish(result)


if __name__ == "__main__":
    main()
