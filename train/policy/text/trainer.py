"""GRPO over rollouts with text: TRL's GRPOTrainer, unmodified, driven through its `rollout_func`.

Thoughts and the answers behind them are routing.py's, on token ids; rewards are the mixture of train/rewards, called
where the rollouts are made, and reach TRL as a column. TRL's loss is the policy gradient over the tokens that the rollouts
count (its `env_mask`), under whole-vocabulary log-probabilities, with the loss type, beta, clipping and scaling of its config. With
`thought.credit own` the advantages that it takes are one per token (credit.py).

A judge among the rewards that is out of credit, out of budget or out of reach ends the run in all processes: the state of the last step is
saved, so that the same command goes on from there.

Differs from train/policy/sid_trainer.py: every completion is a row of its own, and the reference model is loaded by TRL from the
directory that the model came from, so with LoRA too it is the model that training started from.

Legend: P prompts, G rollouts of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate.utils import gather_object
from trl import GRPOTrainer

from configs.program import InputError, ServiceError
from data.answers import INSTRUCTION_TASK
from train.policy.losses import scale_of
from train.policy.settings import GrpoSettings, ThoughtSettings, VllmSettings
from train.policy.text.credit import code_advantages, per_token
from train.policy.text.routing import RoutedRollouts, Router
from train.policy.text.thoughts import ThoughtRollouts
from train.policy.text.written import Written
from train.rewards.mixture import Mixture
from train.safety import SafeTrainer
from train.trainable import LoraSettings

REWARD = "mixture"  # the column
# options of rollout that TRL's trainer has; all others must be as they are by default
KNOWN = {
    "num_generations", "loss", "beta", "epsilon", "epsilon_high", "delta", "scale_rewards", "updates", "use_bias_correction_kl",
    "dropout",
}  # fmt: skip
LOSSES = ("grpo", "dapo", "dr_grpo")
ANSWER_ROOM = 64  # tokens of a completion behind its thought


def check(
    settings: GrpoSettings, *, train_what: str, lora: LoraSettings, hints: str | None, reference: str | None
) -> None:
    """InputError for what rollouts with thoughts cannot be combined with."""
    other = GrpoSettings()
    names = [one.name for one in fields(settings) if one.name not in KNOWN]
    if foreign := [name for name in names if getattr(settings, name) != getattr(other, name)]:
        raise InputError(
            f"rollout.{foreign[0]} is for rollouts of semantic IDs alone -> remove it, or thought.max_tokens 0"
        )
    if settings.loss not in LOSSES:
        raise InputError(f"rollout.loss {settings.loss} knows no thoughts -> one of {', '.join(LOSSES)}")
    if hints is not None or train_what not in ("all", "lora") or (train_what == "lora" and lora.new_rows):
        raise InputError(
            "rollouts with thoughts train whole models or LoRA of linear layers, without hints -> train_what all, or lora with "
            "lora.new_rows false; no --hints"
        )
    if reference is not None:
        raise InputError(
            f"reference {reference}: rollouts with thoughts keep to the model that they start from -> remove it"
        )


def grpo_fields(
    settings: GrpoSettings, thought: ThoughtSettings, trainer: dict[str, Any], *, answer: int = ANSWER_ROOM
) -> dict[str, Any]:
    """Fields of trl.GRPOConfig; the batch size counts prompts in `trainer` and completions in TRL. answer: tokens behind a thought."""
    prompts = int(trainer.get("per_device_train_batch_size", 8))
    if thought.credit == "own" and scale_of(settings) == "batch":
        raise InputError(
            "thought.credit own compares semantic IDs within their prompt -> rollout.scale_rewards group or none, or credit shared"
        )
    return {
        "per_device_train_batch_size": prompts * settings.num_generations,
        "num_generations": settings.num_generations,
        "max_completion_length": thought.max_tokens + answer,
        "temperature": 1.0,  # the loss is under the model's own probabilities
        "loss_type": settings.loss,
        "scale_rewards": scale_of(settings),
        "beta": settings.beta,
        "epsilon": settings.epsilon,
        "epsilon_high": settings.epsilon_high,
        "delta": settings.delta,
        "num_iterations": settings.updates,
        "use_bias_correction_kl": settings.use_bias_correction_kl,
    }


class TextTrainer(SafeTrainer, GRPOTrainer):
    """`rows` are the example columns and `prompts` the token ids, both by position; TRL is told positions alone."""

    evaluates_loss = False

    def __init__(
        self,
        *,
        policy: Router,
        rewards: Mixture,
        rows: Sequence[dict[str, Any]],
        prompts: Sequence[Sequence[int]],
        validate: Callable[[], dict[str, float]],
        vllm: VllmSettings | None = None,
        samples: int = 0,
        **kwargs: Any,
    ) -> None:
        from datasets import Dataset

        self.policy, self.mixture, self.rows, self.prompts = policy, rewards, rows, prompts
        self.engine = policy.engine
        self.validate = validate
        self.code_advantages: list[
            list[float]
        ] = []  # of the last rollouts, empty where codes have none of their own
        positions = Dataset.from_dict({"prompt": [str(position) for position in range(len(prompts))]})
        super().__init__(
            model=policy.engine.model,
            reward_funcs=given_rewards,
            train_dataset=positions,
            eval_dataset=positions.select(range(1)),
            rollout_func=roll_out,
            **kwargs,
        )
        if self.ref_model is not None:  # TRL reads it as the library does by default
            reference = self.accelerator.unwrap_model(self.ref_model)
            reference.set_attn_implementation(self.engine.model.config._attn_implementation)
        local = self.args.per_device_train_batch_size * self.args.steps_per_generation
        if local % self.num_generations:
            raise InputError(
                f"a process rolls out {local} completions at once, which groups of {self.num_generations} do not divide "
                "-> a multiple of the group size"
            )
        self.vllm_thoughts = None
        if vllm is not None and vllm.mode != "none":
            from train.policy.text.vllm import VllmThoughts

            self.vllm_thoughts = policy.items.writer = VllmThoughts(
                self.engine, self.accelerator, policy.settings, vllm, group=self.num_generations,
                prompts=local // self.num_generations, longest=max(map(len, prompts)) + policy.settings.max_tokens,
            )  # fmt: skip
        self.written = Written(Path(self.args.output_dir), self.engine, samples=samples)

    def rows_of(self, inputs: Any) -> list[int]:
        return [int(one["prompt"]) for one in inputs]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """manifest.json says what a card would."""

    def rewarded(self, made: RoutedRollouts) -> list[float | None]:
        """The total of every rollout, in the order of the prompts. ServiceError in all processes where a judge fails in one."""
        group = self.num_generations
        worth: list[list[Worth]] = [[] for _ in range(len(made.prompt_ids) // group)]
        fault = None
        try:
            for positions, part in made.parts:
                found = total_rewards(self, part)
                for place, at in enumerate(positions):
                    worth[at] = found[place * group : (place + 1) * group]
        except ServiceError as error:
            fault = str(error)
        several = self.accelerator.num_processes > 1
        if told := next(filter(None, gather_object([fault]) if several else [fault]), None):
            step = self.state.global_step
            kept = f"the state of step {step} is saved" if step else "no step was done"
            raise ServiceError(f"{told} [{kept}, {self.args.output_dir}]")
        flat = [one for of_prompt in worth for one in of_prompt]
        self.code_advantages = [one.codes for one in flat]
        return [one.total for one in flat]

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's batch; where codes have advantages of their own, `advantages` are [B, T], which TRL's loss takes as well."""
        batch = super()._generate_and_score_completions(inputs)
        if any(self.code_advantages):
            width = batch["completion_ids"].shape[1]
            batch["advantages"] = per_token(batch["advantages"], self.code_advantages, width=width)
        return batch

    def _run_epoch(self, **kwargs: Any) -> None:
        """A judge that fails leaves as a notice does: with the checkpoint of the last whole step (train/scale/preemption.py)."""
        try:
            super()._run_epoch(**kwargs)
        except ServiceError:
            self._leave()
            raise


