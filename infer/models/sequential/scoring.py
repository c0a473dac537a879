"""A saved sequential model as infer/models/contract.py asks for: log-probabilities of all items for rows of any history.

Of a history longer than the model's `positions` the newest items are read. A row without history has the scores of a state
of zeros: the bias of the items.

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
from infer.models.sequential.evidence import with_parts
from infer.models.sequential.model import SequentialModel
from infer.models.sequential.options import SequentialShape
from infer.models.sequential.windows import newest

FILE = "model.safetensors"
BLOCK_VALUES = 1 << 20  # scores held at once: 4 MiB, which stay in a cache


class SequentialScorer:
    """An item model (infer/models/contract.py) around a network in evaluation mode, as its weights are when it is made."""

    def __init__(self, network: SequentialModel) -> None:
        self.network, self.shape = network.eval(), network.shape
        self.num_items, self.positions = network.shape.num_items, network.shape.scorer.positions
        with torch.no_grad():
            self.items_ND = network.item_vectors()

    def score(self, rows: Rows, items_RC: np.ndarray | None = None) -> np.ndarray:
        """Log-probabilities float32 [R, N] or [R, C]."""
        width = self.num_items if items_RC is None else items_RC.shape[1]
        result, step = np.empty((len(rows), width), np.float32), max(1, BLOCK_VALUES // self.num_items)
        for start in range(0, len(rows), step):
            block = np.arange(start, min(start + step, len(rows)))
            logits_RN = self.logits(rows.take(block))
            logits_RN = torch.log_softmax(logits_RN, dim=1).cpu().numpy()
            result[block] = (
                logits_RN if items_RC is None else np.take_along_axis(logits_RN, items_RC[block], axis=1)
            )
        return result

    def recounted(self, train: TrainLog) -> SequentialScorer:
        """Its network with the companions of other train rows; what was learned stays, and is shared. Itself where it has none."""
        if self.network.evidence.companions is None:
            return self
        return SequentialScorer(with_parts(self.network, evidence=self.network.evidence.recounted(train)))

    @torch.no_grad()
    def logits(self, rows: Rows) -> torch.Tensor:
        """Logits of every item, float32 [R, N] on the network's device."""
        rows, _ = newest(rows, self.positions)
        lengths = np.diff(rows.offsets)
        history_RT = np.zeros((len(rows), max(int(lengths.max(initial=0)), 1)), np.int64)
        within_H = np.arange(len(rows.history_H)) - rows.offsets[rows.history_row_H]
        history_RT[rows.history_row_H, within_H] = rows.history_H
        device = self.network.bias_N.device
        filled = np.flatnonzero(lengths)
        at_R = np.arange(len(filled)) * history_RT.shape[1] + lengths[filled] - 1
        history, at, place = (
            torch.from_numpy(part).to(device) for part in (history_RT[filled], at_R, filled)
        )
        if len(filled) == len(rows):
            return self.network.logits(history, at, self.items_ND)
        logits_RN = self.network.bias_N.repeat(len(rows), 1)
        if len(filled):
            logits_RN[place] = self.network.logits(history, at, self.items_ND)
        return logits_RN


def save(out: Output, network: SequentialModel) -> None:
    """Into an output directory, for `load`."""
    from safetensors.torch import save_file

    with out.replacing(FILE) as temporary:
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, temporary)
    save_settings(out, "sequential", shape=network.shape.as_json())


def load(directory: Path, *, device: str | None = None) -> SequentialScorer:
    """The model that `save` wrote; on the GPU of this process where there is one."""
    from safetensors.torch import load_file

    settings = read_settings(directory)
    tensors: dict[str, Any] = load_file(directory / FILE)
    with torch.device("meta"):
        network = SequentialModel(SequentialShape.from_json(settings["shape"]))
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    if wanted != {name: value.shape for name, value in tensors.items()}:
        raise InputError(
            f"{directory}/{FILE} does not have the weights of its item_model.json -> train it again"
        )
    network.load_state_dict(tensors, assign=True)
    return SequentialScorer(network.requires_grad_(False).to(device or default_device()))
