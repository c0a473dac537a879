"""Text from a causal language model on token ids: prompts in, generated ids out, every setting said here.

Checkpoints carry a generation_config of their own, and those of instruct models turn beams into sampling and penalise
repetition. It is set aside for the call: what TextSettings says is what happens.

Relations: infer.text.thinking (reasoning before a semantic ID) and infer.text.constraints (regex, JSON) generate through this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from configs.program import InputError, NumericError, poll


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """How text is generated; stored beside every result."""

    max_new_tokens: int = 512
    """longest text in tokens"""
    temperature: float = 0.0
    """0 = greedy; above 0 samples"""
    top_p: float = 1.0
    """sample from the smallest set of tokens with this probability mass"""
    top_k: int = 0
    """sample from this many likeliest tokens; 0 = all"""
    samples: int = 1
    """texts per prompt; more than one needs sampling or as many beams"""
    beams: int = 1
    """beam search over text; only without sampling"""
    batch_size: int = 16
    """prompts per call of generate"""
    seed: int = 0
    """of the sampling"""

    def __post_init__(self) -> None:
        if min(self.max_new_tokens, self.samples, self.beams, self.batch_size) < 1 or self.top_k < 0:
            raise InputError(
                f"max_new_tokens {self.max_new_tokens}, samples {self.samples}, beams {self.beams} and batch_size "
                f"{self.batch_size} must be at least 1, top_k {self.top_k} at least 0"
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise InputError(f"temperature {self.temperature} must be >= 0 and top_p {self.top_p} in (0, 1]")
        if self.beams > 1 and self.temperature > 0:
            raise InputError(
                f"beams {self.beams} with temperature {self.temperature} would sample the beams -> set temperature 0 or beams 1"
            )
        if self.samples > max(self.beams, 1) and self.temperature == 0:
            raise InputError(
                f"{self.samples} greedy samples would be the same text -> set a temperature above 0 or samples 1"
            )


@dataclass(frozen=True)
class Generated:
    """One text: its token ids up to and without the stop token, which one stopped it (None: the length did), its beam score."""

    ids: tuple[int, ...]
    stop: int | None
    score: float | None = None


def generate_ids(
    model: Any,
    prompts: Sequence[Sequence[int]],
    settings: TextSettings,
    *,
    stop_ids: Sequence[int],
    keys: Sequence[int] | None = None,
    processors: Sequence[Any] = (),
) -> list[list[Generated]]:
    """`settings.samples` texts per prompt; each row ends at its own first stop token.

    keys: an integer per prompt (default: its number); with the seed and the sample's number it decides what is drawn for
    the prompt, whatever else is in the batch. `processors` are transformers logits processors, made for this call. Raises InputError for an empty prompt, NumericError (exit 4) where the model's scores are not finite.
    """
    import torch
    from transformers import LogitsProcessorList

    if not prompts or min(map(len, prompts)) == 0:
        raise InputError("empty prompt -> every prompt needs at least one token")
    device = next(model.parameters()).device
    pad_id = stop_ids[0]
    width = max(map(len, prompts))
    warpers: list[Any] = []
    if settings.temperature > 0:
        keys = range(len(prompts)) if keys is None else keys
        warpers = _draws(settings, keys, width=width, device=device)
        prompts = [prompt for prompt in prompts for _ in range(settings.samples)]
    ids_BT = torch.tensor(
        [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device
    )
    mask_BT = torch.tensor(
        [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device
    )
    config = _config(settings, stop_ids=stop_ids, pad_id=pad_id)
    with _own_settings(model):
        output = model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            generation_config=config,
            logits_processor=LogitsProcessorList([_check_token, *processors, *warpers]),
        )
    scores = output.get("sequences_scores")
    texts = [_cut(row, stop_ids) for row in output.sequences[:, width:].tolist()]
    made = [
        Generated(ids, stop, None if scores is None else float(scores[row]))
        for row, (ids, stop) in enumerate(texts)
    ]
    return [made[start : start + settings.samples] for start in range(0, len(made), settings.samples)]


def _cut(ids: list[int], stop_ids: Sequence[int]) -> tuple[tuple[int, ...], int | None]:
    at = next((place for place, token in enumerate(ids) if token in stop_ids), None)
    return (tuple(ids), None) if at is None else (tuple(ids[:at]), ids[at])


def _config(settings: TextSettings, *, stop_ids: Sequence[int], pad_id: int) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        num_beams=settings.beams,
        num_return_sequences=1 if settings.temperature > 0 else settings.samples,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
        return_dict_in_generate=True,
        **({"length_penalty": 0.0} if settings.beams > 1 else {}),
    )


def _draws(settings: TextSettings, keys: Sequence[int], *, width: int, device: Any) -> list[Any]:
    """Logits processors behind which the largest score is a draw: temperature, top_k, top_p, then noise of each row's own.

    The largest of log p + Gumbel noise is a draw from p (Gumbel 1954); rows are the samples of the prompts, prompt by prompt.
    """
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    from infer.search.noise import child_keys, gumbel, row_keys

    keys_B = row_keys(settings.seed, keys, device).repeat_interleave(settings.samples)
    samples_B = torch.arange(settings.samples, device=device).repeat(len(keys))
    keys_B1 = child_keys(keys_B, samples_B)[:, None]

    def noise(input_BT: Any, scores_BV: Any) -> Any:
        step_B1 = child_keys(keys_B1, torch.tensor(input_BT.shape[1] - width, device=device))
        tokens_V = torch.arange(scores_BV.shape[1], device=device)
        return scores_BV + gumbel(child_keys(step_B1, tokens_V))

    chosen: list[Any] = [TemperatureLogitsWarper(settings.temperature)]
    chosen += [TopKLogitsWarper(settings.top_k)] if settings.top_k else []
    chosen += [TopPLogitsWarper(settings.top_p)] if settings.top_p < 1 else []
    return [*chosen, noise]


@contextmanager
def _own_settings(model: Any) -> Iterator[None]:
    """Inside, the checkpoint's generation_config is a neutral one: `generate` would fill every unset value from it."""
    from transformers import GenerationConfig

    theirs = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = theirs


def _check_token(input_ids: Any, scores: Any) -> Any:
    poll()
    if scores.isnan().any():
        raise NumericError(
            "the model's scores are not finite -> the checkpoint is damaged or training diverged"
        )
    return scores
