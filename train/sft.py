"""Stage 09: supervised fine-tuning on the examples, loss and output head on the answer tokens only.

reads   a model directory with SID tokens (08, or an earlier SFT stage), data/<D>/examples/<name>, data/<D>/sids/<name>
writes  <output_dir>/{config.yaml, manifest.json, metrics.jsonl, checkpoint-*, final/}

Differs from the published recipes: one prompt for training, rollouts and evaluation; the best checkpoint is chosen by
item-level NDCG@10 of constrained recommendation on validation rows instead of the validation loss.

python -m train.sft --config configs/toy/sft_recommend.yaml --model outputs/quickstart/vocab \
    --examples data/toystore/examples/rqkmeans --sids data/toystore/sids/rqkmeans --output_dir outputs/quickstart/sft_recommend
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc

from configs import program
from configs.program import InputError
from data import artifacts
from data.store.output import Output, open_output
from infer.engine import DecodeSettings, load_engine

STAGE, VERSION = "sft", 1


@dataclass
class SftArgs:
    """Supervised fine-tuning."""

    model: str
    """model directory with SID tokens"""
    examples: str
    """examples directory (stage 07)"""
    sids: str
    """SID directory that model and examples were made with"""
    output_dir: str
    """where checkpoints and final/ go, e.g. outputs/<run>/sft_recommend"""
    tasks: list[str] = field(default_factory=list)
    """train on these tasks of the examples only; empty = all of them"""
    max_length: int = 512
    """longest prompt + answer in tokens; a longer example is an error"""
    dropout: float = 0.0
    """of embeddings and block outputs; for small models trained from scratch (train/supervised/dropout.py)"""
    max_prompt: int | None = None
    """longest prompt in tokens; a longer history loses its oldest items; null = no bound"""
    valid_rows: int | None = 1000
    """seeded sample of validation rows that choose the checkpoint; null = all of them"""
    valid_beams: int = 20
    """beams of that validation"""
    keep_checkpoints: int = 2
    """newest checkpoints kept; the best one always stays"""
    seed: int = 0
    """of initial shuffles, dropout and the validation sample"""
    trainer: dict[str, Any] = field(default_factory=dict)
    """fields of trl.SFTConfig"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        if self.keep_checkpoints < 1:
            raise InputError(f"keep_checkpoints {self.keep_checkpoints} must be at least 1")


def training_rows(args: SftArgs) -> Any:
    """The train examples of the chosen tasks; InputError for a task that the examples lack."""
    table = artifacts.read(args.examples, artifacts.EXAMPLES, file="train.parquet")
    if not args.tasks:
        return table
    missing = set(args.tasks) - set(table["task"].unique().to_pylist())
    if missing:
        raise InputError(
            f"examples {args.examples} have no task {', '.join(sorted(missing))} -> build them in stage 07"
        )
    return table.filter(pc.is_in(table["task"], value_set=artifacts.text_array(args.tasks)))


def train(args: SftArgs, out: Output) -> None:
    """Build the trainer, train to the end (resuming where there is a checkpoint), write final/."""
    from trl import SFTConfig

    from train.arguments import trainer_arguments
    from train.safety import finish, selection, train_to_the_end
    from train.supervised.dataset import supervised_dataset, task_counts
    from train.supervised.dropout import add_dropout
    from train.supervised.trainer import AnswerTrainer
    from train.validation import Validator

    decode = DecodeSettings(beams=args.valid_beams, max_prompt=args.max_prompt)
    engine = load_engine(args.model, args.sids, args.examples, decode, trainable=True)
    add_dropout(engine.model, args.dropout)
    config = trainer_arguments(
        SFTConfig,
        args.trainer,
        output_dir=out.path,
        seed=args.seed,
        max_length=args.max_length,
        **selection(args.trainer),
    )
    rows = training_rows(args)
    train_set = supervised_dataset(rows, engine.renderer, max_length=args.max_length)
    validator = Validator(engine, args.examples, rows=args.valid_rows, seed=args.seed)
    valid_set = supervised_dataset(validator.examples, engine.renderer, max_length=args.max_length)
    trainer = AnswerTrainer(
        model=engine.model,
        args=config,
        train_dataset=train_set,
        eval_dataset=valid_set,
        processing_class=engine.renderer.tokenizer,
    )
    trainer.validate, trainer.keep_checkpoints = validator, args.keep_checkpoints
    trainer.vocab, trainer.example_ids = engine.renderer.vocab, rows["example_id"].to_pylist()
    train_to_the_end(trainer, out.path)
    finish(trainer, engine, validator, out)
    out.counts |= {f"{task} examples": count for task, count in task_counts(rows).items()}
    out.counts["label_tokens"] = _label_tokens(train_set)


def _label_tokens(dataset: Any) -> int:
    return sum(sum(label >= 0 for label in labels) for labels in dataset["labels"])


def main(args: SftArgs) -> None:
    inputs = {"model": args.model, "examples": args.examples, "sids": args.sids}
    with open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        out.write_text("config.yaml", program.as_yaml(args))
        train(args, out)


if __name__ == "__main__":
    program.run(SftArgs, main)