def roll_out(prompts: Sequence[str], trainer: TextTrainer) -> dict[str, Any]:
    """TRL's hook: prompts come repeated, a group side by side."""
    group = trainer.num_generations
    positions = [int(position) for position in prompts[::group]]
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if trainer.vllm_thoughts is not None:
        trainer.vllm_thoughts.refresh(trainer.state.global_step)
    training = model.training
    model.eval()
    with trainer.accelerator.autocast():
        made = trainer.policy.roll_out(
            [trainer.rows[position] for position in positions],
            [trainer.prompts[position] for position in positions],
            step=trainer.state.global_step,
        )
    model.train(training)
    return {
        "prompt_ids": made.prompt_ids,
        "completion_ids": made.completion_ids,
        "logprobs": None,
        "env_mask": made.counted,
        REWARD: trainer.rewarded(made),
    }


class Worth(NamedTuple):
    """A completion's total reward, None where there is none; of its tokens the advantage that is theirs alone (credit.py), if any."""

    total: float | None
    codes: list[float]


def total_rewards(trainer: TextTrainer, made: ThoughtRollouts) -> list[Worth]:
    """The mixture's total of every rollout of one kind of task, prompt by prompt; logs what each member gave. InputError for one per level.

    With beams behind a thought its total is the largest of theirs: 1 / log2(rank + 1) of the target under rank_discount, the longest
    right prefix under prefix_match.
    """
    total_PGM, given = trainer.mixture(made.batch if made.ranked is None else made.ranked)
    if total_PGM.shape[2] > 1:
        raise InputError(
            "a reward gives credit per level, and a thought has no levels -> rewards that give [P][G] for rollouts with thoughts"
        )
    settings, total_PG = trainer.policy.settings, total_PGM[:, :, 0]
    codes: list[list[float]] = [[] for _ in made.completion_ids]
    if made.ranked is not None:
        shape, total_EK = made.unfinished_PG.shape, total_PG
        if settings.credit == "own":
            cut_E1 = made.unfinished_PG.reshape(-1, 1) & settings.drop_unfinished
            codes = code_advantages(
                made.beam_at, np.where(cut_E1, np.nan, total_EK), group=shape[1], scale=trainer.scale_rewards
            )
        total_PG = np.fmax.reduce(total_PG, axis=1).reshape(shape)
        given = {name: np.fmax.reduce(values, axis=1).reshape(*shape, -1) for name, values in given.items()}
    if settings.drop_unfinished:
        total_PG = np.where(made.unfinished_PG, np.nan, total_PG)
    log_rewards(trainer, made, given, total_PG)
    trainer.written.append(trainer, made.batch, given, total_PG)
    totals = [None if np.isnan(value) else float(value) for value in total_PG.ravel()]
    return [Worth(*pair) for pair in zip(totals, codes, strict=True)]


