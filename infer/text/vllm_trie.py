"""A logits processor for vLLM over the trie of a bundle (train.export_bundle): only semantic IDs of existing items come out.

    llm = LLM(checkpoint, logits_processors=["infer.text.vllm_trie:TrieProcessor"], additional_config={"sid_bundle": bundle})
    llm.generate(prompts, SamplingParams(max_tokens=3, extra_args={"sid_from": len(prompt_ids)}))

sid_from: how many of a request's tokens come before the first code. The codes may be in the prompt already: a beam search
that asks for one token at a time gives the same sid_from with longer prompts. Requests without it are left as they are.

The interface is that of vllm.v1.sample.logits_processor, as of vLLM 0.31; tested with a stand-in, not run in vLLM. This file
needs nothing else of the repository, so that a bundle carries a copy of it as trie_processor.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file
from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

OPTION, BUNDLE, VERSION = "sid_from", "sid_bundle", 1


class TokenWalk:
    """Where one request is in the trie. `tokens` is its running output, which the engine extends."""

    def __init__(self, trie: dict[str, Any], ending: list[int], given: list[int], tokens: list[int]) -> None:
        self.trie, self.ending, self.given, self.tokens = trie, ending, given, tokens
        self.levels = sum(name.startswith("tokens_") for name in trie)
        self.node, self.depth = 0, 0

    def allowed(self) -> list[int]:
        """The tokens that may come next: codes, then what ends an answer, then its last token again."""
        known = len(self.given)
        while self.depth < known + len(self.tokens):
            token = self.given[self.depth] if self.depth < known else self.tokens[self.depth - known]
            if self.depth < self.levels:
                first, children = self._children()
                if token not in children:
                    return self.ending[
                        -1:
                    ]  # the caller's own prefix is no semantic ID: there is nothing to go on with
                self.node = first + children.index(token)
            self.depth += 1
        if self.depth < self.levels:
            return self._children()[1]
        return self.ending[min(self.depth - self.levels, len(self.ending) - 1) :][:1]

    def _children(self) -> tuple[int, list[int]]:
        first, end = self.trie[f"ptr_{self.depth}"][self.node : self.node + 2].tolist()
        return first, self.trie[f"tokens_{self.depth}"][first:end].tolist()


class TrieProcessor(LogitsProcessor):
    """Puts every token that continues no semantic ID to -inf, in the rows of requests that ask for it."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """ValueError for a `sid_from` that is no number of tokens."""
        start = (sampling_params.extra_args or {}).get(OPTION)
        if start is not None and (not isinstance(start, int) or isinstance(start, bool) or start < 0):
            raise ValueError(f"{OPTION} {start!r} -> how many tokens come before the first code, 0 or more")

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        place = (vllm_config.additional_config or {}).get(BUNDLE)
        if place is None:
            raise ValueError(
                f"the trie's place is not given -> additional_config={{'{BUNDLE}': a bundle directory}}"
            )
        facts = json.loads(Path(place, "bundle.json").read_text())
        if facts["version"] != VERSION:
            raise ValueError(
                f"{place} is a bundle of version {facts['version']}, this reads {VERSION} -> export it again"
            )
        self.trie = load_file(Path(place, "trie.safetensors"))
        self.ending = [*facts["suffix_ids"], *facts["stop_ids"]]
        self.walks: dict[int, TokenWalk] = {}

    def is_argmax_invariant(self) -> bool:
        """Greedy answers change too."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Requests that came, went or moved to another row: removed first, then added, then moved."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self.walks.pop(row, None)
        for row, params, prompt, output in batch_update.added:
            self.walks.pop(row, None)
            start = (params.extra_args or {}).get(OPTION)
            if start is not None:
                self.walks[row] = TokenWalk(self.trie, self.ending, list(prompt or [])[start:], output)
        for source, target, direction in batch_update.moved:
            moved, replaced = self.walks.pop(source, None), self.walks.pop(target, None)
            if moved is not None:
                self.walks[target] = moved
            if direction == MoveDirectionality.SWAP and replaced is not None:
                self.walks[source] = replaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits float [requests, vocabulary], changed in place."""
        for row, walk in self.walks.items():
            allowed = torch.tensor(walk.allowed(), device=logits.device)
            kept = logits[row, allowed]
            logits[row] = float("-inf")
            logits[row, allowed] = kept
        return logits
