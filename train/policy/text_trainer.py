"""GRPO over rollouts with text: TRL's GRPOTrainer, unmodified, driven through its `rollout_func`.

The thoughts and semantic IDs are train/policy/thoughts.py's, on token ids; rewards are the mixture of train/rewards, called
where the rollouts are made, and reach TRL as a column. TRL's loss is the policy gradient over the tokens that the rollouts
count (its `env_mask`), under whole-vocabulary log-probabilities, with the loss type, beta, clipping and scaling of its config.

Differs from train/policy/sid_trainer.py: every completion is a row of its own, and the reference model is loaded by TRL from the
directory that the model came from.

Legend: P prompts, G rollouts of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from trl import GRPOTrainer

from configs.program import InputError
from train.policy.losses import scale_of
from train.policy.settings import GrpoSettings, ThoughtSettings
from train.policy.thoughts import ThoughtPolicy, ThoughtRollouts
from train.rewards.mixture import Mixture
from train.safety import SafeTrainer

REWARD = "mixture"  # the column
# options of rollout that TRL's trainer has; all others must be as they are by default
KNOWN = {
    "num_generations", "loss", "beta", "epsilon", "epsilon_high", "delta", "scale_rewards", "updates", "use_bias_correction_kl",
}  # fmt: skip
LOSSES = ("grpo", "dapo", "dr_grpo")
ANSWER_ROOM = 64  # tokens of a completion behind its thought


def check(settings: GrpoSettings, *, train_what: str, hints: str | None, reference: str | None) -> None:
    """InputError for what rollouts with thoughts cannot be combined with."""
    other = GrpoSettings()
    names = [one.name for one in fields(settings) if one.name not in KNOWN]
    if foreign := [name for name in names if getattr(settings, name) != getattr(other, name)]:
        raise InputError(
            f"rollout.{foreign[0]} is for rollouts of semantic IDs alone -> remove it, or thought.max_tokens 0"
        )
    if settings.loss not in LOSSES:
        raise InputError(f"rollout.loss {settings.loss} knows no thoughts -> one of {', '.join(LOSSES)}")
    if train_what != "all" or hints is not None:
        raise InputError(
            "rollouts with thoughts train whole models without hints -> train_what all, no --hints"
        )
    if reference is not None:
        raise InputError(
            f"reference {reference}: rollouts with thoughts keep to the model that they start from -> remove it"
        )


def grpo_fields(settings: GrpoSettings, thought: ThoughtSettings, trainer: dict[str, Any]) -> dict[str, Any]:
    """Fields of trl.GRPOConfig; the batch size counts prompts in `trainer` and completions in TRL."""
    prompts = int(trainer.get("per_device_train_batch_size", 8))
    return {
        "per_device_train_batch_size": prompts * settings.num_generations,
        "num_generations": settings.num_generations,
        "max_completion_length": thought.max_tokens + ANSWER_ROOM,
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
        policy: ThoughtPolicy,
        rewards: Mixture,
        rows: Sequence[dict[str, Any]],
        prompts: Sequence[Sequence[int]],
        validate: Callable[[], dict[str, float]],
        **kwargs: Any,
    ) -> None:
        from datasets import Dataset

        self.policy, self.mixture, self.rows, self.prompts = policy, rewards, rows, prompts
        self.engine = policy.engine
        self.validate = validate
        positions = Dataset.from_dict({"prompt": [str(position) for position in range(len(prompts))]})
        super().__init__(
            model=policy.engine.model,
            reward_funcs=given_rewards,
            train_dataset=positions,
            eval_dataset=positions.select(range(1)),
            rollout_func=roll_out,
            **kwargs,
        )
        local = self.args.per_device_train_batch_size * self.args.steps_per_generation
        if local % self.num_generations:
            raise InputError(
                f"a process rolls out {local} completions at once, which groups of {self.num_generations} do not divide "
                "-> a multiple of the group size"
            )

    def rows_of(self, inputs: Any) -> list[int]:
        return [int(one["prompt"]) for one in inputs]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """manifest.json says what a card would."""


def roll_out(prompts: Sequence[str], trainer: TextTrainer) -> dict[str, Any]:
    """TRL's hook: prompts come repeated, a group side by side."""
    group = trainer.num_generations
    positions = [int(position) for position in prompts[::group]]
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
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
        REWARD: total_rewards(trainer, made),
    }


def total_rewards(trainer: TextTrainer, made: ThoughtRollouts) -> list[float | None]:
    """The mixture's total of every rollout, prompt by prompt; logs what each member gave. InputError for one per level.

    With beams behind a thought its total is the largest of theirs: 1 / log2(rank + 1) of the target under rank_discount, the longest
    right prefix under prefix_match.
    """
    total_PGM, given = trainer.mixture(made.batch if made.ranked is None else made.ranked)
    if total_PGM.shape[2] > 1:
        raise InputError(
            "a reward gives credit per level, and a thought has no levels -> rewards that give [P][G] for rollouts with thoughts"
        )
    total_PG = total_PGM[:, :, 0]
    if made.ranked is not None:
        shape = made.unfinished_PG.shape
        total_PG = np.fmax.reduce(total_PG, axis=1).reshape(shape)
        given = {name: np.fmax.reduce(values, axis=1).reshape(*shape, -1) for name, values in given.items()}
    if trainer.policy.settings.drop_unfinished:
        total_PG = np.where(made.unfinished_PG, np.nan, total_PG)
    for name, values in given.items():
        known = values[np.isfinite(values)]
        if known.size:
            trainer._log_metric(f"reward/{name}", float(known.mean()))
    listed = made.batch if made.ranked is None else made.ranked
    hits = np.array([any(group) for group in listed.hits]).reshape(len(made.unfinished_PG), -1)
    trainer._log_metric("hit_rate", float(hits.any(1).mean()))
    trainer._log_metric("thought_tokens", float(made.batch.thought_PG.mean()))
    trainer._log_metric("unfinished_share", float(made.unfinished_PG.mean()))
    return [None if np.isnan(value) else float(value) for value in total_PG.ravel()]


def given_rewards(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """What `roll_out` put beside the completions."""
    return columns[REWARD]
