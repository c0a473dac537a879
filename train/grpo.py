"""Stage 10: policy optimisation with trie-constrained rollouts on the examples' semantic-ID tasks.

Rollouts are semantic IDs (train/policy/sid_trainer.py); with `thought.max_tokens` each has a thought before it (text_trainer.py).

reads   a fine-tuned model directory (09), data/<D>/examples/<name>/train.parquet, data/<D>/sids/<name>
writes  <output_dir>/{config.yaml, manifest.json, metrics.jsonl, timing.jsonl, hints.parquet, checkpoint-*, final/}

timing.jsonl has seconds of rollouts, rewards, scores and updates of every log, by this machine's clock; hints.parquet is
there with `rollout.hint` (train/policy/hints.py).

Differs from the published recipes: policy and rollouts are one model in one process, rewards read the row's own target
items, and the checkpoint is chosen by item-level NDCG@10 on validation rows (metrics.jsonl starts with the model as it
came in, as step 0).

python -m train.grpo --config configs/toy/grpo.yaml --model outputs/quickstart/sft_recommend/final \
    --examples data/toystore/examples/rqkmeans --sids data/toystore/sids/rqkmeans --output_dir outputs/quickstart/grpo
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow.compute as pc

from configs import program
from configs.needs import Need, require_needs
from configs.program import InputError, say, warn
from data import artifacts
from data.rows import sample_rows
from data.store.configuration import added
from data.store.output import Output, open_output
from data.tasks import SID_TASKS, Answer, from_row
from infer.engine import DecodeSettings, load_engine
from infer.text.thinking import ThinkSettings
from train.arguments import Tracker
from train.policy.settings import GrpoSettings, ThoughtSettings
from train.rewards.spec import RewardSpec, read_specs, wanted
from train.soft_targets import data_of
from train.trainable import LoraSettings, TrainWhat, check_choice
from train.windows import newest_rows

STAGE, VERSION = "grpo", 1


@dataclass
class GrpoArgs:
    """Group-relative policy optimisation."""

    model: str
    """model directory to start from"""
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
    """how rollouts are drawn and scored, and what is optimised"""
    thought: ThoughtSettings = field(default_factory=ThoughtSettings)
    """thoughts before the answers of rollouts; none by default"""
    reference: str | None = None
    """model directory that the KL term draws to; null = the one to start from"""
    hints: str | None = None
    """hints.parquet of another run of these prompts; null = found before training (rollout.hint)"""
    newest_share: float | None = None
    """train on the newest share of the prompts only: those that SFT with leave_out_newest has not fitted; null = all"""
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
    """beams of that validation; 50 for HR@50"""
    eval_share: float = added(0.15, before=1.0)
    """most of the run's work that validation may take (counted in multiplications): planned ones are left out until it holds;
    1 = none is left out"""
    patience: int | None = None
    """stop after this many validations without a better one; null = train to the end"""
    keep_checkpoints: int = 2
    """newest checkpoints kept; the best one always stays"""
    seed: int = 0
    """of prompt order and samples"""
    trainer: dict[str, Any] = field(default_factory=dict)
    """fields of transformers.TrainingArguments; the per-device batch size counts prompts"""
    tracker: Tracker = "none"
    """where curves go besides metrics.jsonl; no part of the configuration"""
    plan: str | None = None
    """COUNTxCARD (8xH100, 1xA100 zero2) or cpu: say memory and time there, by estimate, and stop; nothing is written"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        if self.keep_checkpoints < 1 or (self.max_rows is not None and self.max_rows < 1):
            raise InputError(
                f"keep_checkpoints {self.keep_checkpoints} and max_rows {self.max_rows} must be at least 1"
            )
        if not 0 < self.eval_share <= 1 or (self.patience is not None and self.patience < 1):
            raise InputError(
                f"eval_share {self.eval_share} must lie in (0, 1], patience {self.patience} be at least 1 or null"
            )
        if self.newest_share is not None and not 0 < self.newest_share <= 1:
            raise InputError(f"newest_share {self.newest_share} must lie in (0, 1]")
        require_needs(self)
        check_choice(self.train_what, self.lora)
        wrong = sorted(set(self.tasks) - SID_TASKS)
        if wrong or not self.tasks:
            raise InputError(
                f"tasks {wrong or 'none given'} have no semantic-ID answer -> any of {', '.join(sorted(SID_TASKS))}"
            )

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        rewarded = wanted(read_specs(self.rewards))
        return [
            Need(("teacher",), "teacher" in rewarded, "a reward that needs a teacher"),
            Need(("embeddings",), "embeddings" in rewarded, "a reward that needs embeddings"),
            Need(
                ("data",), self.newest_share is not None or bool(rewarded & {"titles", "popularity"}),
                "newest_share or a reward that needs titles or popularity",
            ),
            Need(("hints",), self.rollout.hint, "rollout.hint true"),
            Need(("reference",), self.rollout.beta > 0, "rollout.beta above 0"),
            Need(("reference",), self.train_what != "lora", "another train_what than lora, whose reference is the model without the adapter"),
        ]  # fmt: skip

    def not_chosen(self) -> set[str]:
        """Options that this choice of parameters does not read."""
        return (set() if self.train_what == "lora" else {"lora"}) | (set() if self.thinks else {"thought"})

    @property
    def thinks(self) -> bool:
        """Whether a thought stands before the answer of a rollout."""
        return self.thought.max_tokens > 0


