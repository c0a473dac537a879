"""Stage 10: GRPO with trie-constrained beam rollouts on the examples' semantic-ID tasks.

reads   a fine-tuned model directory (09), data/<D>/examples/<name>/train.parquet, data/<D>/sids/<name>
writes  <output_dir>/{config.yaml, manifest.json, metrics.jsonl, checkpoint-*, final/}

Differs from the published recipes: policy and rollouts are one model in one process, rewards read the row's own target
items, and the checkpoint is chosen by item-level NDCG@10 on validation rows (metrics.jsonl starts with the model as it
came in, as step 0).

python -m train.grpo --config configs/toy/grpo.yaml --model outputs/quickstart/sft_recommend/final \
    --examples data/toystore/examples/rqkmeans --sids data/toystore/sids/rqkmeans --output_dir outputs/quickstart/grpo
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc

from configs import program
from configs.program import InputError, warn
from data import artifacts
from data.rows import sample_rows
from data.store.output import Output, open_output
from data.tasks import SID_TASKS, from_row
from infer.engine import DecodeSettings, load_engine
from train.arguments import Tracker
from train.policy.settings import GrpoSettings
from train.rewards.spec import RewardSpec, read_specs
from train.trainable import LoraSettings, TrainWhat, check_choice

STAGE, VERSION = "grpo", 1


@dataclass
class GrpoArgs:
    """Group-relative policy optimisation."""

    model: str
    """model directory to start from; also the frozen reference"""
    examples: str
    """examples directory (stage 07)"""
    sids: str
    """SID directory that model and examples were made with"""
    output_dir: str
    """where checkpoints and final/ go, e.g. outputs/<run>/grpo"""
    tasks: list[str] = field(default_factory=lambda: ["history_to_sid"])
    """tasks whose examples are prompts; their answer must be a semantic ID"""
    rewards: list[str | RewardSpec] = field(default_factory=lambda: ["exact_match", "rank_aware"])
    """rewards, summed: names, or {name, weight, params, needs} where a name may be my_file.py:function"""
    data: str | None = None
    """prepared data set, for rewards that need titles"""
    embeddings: str | None = None
    """embeddings directory (stage 02), for rewards that need embeddings"""
    teacher: str | None = None
    """directory of an item model, for rewards that need a teacher"""
    rollout: GrpoSettings = field(default_factory=GrpoSettings)
    """group size, KL weight, temperature, score spaces"""
    train_what: TrainWhat = "all"
    """which parameters move (train/trainable.py): all, lora, new_rows, input_rows_and_head or embeddings"""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """of train_what lora"""
    max_rows: int | None = None
    """train on a seeded sample of this many prompts; null = all"""
    max_prompt: int | None = None
    """longest prompt in tokens; a longer history loses its oldest items; null = no bound"""
    valid_rows: int | None = 1000
    """seeded sample of validation rows that choose the checkpoint; null = all of them"""
    valid_beams: int = 20
    """beams of that validation"""
    keep_checkpoints: int = 2
    """newest checkpoints kept; the best one always stays"""
    seed: int = 0
    """of prompt order and samples"""
    trainer: dict[str, Any] = field(default_factory=dict)
    """fields of transformers.TrainingArguments; the per-device batch size counts prompts"""
    tracker: Tracker = "none"
    """where curves go besides metrics.jsonl; no part of the configuration"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        if self.keep_checkpoints < 1 or (self.max_rows is not None and self.max_rows < 1):
            raise InputError(
                f"keep_checkpoints {self.keep_checkpoints} and max_rows {self.max_rows} must be at least 1"
            )
        check_choice(self.train_what, self.lora)
        wrong = sorted(set(self.tasks) - SID_TASKS)
        if wrong or not self.tasks:
            raise InputError(
                f"tasks {wrong or 'none given'} have no semantic-ID answer -> any of {', '.join(sorted(SID_TASKS))}"
            )

    def not_chosen(self) -> set[str]:
        """Options that this choice of parameters does not read."""
        return set() if self.train_what == "lora" else {"lora"}


def prompt_rows(args: GrpoArgs) -> list[dict[str, Any]]:
    """The train rows whose prompts are rolled out. Validation and test rows are never read here."""
    table = artifacts.read(args.examples, artifacts.EXAMPLES, file="train.parquet")
    chosen = table.filter(pc.is_in(table["task"], value_set=artifacts.text_array(args.tasks)))
    if not chosen.num_rows:
        raise InputError(
            f"examples {args.examples} have no task {', '.join(args.tasks)} -> build them in stage 07"
        )
    return chosen.take(sample_rows(chosen.num_rows, args.max_rows, args.seed)).to_pylist()


def train(args: GrpoArgs, out: Output) -> None:
    """Build the trainer, train to the end (resuming where there is a checkpoint), write final/."""
    from transformers import TrainingArguments

    from train.arguments import trainer_arguments
    from train.policy.losses import loss_function
    from train.policy.sid_trainer import SidTrainer
    from train.progress import without_signal
    from train.rewards.mixture import build_mixture
    from train.rewards.needs import Sources
    from train.safety import finish, selection, train_to_the_end
    from train.trackers import tracker_callbacks
    from train.trainable import choose
    from train.validation import Validator

    callbacks = tracker_callbacks(args, out.path)
    loss_function(args.rollout.loss)
    fixed = selection(args.trainer) | {"eval_on_start": True, "remove_unused_columns": False}
    config = trainer_arguments(TrainingArguments, args.trainer, output_dir=out.path, seed=args.seed, **fixed)
    decode = DecodeSettings(beams=args.valid_beams, max_prompt=args.max_prompt)
    engine = load_engine(args.model, args.sids, args.examples, decode, trainable=True)
    trainable = choose(args, engine)
    sources = Sources(
        engine.sids, data=args.data, embeddings=args.embeddings, teacher=args.teacher, made_from=args.examples
    )
    rewards = build_mixture(read_specs(args.rewards), sources)
    reference = None
    if args.rollout.beta:
        reference = load_engine(args.model, args.sids, args.examples, decode, trainable=True).model
    rows = prompt_rows(args)
    validator = Validator(engine, args.examples, rows=args.valid_rows, seed=args.seed)

    trainer = SidTrainer(
        engine=engine,
        reference=reference,
        rewards=rewards,
        settings=args.rollout,
        rows=rows,
        prompts=engine.renderer.prompts([from_row(row) for row in rows]),
        validate=validator,
        args=config,
        processing_class=engine.renderer.tokenizer,
    )
    trainer.equip(args, engine, trainable, example_ids=[row["example_id"] for row in rows])
    train_to_the_end(trainer, out.path, callbacks)
    finish(trainer, engine, validator, out)
    out.counts["prompts"] = len(rows)
    if without_signal(out.path):
        warn(
            "no group had rewards that differ: nothing was learned -> other rewards, more rollouts (rollout.num_generations), "
            "or a model that sometimes finds the target"
        )


def main(args: GrpoArgs) -> None:
    inputs = {
        name: getattr(args, name) for name in ("model", "examples", "sids", "data", "embeddings", "teacher")
    }
    inputs |= {f"reward {file}": file for spec in read_specs(args.rewards) if (file := spec.file)}
    with open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        out.write_text("config.yaml", program.as_yaml(args))
        train(args, out)


if __name__ == "__main__":
    program.run(GrpoArgs, main)
