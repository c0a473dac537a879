"""The one path by which evaluation, rollouts and serving generate: a model, its trie, its renderer.

engine = load_engine(model_dir, sids_dir, beams=50)
for rows, beams in engine.search_batches(prompts): ...
engine.recommend([[3, 17, 5]], k=10)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from configs.program import InputError
from data import artifacts
from data.checkpoints import require_model
from data.output import require_manifest
from data.prompts import wording as named_wording
from data.renderer import HistoryRenderer, Renderer
from data.sid import SidTable, read_sids, read_vocab, sid_format
from infer.trie import SCORE_SPACES, Trie

# Options of Gemma 2, Granite, Cohere, Falcon-H1 and their kin that change logits after the output layer.
SCALED_LOGITS = (
    "final_logit_softcapping",
    "logits_scaling",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
)


@dataclass(frozen=True)
class Recommendation:
    """One recommended semantic ID: its items, codes and score (a log-probability)."""

    item_ids: tuple[int, ...]
    codes: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class DecodeSettings:
    """How to decode; stored beside every result."""

    beams: int = 50
    """semantic IDs returned per prompt"""
    score_space: str = "full"
    """full (whole vocabulary), level (the level's codes) or trie (the legal codes)"""
    temperature: float = 1.0
    """divides the logits before masking"""
    batch_size: int = 64
    """prompts per forward"""
    max_prompt: int | None = None
    """longest prompt in tokens; a longer history loses its oldest items"""

    def __post_init__(self) -> None:
        if self.beams < 1 or self.batch_size < 1 or self.temperature <= 0:
            raise InputError(
                f"beams {self.beams}, batch_size {self.batch_size}, temperature {self.temperature} must be positive"
            )
        if self.score_space not in SCORE_SPACES:
            raise InputError(f"unknown score space {self.score_space!r} -> one of {', '.join(SCORE_SPACES)}")


class Engine:
    """Constrained recommendation with one model. `model` is in eval mode on the device where it should run."""

    def __init__(
        self,
        model: Any,
        renderer: Renderer,
        sids: SidTable,
        settings: DecodeSettings,
        *,
        wording: str = "short",
    ) -> None:
        self.model = model
        self.renderer = renderer
        self.sids = sids
        self.settings = settings
        self.wording = wording
        self.histories = HistoryRenderer(renderer, sids, named_wording(wording))

    @cached_property
    def trie(self) -> Trie:
        """Built on first use, on the device where the model is by then (a trainer moves it)."""
        return Trie(self.sids, self.renderer.vocab, device=next(self.model.parameters()).device)

    def search_batches(self, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield (row numbers int64 [B], Beams) over all prompts, in batches of similar length, longest first.

        The longest come first so that a batch that does not fit fails at once.
        """
        from infer.tree import search

        order = np.argsort([-len(prompt) for prompt in prompts], kind="stable")
        for start in range(0, len(order), self.settings.batch_size):
            rows = order[start : start + self.settings.batch_size]
            beams = search(
                self.model,
                [prompts[row] for row in rows],
                self.trie,
                self.settings.beams,
                self.settings.score_space,
                temperature=self.settings.temperature,
            )
            yield rows, beams

    def recommend(self, histories: Sequence[Sequence[int]], k: int) -> list[list[Recommendation]]:
        """The k best semantic IDs for each history of item ids (oldest first); fewer where the catalogue has fewer."""
        if not 1 <= k <= self.settings.beams:
            raise InputError(f"k {k} must lie in 1..beams ({self.settings.beams})")
        results: list[list[Recommendation]] = [[] for _ in histories]
        for rows, beams in self.search_batches([self.histories.prompt_ids(history) for history in histories]):
            for row, codes, scores, nodes, count in zip(
                rows, beams.codes_BKL, beams.scores_BK, beams.nodes_BK, beams.counts_B, strict=True
            ):
                for rank in range(min(k, int(count))):
                    items = tuple(self.sids.items_of_sid(int(nodes[rank])).tolist())
                    results[row].append(
                        Recommendation(items, tuple(codes[rank].tolist()), float(scores[rank]))
                    )
        return results


def load_engine(
    model_dir: str | Path,
    sids_dir: str | Path,
    examples_dir: str | Path,
    settings: DecodeSettings,
    *,
    device: str | None = None,
    trainable: bool = False,
) -> Engine:
    """An Engine from a model, the SIDs it was expanded with and examples of the same SIDs; InputError for a mixture.

    `trainable` loads float32 on the CPU: device and mixed precision are then the trainer's business.
    """
    directory = require_model(model_dir, written_by="scripts/08_expand_vocab.sh or sft.sh")
    vocab, sids = read_vocab(directory), read_sids(sids_dir)
    vocab.check(sids, model=directory, sids=sids_dir)
    facts = examples_facts(examples_dir, sids, sids_dir)
    if sid_format(facts["format"]) != vocab.format:
        raise InputError(
            f"examples {examples_dir} write semantic IDs as {facts['format']}, model {directory} as {vocab.format.token} "
            "-> build both with the same --format"
        )
    model, tokenizer = load_model(directory, device="cpu" if trainable else device, trainable=trainable)
    renderer = Renderer(tokenizer, vocab, max_prompt=settings.max_prompt)
    return Engine(model, renderer, sids, settings, wording=facts["wording"])


def examples_facts(examples_dir: str | Path, sids: SidTable, sids_dir: str | Path) -> dict[str, Any]:
    """Facts of an examples directory; InputError when it was built from other semantic IDs."""
    facts = require_manifest(examples_dir, written_by=artifacts.EXAMPLES.written_by)["facts"]
    if facts["sids_sha256"] != sids.sha256:
        raise InputError(
            f"examples {examples_dir} were built from other semantic IDs than {sids_dir} "
            f"({facts['sids_sha256'][:12]} against {sids.sha256[:12]}) -> run scripts/07_build_examples.sh with these SIDs"
        )
    return facts


def load_model(directory: Path, *, device: str | None = None, trainable: bool = False) -> tuple[Any, Any]:
    """(model in eval mode, tokenizer) of a local directory. Never remote code, never pickles.

    bfloat16 on CUDA for inference, else float32.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.startswith("cuda") and not trainable else torch.float32
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, local_files_only=True, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"model {directory} cannot be loaded: {str(error)[:160]} -> check the directory"
        ) from error
    refuse_scaled_logits(model.config, directory)
    return model.to(device).eval(), tokenizer


def refuse_scaled_logits(config: Any, directory: Path) -> None:
    """InputError for models whose head does more than a linear map: their scores would come out wrong without a word."""
    text = config.get_text_config()
    for name in SCALED_LOGITS:
        if getattr(text, name, None) not in (None, 1, 1.0):
            raise InputError(
                f"model {directory} rescales its logits ({name} = {getattr(text, name)}), which the decoder and the loss "
                "do not support -> choose a model without it (Qwen, Llama, GPT-2, ...)"
            )