def prompt_rows(args: GrpoArgs) -> list[dict[str, Any]]:
    """The train rows whose prompts are rolled out. Validation and test rows are never read here."""
    table = artifacts.read(args.examples, artifacts.EXAMPLES, file="train.parquet")
    chosen = table.filter(pc.is_in(table["task"], value_set=artifacts.text_array(args.tasks)))
    if not chosen.num_rows:
        raise InputError(
            f"examples {args.examples} have no task {', '.join(args.tasks)} -> build them in stage 07"
        )
    if args.newest_share is not None:
        chosen = chosen.filter(
            newest_rows(chosen, data_of(args.data, args.examples), share=args.newest_share)
        )
    return chosen.take(sample_rows(chosen.num_rows, args.max_rows, args.seed)).to_pylist()


def load_reference(args: GrpoArgs, engine: Any, decode: DecodeSettings) -> Any:
    """A second model for the KL term, "adapter" where the policy without its own is one, None at beta 0."""
    from train.policy.reference import require_same_tokens

    if not args.rollout.beta:
        return None
    if args.train_what == "lora":
        return "adapter"
    where = args.reference or args.model
    other = load_engine(where, args.sids, args.examples, decode, trainable=True)
    rows = tuple(len(one.model.get_output_embeddings().weight) for one in (other, engine))
    require_same_tokens(other.renderer.vocab, engine.renderer.vocab, where=where, rows=rows)
    return other.model


def hints_of(args: GrpoArgs, trainer: Any, out: Output) -> Any:
    """Codes of the target that each prompt is given, found by all processes together and kept in hints.parquet."""
    from train.policy.hints import FILE, find_hints_together, read_hints, write_hints

    settings, file = args.rollout, out.path / FILE
    ids = [row["example_id"] for row in trainer.rows]
    if args.hints is not None:
        return read_hints(args.hints, ids, sids=trainer.engine.sids)
    if not file.exists():
        trainer.model.eval()
        depths = find_hints_together(
            trainer.engine, trainer.prompts, trainer.targets_R, group=settings.num_generations,
            space=settings.rollout_space, temperature=settings.temperature,
        )  # fmt: skip
        if out.leads:
            with out.replacing(FILE) as temporary:
                write_hints(temporary, ids, depths, sids=trainer.engine.sids)
    trainer.accelerator.wait_for_everyone()
    return read_hints(file, ids, sids=trainer.engine.sids)


