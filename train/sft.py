"""Stage 09: supervised fine-tuning on the examples, loss and output head on the answer tokens only, no token twice.

reads   a model directory with SID tokens (08, or an earlier SFT stage), data/<D>/examples/<name>, data/<D>/sids/<name>;
        with soft targets the data set and an item model of it
writes  <output_dir>/{config.yaml, manifest.json, metrics.jsonl, samples.jsonl, checkpoint-*, final/}

Windows of one user share their prefix (train/supervised/units.py); losses and gradients are those of separate rows. A batch
counts windows: trainer.per_device_train_batch_size is how many of them it has on average.

Differs from the published recipes: one prompt for training, rollouts and evaluation; the best checkpoint is chosen by
item-level NDCG@10 of constrained recommendation on validation rows instead of the validation loss.

python -m train.sft --config configs/toy/sft_recommend.yaml --model outputs/quickstart/vocab \
    --examples data/toystore/examples/rqkmeans --sids data/toystore/sids/rqkmeans --output_dir outputs/quickstart/sft_recommend
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from configs import program
from configs.needs import Need, require_needs
from configs.program import InputError
from data.store.configuration import added
from data.store.output import Output, open_output
from data.tasks import TASKS
from infer.engine import DecodeSettings, load_engine
from infer.loading import LoadSettings, context_length
from train.arguments import Tracker
from train.soft_targets import SoftTargets, data_of
from train.trainable import LoraSettings, TrainWhat, check_choice

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
    task_weights: dict[str, float] = field(default_factory=dict)
    """weight of a task's rows in the loss; 1 for tasks that are not named"""
    leave_out_newest: float = 0.0
    """share of the train rows, the newest, that is left to policy optimisation (train.grpo --newest_share)"""
    max_length: int = 512
    """longest prompt + answer in tokens, at most what the model reads; a longer example is an error"""
    layout: Literal["user_tree", "packed", "padded"] = added("user_tree", before="padded")
    """user_tree: a user's windows share their prefix; packed: rows of whole examples; padded: one example a row"""
    row_tokens: int = 512
    """tokens that a packed row aims at; a longer example or user widens it"""
    tokens_dir: str | None = None
    """where rendered examples are kept; null = tokens/ beside the output directory"""
    supervise_end: bool = True
    """train the token that ends an answer behind semantic IDs too; text answers always have it"""
    train_what: TrainWhat = "all"
    """which parameters move (train/trainable.py): all, lora, new_rows, input_rows_and_head or embeddings"""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """of train_what lora"""
    loading: LoadSettings = field(default_factory=LoadSettings)
    """attention, 4-bit weights (QLoRA), Unsloth, Liger"""
    soft_targets: SoftTargets = field(default_factory=SoftTargets)
    """a teacher whose item probabilities are answers of history_to_sid too (train/supervised/soft_answers.py)"""
    soft_draws: int | None = None
    """answers drawn from the teacher for every window; null = 2. They decide where in the tree of codes is learned, not what"""
    data: str | None = None
    """prepared data set whose train rows the teacher scores and whose times say which are new; null = the one that the examples
    were made from"""
    label_smoothing: float = 0.0
    """share of each label's weight that is spread over the vocabulary"""
    embedding_rate: float = 1.0
    """learning rate of the rows of tokens, input and output, as a multiple of trainer.learning_rate: new rows have far to go"""
    dropout: float = 0.0
    """of embeddings and block outputs; for small models trained from scratch (train/supervised/dropout.py)"""
    max_prompt: int | None = None
    """longest prompt in tokens; a longer history loses its oldest items; null = no bound"""
    valid_rows: int | None = 1000
    """seeded sample of validation rows that choose the checkpoint; null = all of them"""
    valid_beams: int = 20
    """beams of that validation"""
    valid_thought: int = 0
    """longest thought in tokens before the answers of that validation; 0 = it asks for answers at once"""
    eval_share: float = added(0.15, before=1.0)
    """most of the run's work that validation may take (counted in multiplications): planned ones are left out until it holds;
    checkpoints between validations are left out while both take more of the time than that; 1 = none is left out"""
    select_by: Literal["ndcg@10", "hr@10", "loss"] = "ndcg@10"
    """what chooses the checkpoint, on the validation rows; loss: that of the trained tasks"""
    patience: int | None = None
    """stop after this many validations without a better one; null = train to the end"""
    enough: float | None = None
    """stop at the first validation with at least this much of select_by, so that stage 10 has something left to raise; null = never"""
    samples: int = 2
    """validation rows, and rows of each text task, whose answers samples.jsonl shows at every validation; 0 = none"""
    item_loss_rows: int = 0
    """rows of every task whose loss a validation logs: item tasks as fit and of held-out items, TIDs and instructions on valid
    rows (train/supervised/item_losses.py)"""
    keep_checkpoints: int = 2
    """newest checkpoints kept; the best one always stays"""
    seed: int = 0
    """of initial shuffles, dropout and the validation sample"""
    trainer: dict[str, Any] = field(default_factory=dict)
    """fields of trl.SFTConfig"""
    tracker: Tracker = "none"
    """where curves go besides metrics.jsonl; no part of the configuration"""
    plan: str | None = None
    """COUNTxCARD (8xH100, 1xA100 zero2) or cpu: say memory and time there, by estimate, and stop; nothing is written"""
    allow_change: list[str] = field(default_factory=list)
    """keys in which a run that was cut off may differ from its beginning (trainer.learning_rate, examples, world_size, ...): it goes on,
    and the manifest tells"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        if not 0 <= self.leave_out_newest < 1:
            raise InputError(f"leave_out_newest {self.leave_out_newest} must lie in [0, 1)")
        if wrong := [name for name, weight in self.task_weights.items() if name not in TASKS or weight <= 0]:
            raise InputError(
                f"task_weights.{wrong[0]} {self.task_weights[wrong[0]]} -> a task, and a weight above 0"
            )
        if self.keep_checkpoints < 1:
            raise InputError(f"keep_checkpoints {self.keep_checkpoints} must be at least 1")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing {self.label_smoothing} must lie in [0, 1)")
        if self.soft_draws is not None and self.soft_draws < 1:
            raise InputError(f"soft_draws {self.soft_draws} must be at least 1, or null")
        if self.embedding_rate <= 0:
            raise InputError(f"embedding_rate {self.embedding_rate} must be above 0")
        if not 0 < self.eval_share <= 1:
            raise InputError(f"eval_share {self.eval_share} must lie in (0, 1]")
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience {self.patience} must be at least 1, or null")
        if self.enough is not None and (self.select_by == "loss" or not 0 < self.enough <= 1):
            raise InputError(
                f"enough {self.enough} of {self.select_by} -> in (0, 1], of ndcg@10 or hr@10, or null"
            )
        if min(self.samples, self.item_loss_rows) < 0:
            raise InputError(
                f"samples {self.samples} and item_loss_rows {self.item_loss_rows} must be at least 0"
            )
        if self.row_tokens < 1 or self.valid_thought < 0:
            raise InputError(
                f"row_tokens {self.row_tokens} must be at least 1, valid_thought {self.valid_thought} at least 0"
            )
        check_choice(self.train_what, self.lora, quantized=self.loading.quantize != "none")
        if self.by_length and self.layout != "padded":
            raise InputError(
                f"trainer.train_sampling_strategy sorts what is padded, and layout {self.layout} pads nothing "
                "-> remove it or set layout to padded"
            )
        require_needs(self)

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        taught = self.soft_targets.teacher is not None
        return [
            Need(("soft_draws",), taught, "a teacher (--soft_targets.teacher, TEACHER of sft.sh)"),
            Need(("data",), taught or self.leave_out_newest > 0, "soft_targets.teacher or leave_out_newest"),
        ]

    def not_chosen(self) -> set[str]:
        """Options that this layout and this choice of parameters do not read."""
        unread = {"row_tokens"} if self.layout == "padded" else set()
        return unread | (set() if self.train_what == "lora" else {"lora"})

    @property
    def by_length(self) -> bool:
        """Whether batches are made of examples of similar lengths."""
        return self.trainer.get("train_sampling_strategy") == "group_by_length"


def train(args: SftArgs, out: Output) -> None:
    """Build the trainer, train to the end (resuming where there is a checkpoint), write final/."""
    from trl import SFTConfig

    from train.arguments import trainer_arguments
    from train.safety import finish, selection, train_to_the_end
    from train.supervised.dropout import add_dropout
    from train.supervised.rows import item_loss_batches, loss_rows, train_batches, validation_batches
    from train.supervised.schedule import Enough, Patience
    from train.supervised.trainer import AnswerTrainer
    from train.trackers import tracker_callbacks
    from train.trainable import choose
    from train.validation import Validator

    callbacks = tracker_callbacks(args, out.path)
    decode = DecodeSettings(beams=args.valid_beams, max_prompt=args.max_prompt)
    engine = load_engine(
        args.model, args.sids, args.examples, decode, trainable=True, loading=args.loading, **validation_mode(args)
    )  # fmt: skip
    context = context_length(engine.model.config)  # of inputs: an example's last token is none
    args = args if context is None else replace(args, max_length=min(args.max_length, context + 1))
    trainable = choose(args, engine)
    add_dropout(engine.model, args.dropout)
    config = trainer_arguments(
        SFTConfig,
        args.trainer,
        output_dir=out.path,
        seed=args.seed,
        max_length=args.max_length,
        dataset_kwargs={"skip_prepare_dataset": True},
        **selection(args.trainer, args.select_by),
    )
    table, batches = train_batches(args, out, engine, config)
    foretell(args, config, engine, batches)
    validator = Validator(engine, args.examples, rows=args.valid_rows, seed=args.seed)
    valid_batches = validation_batches(args, loss_rows(args, validator.examples, table), engine, config)
    item_batches = item_loss_batches(args, table, engine, config)
    trainer = AnswerTrainer(
        model=engine.model,
        args=config,
        batches=batches,
        valid_batches=valid_batches,
        validator=validator,
        item_batches=item_batches,
        smoothing=args.label_smoothing,
        embedding_rate=args.embedding_rate,
        spare_share=args.eval_share,
        samples=sampled(args, out, engine, validator, table),
        processing_class=engine.renderer.tokenizer,
        callbacks=[thinned(args, config, engine, batches, [valid_batches, *item_batches.values()])],
    )
    if args.patience is not None:
        trainer.add_callback(Patience(args.patience))
    if args.enough is not None:
        trainer.add_callback(Enough(args.enough))
    trainer.equip(args, engine, trainable, example_ids=table["example_id"].to_pylist())
    train_to_the_end(trainer, out.path, callbacks)
    finish(trainer, engine, validator, out)
    out.counts["label_tokens"] = batches.units.rows.label_tokens
    out.facts |= {"layout": args.layout, "throughput": trainer.throughput()}


def validation_mode(args: SftArgs) -> dict[str, Any]:
    """Where the answers of validation begin, as `load_engine` takes it; thoughts come in batches of the evaluation's size."""
    from infer.text.thinking import ThinkSettings

    if not args.valid_thought:
        return {}
    batch = args.trainer.get("per_device_eval_batch_size", 8)
    return {"mode": "think", "think": ThinkSettings(max_tokens=args.valid_thought, batch_size=int(batch))}


