"""What the tree decoder must equal: transformers' own beam search with a straightforward trie processor, and brute force."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from data.sid import SidTable, SidVocab


class TrieProcessor(LogitsProcessor):
    """-inf on every token that does not continue an answer: a dictionary of prefixes, a loop over rows, a (rows, V) mask."""

    def __init__(self, answers: Sequence[Sequence[int]], prompt_length: int) -> None:
        self.prompt_length = prompt_length
        legal: dict[tuple[int, ...], set[int]] = {}
        for ids in answers:
            for depth in range(len(ids)):
                legal.setdefault(tuple(ids[:depth]), set()).add(ids[depth])
        self.legal = {prefix: list(tokens) for prefix, tokens in legal.items()}

    def __call__(self, input_ids, scores):
        mask = torch.full_like(scores, float("-inf"))
        for row, ids in enumerate(input_ids):
            mask[row, self.legal.get(tuple(ids[self.prompt_length :].tolist()), [])] = 0
        return scores + mask


def generate(
    model, prompts: torch.Tensor, answers, beams: int, *, mask: torch.Tensor | None = None, **options
):
    """transformers' beam search over `answers` (token ids) for prompts [B, T], padded on the left where `mask` is 0.

    (token ids [B * K, T'] behind the prompt, scores [B * K]); `options` go to its GenerationConfig.
    """
    longest = max(map(len, answers))
    # an encoder-decoder's answer stands behind its start token
    behind = 1 if model.config.is_encoder_decoder else prompts.shape[1]
    config = GenerationConfig(
        **{
            "num_beams": beams, "num_return_sequences": beams, "max_new_tokens": longest, "length_penalty": 0.0, "do_sample": False,
            "early_stopping": "never", "pad_token_id": 0, "eos_token_id": None, "return_dict_in_generate": True, "output_scores": True,
            "decoder_start_token_id": getattr(model.config, "decoder_start_token_id", None),
        } | options
    )  # fmt: skip
    result = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts) if mask is None else mask,
        generation_config=config,
        logits_processor=LogitsProcessorList([TrieProcessor(answers, behind)]),
    )
    return result.sequences[:, behind:], result.get("sequences_scores")


def generate_beams(model, prompt: list[int], sids: SidTable, vocab: SidVocab, beams: int, **options):
    """(token ids [K, L], scores [K]) of the legal beams of transformers for one prompt, K at most `beams`.

    With fewer legal items than beams transformers adds copies at its start score of -1e9, which do not count.
    """
    answers = vocab.token_ids(sids.sids_SL).tolist()
    tokens, scores = generate(
        model, torch.tensor([prompt]), answers, beams, min_new_tokens=sids.num_levels, **options
    )
    legal = scores > -1e6
    return tokens[legal], scores[legal]


@torch.no_grad()
def brute_force(model, prompt: list[int], sids: SidTable, vocab: SidVocab) -> torch.Tensor:
    """Whole-vocabulary log-probability of every distinct semantic ID [S]."""
    return torch.stack([score(model, prompt, ids) for ids in vocab.token_ids(sids.sids_SL).tolist()])


@torch.no_grad()
def score(model, prompt: list[int], answer: Sequence[int]) -> torch.Tensor:
    """Sum of the log-probabilities of an answer's tokens behind a prompt; one plain forward."""
    if model.config.is_encoder_decoder:
        fed = torch.tensor([[model.config.decoder_start_token_id, *answer]])
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=fed).logits
    else:
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits
    logps = logits[0, -len(answer) - 1 : -1].log_softmax(-1)
    return logps.gather(-1, torch.tensor(answer)[:, None]).sum()
