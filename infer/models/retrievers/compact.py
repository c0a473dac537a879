"""A saved compact generator as infer/models/contract.py asks for: exact log-probabilities of all items.

The log-probability of an item is the sum over the levels of its path; items that share a semantic ID share its probability.
Of a history longer than the model's `positions` the newest items are read. A row without history has the scores of a state of
zeros: the biases of the nodes.

Legend: R rows, N items, C candidates of a row, T positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.program import InputError
from data.rows import Rows, TrainLog
from data.store.output import Output
from infer.loading import default_device
from infer.models.contract import read_settings, save_settings
from infer.models.recency import gap_levels
from infer.models.retrievers.compact_network import CompactModel
from infer.models.retrievers.compact_options import CompactShape
from infer.models.sequential.model import recent_items
from infer.models.sequential.windows import newest

FILE = "model.safetensors"
BONUS = "of items"  # of a history; models of before have them at nodes
BLOCK_VALUES = 1 << 20  # scores held at once: 4 MiB, which stay in a cache


class CompactScorer:
    """An item model (infer/models/contract.py) around a network in evaluation mode, as its weights are when it is made."""

    def __init__(
        self, network: CompactModel, nodes: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    ) -> None:
        """nodes: those of its weights, where they are known."""
        self.network, self.shape = network.eval(), network.shape
        self.num_items, self.positions = network.shape.num_items, network.shape.model.positions
        with torch.no_grad():
            self.nodes = network.nodes() if nodes is None else nodes

    def recounted(self, train: TrainLog) -> CompactScorer:
        """Its network with the companions of other train rows; what was learned stays, and is shared. Itself where it has none."""
        if self.network.companions is None:
            return self
        return CompactScorer(self.network.recounted(train), self.nodes)

    @property
    def device(self) -> torch.device:
        return self.network.codes_NL.device

    def score(self, rows: Rows, items_RC: np.ndarray | None = None) -> np.ndarray:
        """Log-probabilities float32 [R, N] or [R, C]."""
        width = self.num_items if items_RC is None else items_RC.shape[1]
        result, step = np.empty((len(rows), width), np.float32), max(1, BLOCK_VALUES // self.num_items)
        for start in range(0, len(rows), step):
            block = np.arange(start, min(start + step, len(rows)))
            log_RN = self.logs(rows.take(block)).cpu().numpy()
            result[block] = (
                log_RN if items_RC is None else np.take_along_axis(log_RN, items_RC[block], axis=1)
            )
        return result

    @torch.no_grad()
    def logs(self, rows: Rows) -> torch.Tensor:
        """Log-probabilities of every item, float32 [R, N] on the network's device."""
        return self.network.item_logs(*self.states(rows), self.nodes).T

    def states(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """(states [R, D], recent items [R, T]) of the rows, as the network's logits take them."""
        rows, _ = newest(rows, self.positions)
        lengths = np.diff(rows.offsets)
        history_RT = np.zeros((len(rows), max(int(lengths.max(initial=0)), 1)), np.int64)
        within_H = np.arange(len(rows.history_H)) - rows.offsets[rows.history_row_H]
        history_RT[rows.history_row_H, within_H] = rows.history_H
        gap_RT = np.zeros_like(history_RT)
        if self.shape.model.gaps:
            if rows.age_H is None:
                raise InputError("this model has time tokens -> give it rows with ages (with_ages)")
            gap_RT[rows.history_row_H, within_H] = gap_levels(rows)
        return self.padded_states(*(
            torch.from_numpy(part.astype(np.int64)).to(self.device)
            for part in (history_RT, lengths, rows.users_R, gap_RT)
        ))  # fmt: skip

    def padded_states(
        self,
        history_RT: torch.Tensor,
        length_R: torch.Tensor,
        user_R: torch.Tensor,
        gap_RT: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of histories padded on the right; a length of 0 has a state of zeros."""
        first_R = torch.arange(len(length_R), device=length_R.device) * history_RT.shape[1]
        at_R, filled_R1 = first_R + (length_R - 1).clamp(min=0), (length_R > 0)[:, None]
        state_RD = self.network.states(history_RT, at_R, user_R, gap_RT).masked_fill(~filled_R1, 0.0)
        return state_RD, recent_items(history_RT, at_R).masked_fill(~filled_R1, -1)


def save(out: Output, network: CompactModel, **known: Any) -> None:
    """Into an output directory, for `load`; `known` goes into its settings."""
    from safetensors.torch import save_file

    with out.replacing(FILE) as temporary:
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, temporary)
    save_settings(out, "compact", shape=network.shape.as_json(), bonus=BONUS, **known)


def load(directory: Path, *, device: str | None = None) -> CompactScorer:
    """The model that `save` wrote; on the GPU of this process where there is one."""
    from safetensors.torch import load_file

    settings = read_settings(directory)
    tensors: dict[str, Any] = load_file(directory / FILE)
    shape = CompactShape.from_json(settings["shape"])
    if shape.model.copy and settings.get("bonus") != BONUS:
        raise InputError(
            f"{directory} is a compact generator of an older version (bonuses at nodes) -> train it again"
        )
    if "codes_NL" not in tensors:
        raise InputError(f"{directory}/{FILE} has no semantic IDs (codes_NL) -> train it again")
    with torch.random.fork_rng(devices=[]):
        network = CompactModel(shape, tensors["codes_NL"].numpy())
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    if wanted != {name: value.shape for name, value in tensors.items()}:
        raise InputError(
            f"{directory}/{FILE} does not have the weights of its item_model.json -> train it again"
        )
    network.load_state_dict(tensors)
    return CompactScorer(network.requires_grad_(False).to(device or default_device()))
