"""A model with semantic-ID tokens (TIGER, HiD-VAE's retriever) as infer/models/contract.py asks for: exact scores of items.

The score of an item is the log-probability of its semantic ID in the model's score space, minus the logarithm of how many items
share the ID. All items: every prefix of the catalogue is computed once. Some items of each row: their IDs
behind the history, all levels in one pass. Of a history longer than the model reads the newest items are read; to a row without
history every item is alike.

Cost: a decoder position per prefix of the catalogue and row. Affordable for thousands of items, not for millions.

Legend: B rows, R rows of a block, N items, C candidates of a row, S distinct semantic IDs, L levels, M nodes at a depth,
X candidates of a node, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.program import InputError
from data.renderer import Renderer
from data.rows import Rows
from data.sid import SidTable, SidVocab, read_vocab
from data.signals import read_signals, write_signals
from data.store.output import Output
from infer.engine import DecodeSettings, Engine
from infer.loading import load_model
from infer.models.contract import read_settings, save_settings
from infer.search.prompts import right_pad
from infer.search.scoring import LevelScorer
from infer.search.trie import Trie
from infer.search.trunk import trunk_class

CODES = "codes.npy"
BLOCK_STATES = 1 << 13  # decoder rows at once


def answer_states(model: Any, ids_BT: Tensor, lengths_B: Tensor, tokens_BL: Tensor) -> Tensor:
    """Decoder states [B, L, D] before each token of an answer: prompts padded on the right, their lengths, the answers."""
    mask_BT = (torch.arange(ids_BT.shape[1], device=ids_BT.device) < lengths_B[:, None]).long()
    states_BTD = model.get_encoder()(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
    return decoder_states(model, states_BTD, mask_BT, tokens_BL)


def decoder_states(model: Any, states_BTD: Tensor, mask_BT: Tensor, tokens_BL: Tensor) -> Tensor:
    """The same behind encoded prompts."""
    start_B1 = torch.full_like(tokens_BL[:, :1], model.config.decoder_start_token_id)
    return model.get_decoder()(
        input_ids=torch.cat([start_B1, tokens_BL[:, :-1]], dim=1),
        encoder_hidden_states=states_BTD,
        encoder_attention_mask=mask_BT,
        use_cache=False,
    ).last_hidden_state


def paths(trie: Trie, codes_BL: Tensor) -> tuple[Tensor, Tensor]:
    """(trie nodes before each level int64 [B, L], tokens int64 [B, L]) of semantic IDs that the trie has."""
    nodes, tokens, node_B = [], [], torch.zeros_like(codes_BL[:, 0])
    for level in range(trie.num_levels):
        nodes.append(node_B)
        tokens.append(trie.tokens[level][codes_BL[:, level]])
        node_B = trie.child(level, node_B, codes_BL[:, level])
    return torch.stack(nodes, dim=1), torch.stack(tokens, dim=1)


class TigerScorer:
    """An item model around an encoder-decoder in evaluation mode."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.sids = engine, engine.sids
        self.num_items = engine.sids.num_items
        sharing_N = engine.sids.group_sizes_S[engine.sids.sid_of_item_N]
        self.shared_N = np.log(sharing_N).astype(np.float32)

    def score(self, rows: Rows, items_RC: np.ndarray | None = None) -> np.ndarray:
        """Log-probabilities float32 [R, N] or [R, C]."""
        width = self.num_items if items_RC is None else items_RC.shape[1]
        result = np.full((len(rows), width), -np.log(self.num_items), np.float32)
        filled = np.flatnonzero(np.diff(rows.offsets) > 0)
        prompts = self.prompts(rows.take(filled))
        beams = max(self.engine.trie.num_nodes[:-1]) if items_RC is None else width
        step = max(1, BLOCK_STATES // max(beams, 1))
        for start in range(0, len(filled), step):
            at = filled[start : start + step]
            some = prompts[start : start + step]
            if items_RC is None:
                result[at] = self._all(some)[:, self.sids.sid_of_item_N] - self.shared_N
            else:
                result[at] = self._some(some, items_RC[at]) - self.shared_N[items_RC[at]]
        return result

    @cached_property
    def children(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per level (parent, code, place among the parent's children), int64 each, of every node below it in the trie's order."""
        found, sids_SL, above_S = [], self.sids.sids_SL, np.zeros(len(self.sids.sids_SL), np.int64)
        for level in range(self.sids.num_levels):
            new_S = np.ones(len(sids_SL), bool)
            new_S[1:] = (sids_SL[1:, : level + 1] != sids_SL[:-1, : level + 1]).any(1)
            first_M = np.flatnonzero(new_S)
            parent_M, code_M = above_S[first_M], sids_SL[first_M, level].astype(np.int64)
            place_M = np.arange(len(first_M)) - np.searchsorted(parent_M, parent_M)
            found.append(
                tuple(
                    torch.from_numpy(part).to(self.engine.trie.device) for part in (parent_M, code_M, place_M)
                )
            )
            above_S = np.cumsum(new_S) - 1
        return found

    def prompts(self, rows: Rows) -> list[list[int]]:
        """Token ids of every history."""
        histories = self.engine.histories
        parts = np.split(rows.history_H, rows.offsets[1:-1])
        examples = [
            histories.example(history.tolist(), user_id=user)
            for history, user in zip(parts, rows.users_R.tolist(), strict=False)
        ]
        return self.engine.renderer.prompts(examples)

    @torch.no_grad()
    def _all(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Log-probability of every semantic ID, float32 [B, S]: every node of the trie is visited once, level by level."""
        engine, trie = self.engine, self.engine.trie
        batch, nodes = len(prompts), trie.num_nodes
        trunk = trunk_class(engine.model)(engine.model, slots=sum(nodes[1:-1]))
        hidden_BMD = trunk.start(*right_pad(prompts, device=trie.device))
        scorer = LevelScorer(engine.model, trie, engine.settings.score_space)
        score_BM = torch.zeros((batch, 1), device=trie.device)
        for level, (parent_M, code_M, place_M) in enumerate(self.children):
            node_BM = torch.arange(nodes[level], device=trie.device).expand(batch, -1)
            step_BMX, at_BMX = scorer(hidden_BMD, level, node_BM)
            step_BM = step_BMX[:, parent_M, code_M if at_BMX is None else place_M]
            score_BM = score_BM[:, parent_M] + step_BM
            if level + 1 < trie.num_levels:
                token_M = trie.tokens[level][code_M]
                hidden_BMD = trunk.extend(token_M.expand(batch, -1), parent_M.expand(batch, -1))
        return score_BM.float().cpu().numpy()

    @torch.no_grad()
    def _some(self, prompts: Sequence[Sequence[int]], items_BC: np.ndarray) -> np.ndarray:
        """Log-probability of the semantic IDs of some items, float32 [B, C]."""
        engine, trie = self.engine, self.engine.trie
        ids_BT, lengths_B = right_pad(prompts, device=trie.device)
        mask_BT = (torch.arange(ids_BT.shape[1], device=trie.device) < lengths_B[:, None]).long()
        states_BTD = engine.model.get_encoder()(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        batch, width = items_BC.shape
        codes_RL = torch.from_numpy(self.sids.codes_NL[items_BC.reshape(-1)].astype(np.int64)).to(trie.device)
        nodes_RL, tokens_RL = paths(trie, codes_RL)
        spread = (states_BTD.repeat_interleave(width, 0), mask_BT.repeat_interleave(width, 0))
        hidden_RLD = decoder_states(engine.model, *spread, tokens_RL)
        scorer = LevelScorer(engine.model, trie, engine.settings.score_space)
        total_R = sum(
            scorer.of_codes(
                hidden_RLD[:, level : level + 1], level, nodes_RL[:, level : level + 1], codes_RL[:, level : level + 1]
            ).squeeze(1)
            for level in range(trie.num_levels)
        )  # fmt: skip
        return total_R.view(batch, width).float().cpu().numpy()


def save(out: Output, engine: Engine) -> None:
    """What `load` needs beside the model: codes, wording, score space, signals."""
    out.write_array(CODES, engine.sids.codes_NL)
    if (signals := engine.histories.context.signals) is not None:
        write_signals(out, signals)
    save_settings(
        out,
        "tiger",
        sizes=list(engine.sids.sizes),
        wording=engine.wording,
        score_space=engine.settings.score_space,
    )


def load(directory: Path) -> TigerScorer:
    """The item model of a directory that train.train_tiger wrote; on the GPU of this process where there is one."""
    settings, vocab = read_settings(directory), read_vocab(directory)
    sids = SidTable(np.load(directory / CODES), tuple(settings["sizes"]))
    _require_own(vocab, sids, directory)
    model, tokenizer = load_model(directory)
    decode = DecodeSettings(score_space=settings["score_space"])
    signals = read_signals(directory, tokenizer)
    renderer = Renderer(tokenizer, vocab)
    engine = Engine(model, renderer, sids, decode, wording=settings["wording"], signals=signals)
    renderer.max_prompt = engine.prompt_room()
    return TigerScorer(engine)


def _require_own(vocab: SidVocab, sids: SidTable, directory: Path) -> None:
    if vocab.sids_sha256 != sids.sha256:
        raise InputError(f"{directory}/{CODES} are not the semantic IDs of its vocabulary -> train it again")
