"""What the tree decoder must equal: transformers' own beam search with a straightforward trie processor, and brute force."""

from __future__ import annotations

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from data.sid import SidTable, SidVocab


class TrieProcessor(LogitsProcessor):
    """-inf on every token that does not continue a catalogue semantic ID; a dictionary of prefixes, a loop over rows."""

    def __init__(self, sids: SidTable, vocab: SidVocab, prompt_length: int) -> None:
        self.prompt_length = prompt_length
        self.legal: dict[tuple[int, ...], set[int]] = {}
        for ids in vocab.token_ids(sids.sids_SL).tolist():
            for depth in range(len(ids)):
                self.legal.setdefault(tuple(ids[:depth]), set()).add(ids[depth])

    def __call__(self, input_ids, scores):
        masked = torch.full_like(scores, float("-inf"))
        for row, ids in enumerate(input_ids.tolist()):
            legal = list(self.legal.get(tuple(ids[self.prompt_length :]), ()))
            masked[row, legal] = scores[row, legal]
        return masked


def generate_beams(model, prompt: list[int], sids: SidTable, vocab: SidVocab, beams: int):
    """(token ids [K, L], scores [K]) of transformers' beam search for one prompt."""
    config = GenerationConfig(
        num_beams=beams, num_return_sequences=beams, max_new_tokens=sids.num_levels, min_new_tokens=sids.num_levels,
        length_penalty=0.0, do_sample=False, pad_token_id=0, eos_token_id=None,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    result = model.generate(
        torch.tensor([prompt]),
        generation_config=config,
        logits_processor=LogitsProcessorList([TrieProcessor(sids, vocab, len(prompt))]),
    )
    return result.sequences[:, len(prompt) :], result.sequences_scores


@torch.no_grad()
def brute_force(model, prompt: list[int], sids: SidTable, vocab: SidVocab) -> torch.Tensor:
    """Whole-vocabulary log-probability of every distinct semantic ID [S]."""
    answers = torch.tensor(vocab.token_ids(sids.sids_SL))
    ids = torch.cat([torch.tensor(prompt).expand(len(answers), -1), answers], dim=1)
    logps = model(input_ids=ids).logits.log_softmax(-1)[:, len(prompt) - 1 : -1]
    return logps.gather(-1, answers[..., None]).squeeze(-1).sum(1)