def log_rewards(
    trainer: TextTrainer, made: ThoughtRollouts, given: dict[str, np.ndarray], total_PG: np.ndarray
) -> None:
    """Means of every member and of every task's total, hits, lengths. What is None leaves a mean, and `reward_none` counts it."""
    for name, values in given.items():
        known = values[np.isfinite(values)]
        if known.size:
            trainer._log_metric(f"reward/{name}", float(known.mean()))
    tasks = np.array([str(row.get("task")) for row in made.batch.rows])
    for task in np.unique(tasks):
        own = total_PG[tasks == task]
        if np.isfinite(own).any():
            trainer._log_metric(f"reward/task={task}", float(np.nanmean(own)))
    trainer._log_metric("reward_none", float(np.isnan(total_PG).mean()))
    listed = made.batch if made.ranked is None else made.ranked
    hits = np.array([any(group) for group in listed.hits]).reshape(len(made.unfinished_PG), -1)
    told = made.batch.rows[0].get("task") == INSTRUCTION_TASK
    trainer._log_metric("tid_hit_rate" if told else "hit_rate", float(hits.any(1).mean()))
    trainer._log_metric("thought_tokens", float(made.batch.thought_PG.mean()))
    trainer._log_metric("unfinished_share", float(made.unfinished_PG.mean()))


def given_rewards(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """What `roll_out` put beside the completions."""
    return columns[REWARD]
