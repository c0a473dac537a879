"""The semantic IDs behind thoughts: the tree decoder against `generate` of transformers, thought by thought.

python -m tests.bench.reasoning            # 2 prompts of 128 tokens, 4 thoughts of 256 each, 10 beams, a minute or two
python -m tests.bench.reasoning --quick    # one prompt with 2 thoughts of 64, for a look

Both sides run in this process on the random model and the catalogue of tests.bench.decode (4 layers of 256, vocabulary
152,704), behind the same prompts and written thoughts, interleaved, best of --repeats. Theirs is one call of `generate` per
thought, 10 beams, with `prefix_allowed_tokens_fn` over a dictionary of prefixes; ours is one call for all thoughts. Thoughts are
given: writing them is no part of it. Checked: every beam's score within 1e-3, items in the same order wherever scores differ by
more than 1e-4. The last line is one JSON object:

ratios  sid_tail         `generate` / ours, whole-vocabulary scores
        sid_tail_level   the same against ours with scores over the level's codes
values  ms_per_thought, theirs_ms_per_thought
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from infer.search.tree import search
from infer.search.trie import Trie
from tests.agreement import disagreement, ranking
from tests.bench import frame
from tests.bench.decode import catalogue, interleaved, random_model, vocabulary

BEAMS = 10


def continuations(answers: Sequence[Sequence[int]]) -> dict[tuple[int, ...], list[int]]:
    """{codes so far: tokens that may follow}."""
    legal: dict[tuple[int, ...], set[int]] = {}
    for ids in answers:
        for depth in range(len(ids)):
            legal.setdefault(tuple(ids[:depth]), set()).add(ids[depth])
    return {prefix: sorted(tokens) for prefix, tokens in legal.items()}


def theirs(
    model: Any, prompts: Sequence[Sequence[int]], legal: dict[tuple[int, ...], list[int]], levels: int
) -> list[Any]:
    """(token ids [K, L], scores [K]) behind every prompt, one call each."""
    config = GenerationConfig(
        num_beams=BEAMS, num_return_sequences=BEAMS, max_new_tokens=levels, length_penalty=0.0, early_stopping=True,
        do_sample=False, pad_token_id=0, eos_token_id=None, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    found = []
    for prompt in prompts:
        ids, length = torch.tensor([prompt]), len(prompt)
        result = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            prefix_allowed_tokens_fn=lambda _, row, length=length: legal[tuple(row[length:].tolist())],
        )
        found.append((result.sequences[:, length:], result.sequences_scores))
    return found


def written(
    rng: np.random.Generator, *, prompts: int, thoughts: int, length: int, words: int
) -> list[list[int]]:
    """Prompts followed by thoughts of different lengths, all random text tokens."""
    extended = []
    for row in range(prompts):
        prompt = rng.integers(1, 150_000, length - 4 * row).tolist()
        for thought in range(thoughts):
            extended.append(prompt + rng.integers(1, 150_000, words - 3 * thought).tolist())
    return extended


def measure(*, prompts: int, thoughts: int, words: int, repeats: int) -> dict[str, Any]:
    """The bench's JSON object."""
    rng = np.random.default_rng(0)
    model, vocab, sids = random_model(), vocabulary(), catalogue(3686, rng)
    extended = written(rng, prompts=prompts, thoughts=thoughts, length=128, words=words)
    trie, legal = Trie(sids, vocab), continuations(vocab.token_ids(sids.sids_SL).tolist())
    with torch.no_grad():
        seconds, results = interleaved(
            {
                "generate": lambda: theirs(model, extended, legal, sids.num_levels),
                "ours": lambda: search(model, extended, trie, BEAMS, "full"),
                "level": lambda: search(model, extended, trie, BEAMS, "level"),
            },
            repeats,
        )
    ours, same = results["ours"], True
    first_L = torch.stack([ids[0] for ids in trie.tokens])
    for row, (tokens, scores) in enumerate(results["generate"]):
        mine = ranking(ours.codes_BKL[row], ours.scores_BK[row])
        same &= not disagreement(mine, ranking(tokens - first_L, scores), atol=1e-3)
    per_thought = {name: round(1e3 * value / len(extended), 1) for name, value in seconds.items()}
    return {
        "bench": "reasoning",
        "same": same,
        "ratios": {
            "sid_tail": round(seconds["generate"] / seconds["ours"], 1),
            "sid_tail_level": round(seconds["generate"] / seconds["level"], 1),
        },
        "values": {"ms_per_thought": per_thought["ours"], "theirs_ms_per_thought": per_thought["generate"]},
        "threads": torch.get_num_threads(),
        "device": "cpu",
    }


def main() -> None:
    args = frame.flags(__doc__, quick="one prompt with 2 thoughts of 64 tokens", repeats=3).parse_args()
    prompts, thoughts, words = (1, 2, 64) if args.quick else (2, 4, 256)
    frame.finish(measure(prompts=prompts, thoughts=thoughts, words=words, repeats=args.repeats))


if __name__ == "__main__":
    main()