def thinned(args: GrpoArgs, trainer: Any, validator: Any) -> Any:
    """The callback that keeps validation within `eval_share`."""
    from train.supervised.schedule import EveryNth, forward_work, validation_stride

    config, settings, prompts = trainer.args, args.rollout, trainer.prompts
    per_step = args.trainer.get("per_device_train_batch_size", 8) * config.gradient_accumulation_steps
    steps = max(1, len(prompts) // (per_step * config.world_size))
    interval = max(1, math.ceil(config.eval_steps or steps))
    branches, longest = trainer.engine.sids.num_levels - 1, sum(map(len, prompts)) / len(prompts)
    group, thought = settings.num_generations, args.thought.max_tokens
    states = per_step * (1 + group * branches) * (settings.logprob_space == "full")
    tokens = per_step * (longest + group * branches)
    if args.thinks:  # every completion is a row of its own
        states = per_step * group * (thought + branches)
        tokens = states + per_step * group * longest
    passes = 3 + (1 + (settings.beta > 0) + (settings.updates > 1)) / settings.updates
    work = forward_work(trainer.model, tokens=1, states=0), forward_work(trainer.model, tokens=0, states=1)
    train_work = interval * passes * (tokens * work[0] + states * work[1])
    beams = len(validator.prompts) * (args.valid_beams * branches + thought)
    valid_work = forward_work(
        trainer.model, tokens=sum(map(len, validator.prompts)) + beams, states=len(validator.prompts) + beams
    )
    stride = validation_stride(train_work, valid_work, share=args.eval_share)
    if stride > 1:
        say(
            f"validation at every {stride}. planned point and at the end: at all of them it would take "
            f"{valid_work / (valid_work + train_work):.0%} of the work (eval_share {args.eval_share})"
        )
    return EveryNth(stride, interval)


def configured(args: GrpoArgs, out: Output) -> Any:
    """The TrainingArguments, TRL's own where rollouts think."""
    from transformers import TrainingArguments

    from train.arguments import trainer_arguments
    from train.safety import selection

    fixed = selection(args.trainer) | {"eval_on_start": True, "remove_unused_columns": False}
    if not args.thinks:
        return trainer_arguments(
            TrainingArguments, args.trainer, output_dir=out.path, seed=args.seed, **fixed
        )
    from trl import GRPOConfig

    from train.policy.text_trainer import check, grpo_fields

    check(args.rollout, train_what=args.train_what, hints=args.hints, reference=args.reference)
    fixed |= grpo_fields(args.rollout, args.thought, args.trainer)
    return trainer_arguments(GRPOConfig, args.trainer, output_dir=out.path, seed=args.seed, **fixed)


def make_trainer(asked: GrpoArgs, engine: Any, decode: DecodeSettings, **common: Any) -> Any:
    """The trainer of rollouts with or without thoughts; `common` is what both take."""
    if asked.thinks:
        from train.policy.text_trainer import TextTrainer
        from train.policy.thoughts import ThoughtPolicy

        policy = ThoughtPolicy(engine, asked.thought, group=asked.rollout.num_generations, seed=asked.seed)
        return TextTrainer(policy=policy, **common)
    from train.policy.sid_trainer import SidTrainer

    return SidTrainer(
        engine=engine, reference=load_reference(asked, engine, decode), settings=asked.rollout, **common
    )


def validation_thoughts(args: GrpoArgs) -> ThinkSettings:
    """Greedy thoughts, as many at once as a rollout writes."""
    at_once = args.thought.batch_size * args.rollout.num_generations
    return ThinkSettings(max_tokens=args.thought.max_tokens, batch_size=at_once)


def train(args: GrpoArgs, out: Output) -> None:
    """Build the trainer, train to the end (resuming where there is a checkpoint), write final/."""
    from train.progress import Timing, without_signal
    from train.rewards.mixture import build_mixture
    from train.rewards.needs import Sources
    from train.safety import finish, train_to_the_end
    from train.supervised.schedule import Patience
    from train.trackers import tracker_callbacks
    from train.trainable import choose
    from train.validation import Validator

    callbacks = tracker_callbacks(args, out.path)
    config = configured(args, out)
    require_whole_updates(config, args.rollout.updates)
    decode = DecodeSettings(
        beams=args.valid_beams, max_prompt=args.max_prompt, batch_tokens=args.rollout.tokens_per_forward
    )
    engine = load_engine(
        args.model, args.sids, args.examples, decode, trainable=True, mode="think" if args.thinks else "direct",
        think=validation_thoughts(args) if args.thinks else None,
    )  # fmt: skip
    trainable = choose(args, engine)
    sources = Sources(
        engine.sids, data=args.data, embeddings=args.embeddings, teacher=args.teacher, made_from=args.examples
    )
    rewards = build_mixture(read_specs(args.rewards), sources)
    rows, group = prompt_rows(args), args.rollout.num_generations
    if group > len(engine.sids.sids_SL):
        warn(
            f"rollout.num_generations {group} is more than the {len(engine.sids.sids_SL)} semantic IDs: groups are smaller -> "
            "fewer rollouts"
        )
    validator = Validator(engine, args.examples, rows=args.valid_rows, seed=args.seed, group=group)
    trainer = make_trainer(
        args,
        engine,
        decode,
        rewards=rewards,
        rows=rows,
        prompts=engine.renderer.prompts(
            [replace(from_row(row), answer=Answer()) for row in rows], engine.mode
        ),
        validate=validator,
        args=config,
        processing_class=engine.renderer.tokenizer,
    )
    trainer.equip(args, engine, trainable, example_ids=[row["example_id"] for row in rows])
    if args.rollout.hint:
        trainer.hints_R = hints_of(args, trainer, out)
    callbacks += [Timing(out.path), thinned(args, trainer, validator)]
    callbacks += [] if args.patience is None else [Patience(args.patience)]
    train_to_the_end(trainer, out.path, callbacks)
    finish(trainer, engine, validator, out)
    out.counts["prompts"] = len(rows)
    if without_signal(out.path):
        warn(
            "no group had rewards that differ: nothing was learned -> other rewards, more rollouts (rollout.num_generations), "
            "or a model that sometimes finds the target"
        )


def require_whole_updates(config: Any, updates: int) -> None:
    """InputError where a checkpoint would fall between the updates of one rollout."""
    if config.eval_strategy == "steps" and config.eval_steps % updates:
        raise InputError(
            f"trainer.eval_steps {config.eval_steps:g} is no multiple of rollout.updates {updates}: a checkpoint between them "
            "would lose the rollouts -> a multiple"
        )


def main(args: GrpoArgs) -> None:
    if args.plan is not None:
        from train.plans.rollouts import plan

        print(*plan(args, len(prompt_rows(args))), sep="\n")
        return
    names = ("model", "examples", "sids", "data", "embeddings", "teacher", "reference", "hints")
    inputs = {name: getattr(args, name) for name in names}
    if args.newest_share is not None:
        inputs["data"] = data_of(args.data, args.examples)
    inputs |= {f"reward {file}": file for spec in read_specs(args.rewards) if (file := spec.file)}
    with open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        out.write_text("config.yaml", program.as_yaml(args))
        train(args, out)


if __name__ == "__main__":
    program.run(GrpoArgs, main)
