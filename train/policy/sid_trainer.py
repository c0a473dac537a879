"""Policy optimisation over semantic IDs, in process: rollouts of the live policy, rewards, one backward on the prompt tree.

Each step: G legal IDs per prompt (train/policy/rollouts.py), rewards, advantages, log-probabilities of a reference and, where
several updates use one rollout, of the policy as it was; then the policy gradient. A transformers.Trainer, so accelerate,
checkpointing, schedules and loggers are the library's. A batch counts prompts, and a group lives on one process whole.

Differs from the published systems: the target travels in the row, never through a dictionary keyed by text; a group with
fewer legal items than G is masked instead of padded with copies; groups without signal are counted and can be left out of
the loss or replaced; codes that the trie forces carry no loss; a step does not depend on micro-batches and processes, but
for `rollout.replay`, where each process has its own memory.

Legend: P prompts, G rollouts of a group, L levels, M = L where rewards are per level, else 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import Trainer

from configs.program import InputError, ProgramError, warn
from infer.engine import Engine
from infer.search.tree import Beams
from train.policy.advantages import flat_groups
from train.policy.batches import Batch, batch_loss, counts, parts_of, rollout_batch, with_cells
from train.policy.dropout import without_dropout
from train.policy.logprobs import BranchScores, tree_logprobs
from train.policy.losses import scale_of
from train.policy.reference import reference_of
from train.policy.replay import RepeatedChunks, Replay, require_room
from train.policy.rollouts import join, roll_out, subtree, take_beams
from train.policy.settings import GrpoSettings
from train.policy.signal import Signal
from train.rewards.mixture import Mixture
from train.safety import SafeTrainer
from train.scale.gathering import WholeCopy, decoding, head_stays_whole, reduce_in_float32

SILENT_LOGS = 5  # logs in a row without a group that has signal, after which a run says so


class SidTrainer(SafeTrainer, Trainer):
    """`rows` are the example columns and `prompts` the token ids, both by position; a batch holds positions alone.

    reference: a model, or "adapter" where the policy without its adapter is one; None at beta 0. hints_R: codes of the target
    that each prompt is given. branch_scores: the policy forward, `tree_logprobs` or another of its signature.
    """

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
        branch_scores: Callable[..., BranchScores] = tree_logprobs,
        hints_R: np.ndarray | None = None,
        **kwargs: Any,
    ) -> None:
        if (reference is None) != (settings.beta == 0):
            raise InputError(
                f"beta {settings.beta} and a reference model {'given' if reference else 'missing'} do not fit"
            )
        scale_of(settings)
        require_room(settings.replay, kwargs["args"].per_device_train_batch_size)
        if not settings.dropout:
            without_dropout(engine.model)
        positions = [{"row": position} for position in range(len(prompts))]
        super().__init__(
            model=engine.model, data_collator=collate, train_dataset=positions, eval_dataset=[], **kwargs
        )
        self.engine, self.rewards, self.settings = engine, rewards, settings
        self.rows, self.prompts, self.measure, self.hints_R = rows, prompts, validate, hints_R
        self.targets_R = engine.sids.sid_of_item_N[[row["target"][0] for row in rows]]
        self.branch_scores = branch_scores
        self.model_accepts_loss_kwargs = True  # the loss is divided by the tokens of the step, here
        # processes wait for one another in every pass: DeepSpeed sums gradients as they come (ZeRO-2), FSDP2 gathers weights
        kind = self.accelerator.distributed_type
        self.meets_in_every_pass = kind in (DistributedType.DEEPSPEED, DistributedType.FSDP)
        self.trains_shards = kind == DistributedType.FSDP
        reduce_in_float32(self.accelerator)
        self.whole = WholeCopy(self.model) if self.trains_shards else None
        self.whole_steps = settings.updates  # a checkpoint between updates would lose their rollouts
        # these have moved when rollouts begin
        self.saves_inside_a_step = settings.sync_reference is None and not settings.replay
        self.signal, self.replay = Signal(), Replay(settings.replay)
        self.pending: list[Batch] = []
        self.totals = torch.zeros(5, dtype=torch.long)
        self.seconds: dict[str, float] = {}
        self.seen = self.silent = 0
        self.repeats: RepeatedChunks | None = None
        score = lambda model, prompts, beams: self._score(model, prompts, beams).logps_PGL  # noqa: E731
        self.reference = reference_of(reference, self, score, moves=settings.sync_reference is not None)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.settings.updates == 1:
            return super()._get_train_sampler(train_dataset)
        args = self.args
        chunk = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.repeats = RepeatedChunks(
            len(self.prompts), chunk=chunk, times=self.settings.updates, seed=args.seed
        )
        return self.repeats

    def _run_epoch(self, **kwargs: Any) -> None:
        if self.repeats is not None:
            self.repeats.epoch = kwargs["epoch"]
        super()._run_epoch(**kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, int]:
        """The micro-batches of one optimizer step with their rollouts, and the tokens of its loss over all processes.

        The weights stay the same until the step, so rolling out all of them first changes nothing but the order.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.state.global_step % self.settings.updates == 0:
            with decoding(self, self.engine) as policy, self._eval_mode(policy):
                self._follow(policy)
                self.pending = self._made(policy, [inputs["row"].tolist() for inputs in batches])
            local = sum(counts(batch, self.engine.trie, self.settings) for batch in self.pending)
            self.totals = self.accelerator.reduce(local.to(device), reduction="sum")
        for inputs, batch in zip(batches, self.pending, strict=True):
            inputs["batch"], inputs["row"] = batch, torch.tensor(batch.rows)
        self.step_rows = [row for batch in self.pending for row in batch.rows]
        return batches, int(self.totals[0])

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """One micro-batch, in parts that stay within `tokens_per_forward`: a long prompt costs time, not the run."""
        batch, total = inputs["batch"], torch.zeros((), device=self.args.device)
        self.seen += len(batch.rows)
        parts = self._parts(batch.prompts)
        idle = self._most_parts(len(parts)) - len(parts)
        parts = parts[:1] * idle + parts
        head_stays_whole(model)
        with self._timed("update"):
            for place, rows in enumerate(parts):
                part = batch if len(parts) == 1 else batch.take(rows)
                with nullcontext() if place == len(parts) - 1 else self._not_yet(model):
                    given = {"batch": part, "row": torch.tensor(part.rows), "idle": place < idle}
                    total = total + super().training_step(model, given, num_items_in_batch)
        return total

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The policy loss of one micro-batch: its share of the step."""
        batch = inputs["batch"]
        # accelerate's own ends before the head; rollouts and the reference are scored in the same number format
        with self.accelerator.autocast():
            loss, scores, parts = batch_loss(
                model, batch, self.totals, self.engine.trie, self.settings, self._score
            )
        if not inputs["idle"]:
            self.signal.scores(scores, parts, batch.cells.mask_PGL)
        # DDP averages gradients; the counts are those of all ranks
        loss = loss * (0 if inputs["idle"] else self.accelerator.num_processes)
        return (loss, {}) if return_outputs else loss

    def validate(self) -> dict[str, float]:
        """What the trainer was given to measure, on whole weights."""
        with decoding(self, self.engine):
            return self.measure()

    def _most_parts(self, count: int) -> int:
        """Parts that the process with most has of this micro-batch, where all must go backward equally often; else `count`."""
        if not self.meets_in_every_pass:
            return count
        return int(self.accelerator.gather(torch.tensor([count], device=self.args.device)).max())

    def _score(self, model: Any, prompts: Sequence[Sequence[int]], beams: Beams) -> BranchScores:
        """Scores of some prompts' rollouts; without a gradient in parts of `tokens_per_forward`."""
        layout = {"space": self.settings.logprob_space, "temperature": self.settings.temperature}
        if torch.is_grad_enabled():
            return self.branch_scores(model, self.engine.trie, prompts, beams, **layout)
        parts, order = [], self._parts(prompts)
        for rows in order:
            at = torch.tensor(rows, device=beams.nodes_BK.device)
            chosen = [prompts[row] for row in rows]
            parts.append(self.branch_scores(model, self.engine.trie, chosen, take_beams(beams, at), **layout))
        back = torch.argsort(torch.tensor([row for rows in order for row in rows]))
        columns = zip(*((p.logps_PGL, p.entropy_PGL, p.log_mass_PGL) for p in parts), strict=True)
        return BranchScores(*(torch.cat(values)[back.to(values[0].device)] for values in columns))

    def _parts(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Rows of each forward, in order."""
        branches = self.settings.num_generations * (self.engine.sids.num_levels - 1)
        widths = [len(prompt) + branches for prompt in prompts]
        return parts_of(widths, bound=self.settings.tokens_per_forward)

    def _made(self, policy: Any, rows: list[list[int]]) -> list[Batch]:
        """Batches of the step's rollouts, ready for the loss."""
        made = [self._scored_batch(self._rolled_out(policy, part)) for part in rows]
        made = [self._replayed(policy, batch) for batch in made]
        batch_std = self._batch_std(made) if scale_of(self.settings) == "batch" else 1.0
        made = [with_cells(batch, self.engine.trie, self.settings, batch_std) for batch in made]
        with self._timed("score"), torch.no_grad(), self.accelerator.autocast():
            return [self._with_others(policy, batch) for batch in made]

    def _rolled_out(self, policy: Any, rows: list[int]) -> Batch:
        """The rollouts of prompts, without rewards."""
        prompts, parts, made = [self.prompts[row] for row in rows], [], []
        hints = None if self.hints_R is None else self.hints_R[rows]
        with self._timed("rollout"), self.accelerator.autocast():
            for part in self._parts(prompts):
                parts.extend(part)
                made.append(
                    roll_out(
                        policy,
                        self.engine.trie,
                        [prompts[row] for row in part],
                        self.targets_R[[rows[row] for row in part]],
                        self.settings,
                        seed=self.args.seed + (self.state.global_step << 20),
                        keys=[int(self.example_ids[rows[row]]) for row in part],
                        hints_P=None if hints is None else hints[part],
                    )
                )
            rolled = join(made).take(np.argsort(parts).tolist())
            if self.settings.loss == "expected":
                beams = subtree(rolled.beams, self.engine.sids, self.engine.trie)
                given = torch.zeros_like(beams.nodes_BK, dtype=torch.bool)
                rolled = replace(rolled, beams=beams, given_PG=given)
        nothing = torch.zeros(0, device=self.args.device)
        return Batch(list(rows), prompts, self.targets_R[rows], rolled, nothing)

    def _scored_batch(self, batch: Batch) -> Batch:
        """The batch with its rewards, and what they and its rollouts tell."""
        examples = rollout_batch(
            [self.rows[row] for row in batch.rows], batch.rollouts.beams, self.engine.sids
        )
        with self._timed("reward"):
            try:
                total_PGM, given = self.rewards(examples)
            except ProgramError:
                self._save_what_there_is()
                raise
        # a beam beyond the legal ones is nothing to learn from, whatever a reward says of it
        total_PGM[np.array([[not items for items in group] for group in examples.item_ids])] = np.nan
        if self.settings.loss == "expected" and total_PGM.shape[2] > 1:
            raise InputError("loss expected sums rewards over items, not levels -> rewards without levels")
        rewards_PGM = torch.tensor(total_PGM, dtype=torch.float32, device=self.args.device)
        batch = replace(batch, rewards_PGM=rewards_PGM)
        flat_PM = flat_groups(rewards_PGM)
        self.signal.rewards(given, total_PGM, flat_PM)
        self.signal.rollouts(batch.rollouts, batch.targets_P, self.engine.sids)
        if self.settings.add_ground_truth:
            self.signal.add(
                "given_share", int(batch.rollouts.given_PG.sum()), batch.rollouts.given_PG.numel()
            )
        if self.hints_R is not None:
            self.signal.add("hint_depth", int(batch.rollouts.hint_P.sum()), len(batch.rows))
        return batch

    def _replayed(self, policy: Any, batch: Batch) -> Batch:
        """Some of the groups without signal replaced by prompts that had some, rolled out anew."""
        if not self.settings.replay:
            return batch
        flat_P = flat_groups(batch.rewards_PGM).all(1)
        instead = self.replay.instead(flat_P.nonzero().flatten().tolist(), batch.rows)
        self.replay.keep([row for row, flat in zip(batch.rows, flat_P.tolist(), strict=True) if not flat])
        self.signal.add("replayed_share", len(instead), len(batch.rows))
        if not instead:
            return batch
        again = self._scored_batch(self._rolled_out(policy, list(instead.values())))
        signal_P = (~flat_groups(again.rewards_PGM).all(1)).tolist()
        self.replay.keep([row for row, kept in zip(again.rows, signal_P, strict=True) if kept])
        places = list(range(len(batch.rows)))
        for at, place in enumerate(instead):
            places[place] = len(batch.rows) + at
        joined = Batch(
            batch.rows + again.rows,
            batch.prompts + again.prompts,
            np.concatenate([batch.targets_P, again.targets_P]),
            join([batch.rollouts, again.rollouts]),
            torch.cat([batch.rewards_PGM, again.rewards_PGM]),
        )
        return joined.take(places)

    def _batch_std(self, batches: Sequence[Batch]) -> Tensor:
        """Unbiased standard deviation of all rewards of the step, over processes."""
        values = torch.cat([batch.rewards_PGM.flatten() for batch in batches]).double()
        values = values[~values.isnan()]
        sums = torch.stack([values.new_tensor(float(len(values))), values.sum(), values.square().sum()])
        count, total, squares = self.accelerator.reduce(sums, reduction="sum")
        return ((squares - total.square() / count) / (count - 1)).clamp(min=0).sqrt().float()

    def _with_others(self, policy: Any, batch: Batch) -> Batch:
        """The batch with the log-probabilities of the reference and, for several updates, of the present policy."""
        beams, found = batch.rollouts.beams, {}
        if self.reference is not None:
            found["reference_PGL"] = self.reference.logprobs(batch.rows, batch.prompts, beams)
        if self.settings.updates > 1:
            found["old_PGL"] = self._score(policy, batch.prompts, beams).logps_PGL
        return replace(batch, **found)

    def _follow(self, policy: Any) -> None:
        """Every so many steps the reference moves towards the policy."""
        every, step = self.settings.sync_reference, self.state.global_step
        if every is not None and step and step % every == 0:
            self.reference.follow(policy, self.settings.sync_mixup)

    def _save_what_there_is(self) -> None:
        """A reward has failed: the steps so far are not lost. Other processes do not know of it, so only where there are none."""
        step = self.state.global_step
        there = Path(self.args.output_dir, f"checkpoint-{step}").exists()
        if self.accelerator.num_processes == 1 and step and step % self.settings.updates == 0 and not there:
            self._save_checkpoint(self.model, None)

    def _save_rng_state(self, output_dir: str) -> None:
        """Besides the random numbers: the reference, where it moves, and what is to be replayed."""
        super()._save_rng_state(output_dir)
        if self.reference is not None:
            self.reference.write(Path(output_dir), self.args.process_index)
        if self.settings.replay:
            self.replay.write(Path(output_dir), self.args.process_index)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """What `_save_rng_state` wrote besides: DeepSpeed reads weights by itself, and this is all that every kind of run comes to."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.reference is not None:
            self.reference.read(Path(checkpoint), self.args.process_index)
        if checkpoint is not None and self.settings.replay:
            self.replay.read(Path(checkpoint), self.args.process_index)

    @contextmanager
    def _eval_mode(self, policy: Any) -> Iterator[None]:
        training = policy.training
        policy.eval()
        try:
            yield
        finally:
            policy.train(training)

    @contextmanager
    def _not_yet(self, model: Any) -> Iterator[None]:
        """Within it a backward adds to the gradients of this process and tells the others nothing."""
        state = self.accelerator.gradient_state
        due = state.sync_gradients
        state._set_sync_gradients(False)
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        try:
            with nullcontext() if deepspeed else self.accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(due)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - start

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training and self.signal.sums:
            logs |= self.signal.means(self.accelerator, self.args.device)
            logs |= self._clock()
            if "zero_variance_share" in logs:  # a log of later updates alone has no new groups
                self._warn_of_silence(logs["zero_variance_share"] == 1)
        super().log(logs, start_time)

    def _warn_of_silence(self, silent: bool) -> None:
        self.silent = self.silent + 1 if silent else 0
        if self.silent == SILENT_LOGS:
            warn(
                f"no group of the last {SILENT_LOGS} logs had rewards that differ -> other rewards (prefix_match, first_diff), "
                "more rollouts (rollout.num_generations), hints (rollout.hint), or rollout.target_loss"
            )

    def _clock(self) -> dict[str, float]:
        """Seconds of the parts of this process's steps since the last log, and prompts per second of them."""
        spent = {f"{what}_seconds": round(seconds, 3) for what, seconds in self.seconds.items()}
        spent["prompts_per_second"] = round(self.seen / max(sum(self.seconds.values()), 1e-9), 2)
        self.seconds.clear()
        self.seen = 0
        return spent

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: a batch holds no tokens, and no log shows them."""
        return 0


def collate(features: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Row positions int64 [P]."""
    return {"row": torch.tensor([feature["row"] for feature in features])}