def foretell(args: SftArgs, config: Any, engine: Any, batches: Any) -> None:
    """On CUDA, say how much memory this training will need."""
    import torch

    from train.scale.forecast import foretold

    if not torch.cuda.is_available() or not config.should_log:
        return
    tokens = batches.units.tokens_U.sum() / batches.steps / batches.parts
    memory = torch.cuda.get_device_properties(config.device).total_memory
    text, enough = foretold(
        engine.model.config, config, train_what=args.train_what, tokens=int(tokens), memory=memory
    )
    (program.say if enough else program.warn)(text)


def sampled(args: SftArgs, out: Output, engine: Any, validator: Any, table: Any) -> Any:
    """What writes samples.jsonl; None without samples."""
    from train.samples import Samples

    if not args.samples:
        return None
    return Samples(
        out.path, engine, valid=validator.examples, train=table, examples_dir=args.examples, rows=args.samples
    )


def thinned(args: SftArgs, config: Any, engine: Any, batches: Any, measured: list[Any]) -> Any:
    """The callback that keeps validation within `eval_share`."""
    from train.supervised.schedule import EveryNth, forward_work, planned_interval, validation_stride

    steps = batches.steps
    interval = planned_interval(config, steps=steps)
    model, rows, valid = engine.model, batches.units, measured[0].units
    part = interval / steps
    train_work = 3 * part * forward_work(model, tokens=rows.tokens_U.sum(), states=rows.rows.label_tokens)
    beams = len(valid.rows) * (args.valid_beams * (engine.sids.num_levels - 1) + args.valid_thought)
    tokens, states = int(valid.rows.lengths_N.sum()) + beams, len(valid.rows) + beams
    valid_work = forward_work(model, tokens=tokens, states=states)
    for units in (one.units for one in measured):
        valid_work += forward_work(model, tokens=units.tokens_U.sum(), states=units.rows.label_tokens)
    stride = validation_stride(train_work / config.world_size, valid_work, share=args.eval_share)
    if stride > 1:
        print(
            f"validation at every {stride}. planned point and at the end: at all of them it would take "
            f"{valid_work / (valid_work + train_work / config.world_size):.0%} of the work (eval_share {args.eval_share})",
            flush=True,
        )
    return EveryNth(stride, interval)


def say_of_another_order(out: Output) -> None:
    """A warning where a training goes on that began before `layout` came: its batches were drawn by another generator."""
    earlier = out.path / "config.yaml"
    if out.resuming and out.leads and earlier.is_file() and "\nlayout:" not in earlier.read_text():
        program.warn(
            f"{out.path} was begun by a version that drew other batches: in the epoch that was cut off, some examples "
            "come twice and some not at all -> for a run as from one piece, start again with --overwrite"
        )


def main(args: SftArgs) -> None:
    if args.plan is not None:
        from train.plans.supervised import plan

        print(*plan(args), sep="\n")
        return
    inputs = {"model": args.model, "examples": args.examples, "sids": args.sids}
    if args.soft_targets.teacher is not None:
        inputs |= {"data": data_of(args.data, args.examples), "teacher": args.soft_targets.teacher}
    if args.leave_out_newest:
        inputs["data"] = data_of(args.data, args.examples)
    with open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        say_of_another_order(out)
        out.write_text("config.yaml", program.as_yaml(args))
        train(args, out)


if __name__ == "__main__":
    program.run(SftArgs, main)
