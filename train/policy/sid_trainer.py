"""GRPO over semantic IDs, in process: beams of the live policy are the rollouts, one update per rollout.

Each step: search G distinct legal IDs per prompt (best first), reward them, normalise within the group, and take the
policy gradient with a k3 penalty towards a frozen reference. A transformers.Trainer, so accelerate, checkpointing,
schedules and loggers are the library's.

Differs from the published systems: the target travels in the row, never through a dictionary keyed by text; a group with
fewer legal items than G is masked instead of padded with copies; groups without signal are counted and, with
`drop_zero_variance`, left out of the loss instead of contributing KL only.

Legend: P prompts, G rollouts of a group, L levels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from configs.program import InputError
from infer.engine import Engine
from infer.search.scoring import Parity
from infer.search.tree import Beams, left_pad, search
from train.policy.logprobs import row_logprobs
from train.policy.losses import group_advantages, policy_loss
from train.policy.settings import GrpoSettings
from train.rewards import RewardFunction, RolloutBatch
from train.safety import SafeTrainer


class SidTrainer(SafeTrainer, Trainer):
    """`rows` are the example columns by position; the dataset holds {"prompt": ids, "row": position}."""

    evaluates_loss = False

    def __init__(
        self,
        *,
        engine: Engine,
        reference: Any | None,
        rewards: Sequence[RewardFunction],
        settings: GrpoSettings,
        rows: Sequence[dict[str, Any]],
        validate: Callable[[], dict[str, float]],
        branch_logprobs: Callable[..., Tensor] = row_logprobs,
        **kwargs: Any,
    ) -> None:
        if (reference is None) != (settings.beta == 0):
            raise InputError(
                f"beta {settings.beta} and a reference model {'given' if reference else 'missing'} do not fit"
            )
        super().__init__(model=engine.model, data_collator=collate, eval_dataset=[], **kwargs)
        self.engine, self.reference, self.rewards = engine, reference, list(rewards)
        self.settings, self.rows, self.validate = settings, rows, validate
        self.branch_logprobs = branch_logprobs
        self.model_accepts_loss_kwargs = False
        self.meters: dict[str, list[float]] = defaultdict(list)
        if reference is not None:
            reference.to(self.args.device).eval().requires_grad_(False)
            # the same mixed precision as the policy, or the KL would start above 0
            self.reference = self.accelerator.prepare_model(reference, evaluation_mode=True)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Roll out, reward, and return the policy loss of this batch of prompts."""
        prompts = [self.train_dataset[int(row)]["prompt"] for row in inputs["row"]]
        policy = self.accelerator.unwrap_model(model)
        beams = self._roll_out(policy, prompts)
        batch = self.rollout_batch(inputs["row"].tolist(), beams)
        rewards_PG = self._reward(batch)
        advantages = group_advantages(rewards_PG)
        if self.settings.drop_zero_variance:
            advantages = advantages.without_flat_groups()
        layout = {"space": self.settings.logprob_space, "temperature": self.settings.temperature}
        policy_PGL = self.branch_logprobs(model, self.engine.trie, prompts, beams.codes_BKL, **layout)
        reference_PGL = None
        if self.reference is not None:
            with torch.no_grad():
                reference_PGL = self.branch_logprobs(
                    self.reference, self.engine.trie, prompts, beams.codes_BKL, **layout
                )
        loss, kl = policy_loss(policy_PGL, reference_PGL, advantages, beta=self.settings.beta)
        self._meter(batch, rewards_PG, int(advantages.flat_P.sum()), float(kl))
        return (loss, {}) if return_outputs else loss

    def _roll_out(self, policy: Any, prompts: Sequence[Sequence[int]]) -> Beams:
        training = policy.training
        policy.eval()
        with self.accelerator.autocast():
            beams = search(
                policy,
                prompts,
                self.engine.trie,
                self.settings.num_generations,
                self.settings.rollout_space,
                parity=Parity(temperature=self.settings.temperature),
            )
        policy.train(training)
        return beams

    def rollout_batch(self, positions: Sequence[int], beams: Beams) -> RolloutBatch:
        """Beams as rewards see them; a beam beyond the legal ones has no items."""
        sids, counts = self.engine.sids, beams.counts_B.tolist()
        items = [
            [
                tuple(sids.items_of_sid(node).tolist()) if rank < count else ()
                for rank, node in enumerate(nodes)
            ]
            for nodes, count in zip(beams.nodes_BK.tolist(), counts, strict=True)
        ]
        rows = [self.rows[position] for position in positions]
        return RolloutBatch(rows, beams.codes_BKL.cpu().numpy(), items, beams.scores_BK.cpu().numpy())

    def _reward(self, batch: RolloutBatch) -> Tensor:
        """Sum of the rewards float32 [P, G]; NaN where every one of them is None."""
        values = []
        for function in self.rewards:
            table = [[float("nan") if r is None else r for r in group] for group in function(batch)]
            values.append(torch.tensor(table, device=self.args.device))
            self.meters[f"reward/{function.__name__}"].append(float(values[-1].nanmean()))
        stacked = torch.stack(values)
        total = stacked.nan_to_num(0.0).sum(0)
        return total.masked_fill(stacked.isnan().all(0), float("nan"))

    def _meter(self, batch: RolloutBatch, rewards_PG: Tensor, zero_variance: int, kl: float) -> None:
        groups = len(rewards_PG)
        hit = sum(
            any(set(items) & set(row["target"]) for items in g)
            for row, g in zip(batch.rows, batch.item_ids, strict=True)
        )
        self.meters["reward"].append(float(rewards_PG.nanmean()))
        self.meters["hit_rate"].append(hit / groups)
        self.meters["zero_variance_share"].append(zero_variance / groups)
        self.meters["kl"].append(kl)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training and self.meters:
            logs |= self._mean_meters()
        super().log(logs, start_time)

    def _mean_meters(self) -> dict[str, float]:
        """Means since the last log over all processes, which meter the same names equally often; empties the meters."""
        means = [sum(values) / len(values) for values in self.meters.values()]
        names = list(self.meters)
        self.meters.clear()
        of_all = self.accelerator.reduce(torch.tensor(means, device=self.args.device), reduction="mean")
        return dict(zip(names, of_all.tolist(), strict=True))


def collate(features: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Prompts left-padded (for the trainer's token counting) and their row positions."""
    ids_PT, mask_PT = left_pad([feature["prompt"] for feature in features], device="cpu")
    rows = torch.tensor([feature["row"] for feature in features])
    return {"input_ids": ids_PT, "attention_mask": mask_PT, "row": rows}
