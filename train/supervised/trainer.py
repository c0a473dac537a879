"""TRL's SFTTrainer with the safety net, over batches that compute every prefix once and the head on labels only.

The objective is the usual one: whole-vocabulary cross-entropy, averaged over the label tokens of the global batch. TRL
1.16 restricts its head too, but spends two thirds of a small model's step on per-token statistics; they are left out.

Legend: B rows, T slots of a row, D hidden size, M labels.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from trl import SFTTrainer

from infer.search.causal import AttentionMasks
from train.new_rows import NAME
from train.safety import SafeTrainer
from train.samples import Samples
from train.scale.gathering import WholeCopy, decoding, inside_forward, reduce_in_float32, shards_weights
from train.scale.sparing import SpareCheckpoints
from train.scale.tables import lookups_of
from train.scale.work import peak_here, work_of
from train.supervised.batches import IGNORED, SOFT, Batches, visible
from train.supervised.head import SoftLabels, head_loss


def answer_loss(
    model: Any, batch: dict[str, Any], *, smoothing: float = 0.0, divisor: float | Tensor = 1
) -> Tensor:
    """Sum of the label losses of a batch of `Batches` over `divisor` (float32 scalar).

    Goes through the model's own forward, so that wrappers (DDP, FSDP2, DeepSpeed) see it; its head computes one position,
    ours M of them, as a part of that forward (train/scale/gathering.py).
    """
    inner = getattr(model, "module", model)
    masks = AttentionMasks(inner)
    positions_BT, width = batch["position_ids"], batch["input_ids"].shape[1]
    weights_M = batch.get("label_weights")
    if weights_M is None:
        weights_M = torch.ones(batch["labels"].shape, device=positions_BT.device)
    soft = SoftLabels(*(batch[name] for name in SOFT)) if SOFT[0] in batch else None

    def score(output: Any) -> Tensor:
        hidden_MD = output.hidden_states[-1].flatten(0, 1)[batch["states"]]
        return head_loss(
            inner, hidden_MD, batch["labels"], weights_M / divisor, smoothing=smoothing, soft=soft,
            weight_VD=lookups.weight,
        )  # fmt: skip

    with lookups_of(inner) as lookups, inside_forward(inner, score):
        return model(
            input_ids=batch["input_ids"],
            position_ids=positions_BT,
            attention_mask=masks(visible(batch["spans"]), positions_BT, positions_BT),
            use_cache=False,
            output_hidden_states=True,
            logits_to_keep=torch.tensor([width - 1], device=positions_BT.device),
        )


class AnswerTrainer(SafeTrainer, SFTTrainer):
    """SFTTrainer on `Batches`; `validator` gives {"ndcg@10": ..}, to which the loss on `valid_batches` is added.

    spare_share: what validations and checkpoints may take together (train/scale/sparing.py).
    """

    evaluates_loss = False
    trains_shards = True

    def __init__(
        self,
        *,
        batches: Batches,
        valid_batches: Batches,
        validator: Any,
        item_batches: dict[str, Batches] | None = None,
        smoothing: float = 0.0,
        embedding_rate: float = 1.0,
        spare_share: float = 1.0,
        samples: Samples | None = None,
        **kwargs: Any,
    ) -> None:
        from datasets import Dataset

        # TRL wants a Dataset; what it would do to one is done already
        numbers = Dataset.from_dict({"batch": list(range(len(batches)))})
        super().__init__(train_dataset=numbers, eval_dataset=numbers, **kwargs)
        self.batches, self.valid_batches, self.item_batches = batches, valid_batches, item_batches or {}
        self.validator, self.smoothing, self.embedding_rate = validator, smoothing, embedding_rate
        self.work, self.peak = work_of(self.model), peak_here(bf16=self.args.bf16)
        self.spare, self.samples = SpareCheckpoints(spare_share), samples
        self.add_callback(self.spare)
        reduce_in_float32(self.accelerator)
        self.whole = WholeCopy(self.model) if shards_weights(self.accelerator) else None
        self.seen: Counter[str] = Counter()
        self.total: Counter[str] = Counter()
        self.since = time.perf_counter()

    def get_train_dataloader(self) -> Any:
        """One item is one batch."""
        loader = torch.utils.data.DataLoader(
            self.batches,
            batch_size=1,
            collate_fn=_only,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The stock one; rows of tokens, input and output, learn `embedding_rate` times as fast as the rest."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.embedding_rate != 1 and all("initial_lr" not in group for group in optimizer.param_groups):
            modules = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
            rows = {id(parameter) for module in modules for parameter in module.parameters()}
            rows |= {id(parameter) for parameter in getattr(self.model, NAME, torch.nn.Module()).parameters()}
            for group in list(optimizer.param_groups):
                mine = [parameter for parameter in group["params"] if id(parameter) in rows]
                if mine:
                    group["params"] = [
                        parameter for parameter in group["params"] if id(parameter) not in rows
                    ]
                    optimizer.add_param_group(
                        group | {"params": mine, "lr": group["lr"] * self.embedding_rate}
                    )
        return optimizer

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        count = (inputs["labels"] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        divisor = max(float(count), 1.0)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            divisor /= (
                self.accelerator.num_processes
            )  # DDP averages gradients; the count is that of all ranks
        with self.accelerator.autocast():  # accelerate's own ends before the hook that computes the head
            loss = answer_loss(model, inputs, smoothing=self.smoothing, divisor=divisor)
        self.seen["tokens"] += inputs["real_tokens"]
        self.seen["slots"] += inputs["input_ids"].numel()
        self.seen["windows"] += inputs["windows"]
        self.seen["labels"] += inputs["real_labels"]
        return (loss, {}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """On the screen, training logs also say how much of the batches was padding and how fast it went."""
        if "loss" in logs and self.seen["slots"]:
            seconds = time.perf_counter() - self.since
            logs["padding"] = round(1 - self.seen["tokens"] / self.seen["slots"], 4)
            logs["tokens_per_second"] = round(self.seen["tokens"] / seconds, 1)
            logs["windows_per_second"] = round(self.seen["windows"] / seconds, 1)
            if self.peak is not None:
                logs["mfu"] = self._mfu(self.seen, seconds)
            self.total += self.seen
            self.total["microseconds"] += round(1e6 * seconds)
            self.seen.clear()
            self.since = time.perf_counter()
        super().log(logs, start_time)

    def _mfu(self, seen: Counter[str], seconds: float) -> float | None:
        if self.peak is None:
            return None
        return round(self.work(tokens=seen["tokens"], labels=seen["labels"]) / seconds / self.peak, 4)

    def validate(self) -> dict[str, float]:
        """The losses on validation rows and on questions about items, and what the validator measures."""
        started = time.perf_counter()
        with decoding(self, self.validator.engine) as model:
            model.eval()
            found = {"loss": self._mean_loss(model, self.valid_batches)}
            found |= {name: self._mean_loss(model, rows) for name, rows in self.item_batches.items()}
            found |= self.validator()
            if self.samples is not None and self.is_world_process_zero():
                self.samples.write(self.state.global_step, *self.validator.best)
        self._set_aside(time.perf_counter() - started, "validation")
        return found

    @torch.no_grad()
    def _mean_loss(self, model: Any, batches: Batches) -> float:
        """Per label token."""
        total, count = 0.0, 0
        for index in range(len(batches)):
            batch = self._prepare_inputs(batches[index])
            total += float(answer_loss(model, batch))
            count += int((batch["labels"] != IGNORED).sum())
        return total / max(count, 1)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        started = time.perf_counter()
        super()._save_checkpoint(model, trial)
        seconds = time.perf_counter() - started
        self.spare.saving += seconds
        self._set_aside(seconds, "checkpoint")

    def _set_aside(self, seconds: float, what: str) -> None:
        """Time that is none of training's."""
        self.spare.spent += seconds
        self.total[f"{what}_microseconds"] += round(1e6 * seconds)
        self.since += seconds

    def throughput(self) -> dict[str, float | None]:
        """Of this process's part of the run: rates, padding, MFU, and the shares of the time that were no training."""
        total = self.total
        spent = {what: total[f"{what}microseconds"] / 1e6 for what in ("", "validation_", "checkpoint_")}
        seconds = max(spent[""], 1e-6)
        whole = seconds + spent["validation_"] + spent["checkpoint_"]
        return {
            "tokens_per_second": round(total["tokens"] / seconds, 1),
            "windows_per_second": round(total["windows"] / seconds, 1),
            "padding_share": round(1 - total["tokens"] / max(total["slots"], 1), 4),
            "gflops_per_second": round(
                self.work(tokens=total["tokens"], labels=total["labels"]) / seconds / 1e9, 3
            ),
            "mfu": self._mfu(total, seconds),
            "validation_share": round(spent["validation_"] / whole, 4),
            "checkpoint_share": round(spent["checkpoint_"] / whole, 4),
            "checkpoints_left_out": self.spare.left_out,
        }

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """manifest.json says what a card would."""


def _only(items: list[Any]) -> Any:
    return items[0]
