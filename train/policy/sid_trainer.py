"""GRPO over semantic IDs, in process: beams of the live policy are the rollouts, one update per rollout.

Each step: search G distinct legal IDs per prompt (best first), reward them, normalise within the group, and take the
policy gradient with a k3 penalty towards a frozen reference. A transformers.Trainer, so accelerate, checkpointing,
schedules and loggers are the library's.

Differs from the published systems: the target travels in the row, never through a dictionary keyed by text; a group with
fewer legal items than G is masked instead of padded with copies; groups without signal are counted and, with
`drop_zero_variance`, left out of the loss instead of contributing KL only; the loss is a mean over the valid tokens of
the whole optimizer step, so that it does not depend on micro-batches and ranks.

Legend: P prompts, G rollouts of a group, L levels, M = L where rewards are per level, else 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Trainer

from configs.program import InputError
from infer.engine import Engine
from infer.search.scoring import Parity
from infer.search.tree import Beams, search
from train.policy.dropout import without_dropout
from train.policy.logprobs import row_logprobs
from train.policy.losses import Advantages, group_advantages, loss_function
from train.policy.settings import GrpoSettings
from train.rewards import RolloutBatch
from train.rewards.mixture import Mixture
from train.safety import SafeTrainer


class SidTrainer(SafeTrainer, Trainer):
    """`rows` are the example columns and `prompts` the token ids, both by position; a batch holds positions alone."""

    evaluates_loss = False

    def __init__(
        self,
        *,
        engine: Engine,
        reference: Any | None,
        rewards: Mixture,
        settings: GrpoSettings,
        rows: Sequence[dict[str, Any]],
        prompts: Sequence[Sequence[int]],
        validate: Callable[[], dict[str, float]],
        branch_logprobs: Callable[..., Tensor] = row_logprobs,
        **kwargs: Any,
    ) -> None:
        if (reference is None) != (settings.beta == 0):
            raise InputError(
                f"beta {settings.beta} and a reference model {'given' if reference else 'missing'} do not fit"
            )
        self.loss = loss_function(settings.loss)
        if not settings.dropout:
            without_dropout(engine.model)
        positions = [{"row": position} for position in range(len(prompts))]
        super().__init__(
            model=engine.model, data_collator=collate, train_dataset=positions, eval_dataset=[], **kwargs
        )
        self.engine, self.reference, self.rewards = engine, reference, rewards
        self.settings, self.rows, self.prompts, self.validate = settings, rows, prompts, validate
        self.branch_logprobs = branch_logprobs
        self.model_accepts_loss_kwargs = True  # the loss is divided by the tokens of the step, here
        self.meters: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
        if reference is not None:
            reference.to(self.args.device).eval().requires_grad_(False)
            # the same mixed precision as the policy, or the KL would start above 0
            self.reference = self.accelerator.prepare_model(reference, evaluation_mode=True)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, int]:
        """The micro-batches of one optimizer step with their rollouts, and the tokens of its loss over all ranks.

        The weights stay the same until the step, so rolling out all of them first changes nothing but the order.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        policy = self.accelerator.unwrap_model(self.model_wrapped)
        cells = torch.zeros((), dtype=torch.long, device=device)
        for inputs in batches:
            positions = inputs["row"].tolist()
            beams = self._roll_out(policy, [self.prompts[position] for position in positions])
            inputs["beams"], inputs["advantages"] = beams, self._advantages(positions, beams)
            cells += inputs["advantages"].cells(beams.codes_BKL.shape[2])
        return batches, int(self.accelerator.reduce(cells, reduction="sum"))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: int = 1
    ) -> Any:
        """The policy loss of one micro-batch: its share of the step's `num_items_in_batch` tokens."""
        prompts = [self.prompts[position] for position in inputs["row"].tolist()]
        beams, advantages = inputs["beams"], inputs["advantages"]
        layout = {"space": self.settings.logprob_space, "temperature": self.settings.temperature}
        policy_PGL = self.branch_logprobs(model, self.engine.trie, prompts, beams, **layout)
        reference_PGL = None
        if self.reference is not None:
            with torch.no_grad():
                reference_PGL = self.branch_logprobs(
                    self.reference, self.engine.trie, prompts, beams, **layout
                )
        loss, kl = self.loss(
            policy_PGL, reference_PGL, advantages, beta=self.settings.beta, cells=num_items_in_batch
        )
        self._meter("kl", float(kl), int(advantages.cells(policy_PGL.shape[2])))
        loss = loss * self.accelerator.num_processes  # DDP averages gradients; the count is that of all ranks
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

    def _advantages(self, positions: Sequence[int], beams: Beams) -> Advantages:
        batch = self.rollout_batch(positions, beams)
        total_PGM, given = self.rewards(batch)
        # a beam beyond the legal ones is nothing to learn from, whatever a reward says of it
        total_PGM[np.array([[not items for items in group] for group in batch.item_ids])] = np.nan
        rewards_PGM = torch.tensor(total_PGM, dtype=torch.float32, device=self.args.device)
        advantages = group_advantages(rewards_PGM)
        for label, values in [*((f"reward/{label}", v) for label, v in given.items()), ("reward", total_PGM)]:
            known = values[np.isfinite(values)]
            self._meter(label, known.sum(), known.size)
        self._meter("hit_rate", sum(any(group) for group in batch.hits), len(batch.rows))
        self._meter("zero_variance_share", int(advantages.flat_PM.sum()), advantages.flat_PM.numel())
        return advantages.without_flat_groups() if self.settings.drop_zero_variance else advantages

    def _meter(self, name: str, total: float, count: int) -> None:
        self.meters[name] += total, count

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training and self.meters:
            logs |= self._mean_meters()
        super().log(logs, start_time)

    def _mean_meters(self) -> dict[str, float]:
        """Means since the last log over all processes, which meter the same names; empties the meters."""
        names, sums = list(self.meters), np.stack(list(self.meters.values()))
        self.meters.clear()
        sums = torch.tensor(sums, dtype=torch.float32, device=self.args.device)
        total, count = self.accelerator.reduce(sums, reduction="sum").T.tolist()
        return {name: t / c if c else float("nan") for name, t, c in zip(names, total, count, strict=True)}

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: a batch holds no tokens, and no log shows them."""
        return 0


def collate(features: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Row positions int64 [P]."""
    return {"row": torch.tensor([feature["row"] for feature in features])}
