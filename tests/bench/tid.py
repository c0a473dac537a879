"""TID-constrained decoding against lm-format-enforcer, which asks a parser for every row at every step.

python -m tests.bench.tid            # 64 prompts of 16 tokens, 3,686 TIDs, a vocabulary of 151,936, some minutes
python -m tests.bench.tid --quick    # 16 prompts, 300 TIDs, a vocabulary of 12,000

Both sides decode greedily in this process with the same random 4-layer model (hidden size 256), interleaved, best of
--repeats; a prompt is as long as one that asks for the TID of a semantic ID, and both sides read it once, so longer prompts bring
the ratio down. The reference is `generate` of transformers with a `prefix_allowed_tokens_fn` on the library's TokenEnforcer and
RegexParser, as NaviGen uses them; its regular expression is the list of the catalogue's TIDs, its automaton written down
directly (the library's own compiler takes minutes for some hundred TIDs) and made before the clock starts, as our trie is. All
words have one length, so that a TID has one tokenisation and both sides must say the same. Checked: every answer is a TID
of the catalogue, equal on both sides wherever the choice is no near-tie (1e-4). The last line is one JSON object:

ratios  tid_decode          the reference's whole decoding / ours
values  equal_answers       share of rows with the same TID on both sides
        reference_seconds, our_seconds
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from data.answers import END, listed
from data.tids import Tids
from infer.text.constraints import vocabulary
from infer.text.tids import TidTrie, decode_tids
from tests.bench import frame
from tests.bench.decode import interleaved

PAD, EOS = "<pad>", "<eos>"
LONGEST = 64  # tokens, more than any TID here has
MARKS = ('","', '"]}', "0")  # no quote alone, which could not go on


def words(count: int, rng: np.random.Generator) -> list[str]:
    """Distinct words of eight letters."""
    letters = rng.integers(0, 26, (2 * count, 8))
    return sorted({"".join(chr(97 + letter) for letter in row) for row in letters})[:count]


def word_tokenizer(known: Sequence[str]) -> PreTrainedTokenizerFast:
    """A token per word, one per word behind a blank, and the marks of a JSON list."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    entries = [PAD, EOS, *MARKS, *known, *("\u0120" + word for word in known)]
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(entries)}, unk_token=PAD))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[a-z]+|[^a-z ]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=EOS, pad_token=PAD)


def catalogue(known: Sequence[str], items: int, rng: np.random.Generator) -> Tids:
    """TIDs of five to ten terms of one or two words; a few words are in many of them."""
    popularity = np.arange(1, 2001) ** -0.8
    rows = []
    for _ in range(items):
        drawn = rng.choice(2000, 20, p=popularity / popularity.sum(), replace=False)
        used = [known[place] for place in drawn[: 2 * rng.integers(5, 11)]]
        rows.append(tuple(" ".join(used[at : at + 2 - at // 2 % 2]) for at in range(0, len(used), 2)))
    return Tids(rows, ["chat"] * items)


def automaton(texts: Sequence[str]) -> Any:
    """What RegexParser makes of the alternatives `texts`, as its context."""
    from interegular.fsm import FSM, Alphabet
    from lmformatenforcer import RegexParser

    symbols = {letter: place for place, letter in enumerate(sorted(set("".join(texts))))}
    edges: dict[int, dict[int, int]] = {0: {}}
    finals = set()
    for text in texts:
        state = 0
        for letter in text:
            new = len(edges)
            state = edges[state].setdefault(symbols[letter], new)
            edges.setdefault(state, {})
        finals.add(state)
    context = RegexParser._Context()
    context.pattern = FSM(alphabet=Alphabet(symbols), states=set(edges), initial=0, finals=finals, map=edges)
    context.state_character_cache, context.anything_else_characters = {}, ""
    return context


def by_regex(model: Any, tokenizer: Any, prompts: torch.Tensor, pattern: Any) -> list[str]:
    """The reference's text behind every prompt."""
    from lmformatenforcer import RegexParser, TokenEnforcer

    enforcer = TokenEnforcer(vocabulary(tokenizer, json_text=True).data, RegexParser(pattern))
    eos, width = tokenizer.eos_token_id, prompts.shape[1]

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        known = ids.tolist()
        return [eos] if eos in known[width:] else enforcer.get_allowed_tokens(known).allowed_tokens

    config = GenerationConfig(
        max_new_tokens=LONGEST, do_sample=False, eos_token_id=eos, pad_token_id=tokenizer.pad_token_id
    )
    ids = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        generation_config=config,
        prefix_allowed_tokens_fn=allowed,
    )
    return [tokenizer.decode(row, skip_special_tokens=True) for row in ids[:, width:]]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The bench's JSON object."""
    rng = np.random.default_rng(0)
    known = words((args.vocabulary - len(MARKS) - 2) // 2, rng)
    tokenizer, tids = word_tokenizer(known), catalogue(known[:: len(known) // 2000], args.tids, rng)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=args.vocabulary, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    prompts = rng.integers(len(MARKS) + 2, len(tokenizer), (args.rows, 16))
    trie, texts = TidTrie(tids, tokenizer), [listed(terms) + END for terms in tids.groups]
    pattern, ids = automaton(texts), torch.as_tensor(prompts)
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: decode_tids(model, prompts.tolist(), trie),
        "reference": lambda: by_regex(model, tokenizer, ids, pattern),
    }
    seconds, found = interleaved(calls, args.repeats)
    ours = [listed(row[0].terms) + END for row in found["ours"]]
    equal = [one == other for one, other in zip(ours, found["reference"], strict=True)]
    print(", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()))
    return {
        "bench": "tid",
        "same": set(found["reference"]) | set(ours) <= set(texts) and sum(equal) >= 0.98 * len(equal),
        "ratios": {"tid_decode": round(seconds["reference"] / seconds["ours"], 2)},
        "values": {
            "equal_answers": sum(equal) / len(equal),
            "reference_seconds": round(seconds["reference"], 3),
            "our_seconds": round(seconds["ours"], 3),
        },
        "threads": torch.get_num_threads(),
        "device": "cpu",
    }


def main() -> None:
    parser = frame.flags(__doc__, quick="16 prompts, 300 TIDs, a vocabulary of 12,000", repeats=3)
    parser.add_argument(
        "--longest", type=int, default=48, help="tokens after which the open expression is cut"
    )
    args = parser.parse_args()
    sizes = (16, 300, 12_000) if args.quick else (64, 3686, 151_936)
    args.rows, args.tids, args.vocabulary = sizes
    frame.finish(measure(args))


if __name__ == "__main__":
    main()
