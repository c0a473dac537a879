"""TRL's SFTTrainer with the safety net and an output head that is computed on label positions only.

The objective is the usual one: whole-vocabulary cross-entropy, averaged over the label tokens of the global batch. TRL
1.16 restricts its head too, but spends two thirds of a small model's step on per-token statistics; they are left out.

Legend: B rows, T tokens, D hidden size, M label tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl import SFTTrainer

from train.safety import SafeTrainer
from train.supervised.dataset import IGNORED, RowCollator


def answer_loss(model: Any, inputs: dict[str, Tensor], num_labels: Tensor | int | None) -> Tensor:
    """Cross-entropy of the next-token labels (float32 scalar): sum over label positions / `num_labels`, or their mean.

    Goes through the model's own forward, so that wrappers (DDP) see it; its head computes one position, ours M of them.
    """
    context = {
        name: value
        for name, value in inputs.items()
        if name in ("input_ids", "attention_mask", "position_ids")
    }
    output = model(**context, use_cache=False, output_hidden_states=True, logits_to_keep=1)
    labels_BT = inputs["labels"][:, 1:]
    labelled_BT = labels_BT != IGNORED
    hidden_MD = output.hidden_states[-1][:, :-1][labelled_BT]
    head = getattr(model, "module", model).get_output_embeddings()
    logits_MV = head(hidden_MD).float()
    total = torch.nn.functional.cross_entropy(logits_MV, labels_BT[labelled_BT], reduction="sum")
    return total / (labelled_BT.sum() if num_labels is None else num_labels)


class AnswerTrainer(SafeTrainer, SFTTrainer):
    """SFTTrainer whose loss is `answer_loss`; its batches say which rows of the dataset they hold."""

    def __init__(self, **kwargs: Any) -> None:
        for name in ("train_dataset", "eval_dataset"):
            if kwargs.get(name) is not None:
                kwargs[name] = kwargs[name].add_column("row", list(range(len(kwargs[name]))))
        super().__init__(**kwargs)
        self.data_collator = RowCollator(self.data_collator)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "row" not in self._signature_columns:
            self._signature_columns.append("row")

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = answer_loss(model, inputs, num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = (
                loss * self.accelerator.num_processes
            )  # DDP averages gradients; the count is that of all ranks
        return (loss, {}) if return_outputs else loss

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """manifest.json says what a card would."""
