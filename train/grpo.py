"""Stage 10: policy optimisation with trie-constrained rollouts on the examples' semantic-ID tasks.

Rollouts are semantic IDs (train/policy/sid_trainer.py); with `thought.max_tokens` each has a thought before it (train/policy/text).

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
from typing import TYPE_CHECKING, Any

from configs import program
from configs.needs import Need, require_needs
from configs.program import InputError, say, warn
from data.answers import INSTRUCTION_TASK
from data.store.configuration import added
from data.store.output import Output, open_output
from data.tasks import SID_TASKS, Answer, from_row
from infer.chat.judge import JudgeSettings
from infer.engine import DecodeSettings, load_engine
from infer.text.thinking import ThinkSettings
from train.arguments import Tracker
from train.policy.settings import GrpoSettings, InstructionSettings, ThoughtSettings, VllmSettings
from train.policy.workload import by_task, described, prompt_rows
from train.rewards.spec import RewardSpec, read_specs, wanted
from train.soft_targets import data_of
from train.trainable import LoraSettings, TrainWhat, check_choice

if TYPE_CHECKING:
    from train.rewards.judged import RewardJudge

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
    """tasks whose examples are prompts: those with a semantic ID as answer; with thoughts history_to_instruction too"""
    rewards: list[str | RewardSpec] = field(default_factory=lambda: ["exact_match", "rank_aware"])
    """rewards, summed: names, or {name, weight, params, needs} where a name may be my_file.py:function"""
    data: str | None = None
    """prepared data set, for rewards that need titles, popularity or a teacher of folds; that of the examples where it is not given"""
    embeddings: str | None = None
    """embeddings directory (stage 02), for rewards that need embeddings"""
    teacher: str | None = None
    """directory of an item model, for rewards that need a teacher"""
    teacher_folds: int = added(8, before=0)
    """of users: the prompts of each are answered without the teacher's counts of its users, as valid rows are; 0: with them"""
    rollout: GrpoSettings = field(default_factory=GrpoSettings)
    """how rollouts are drawn and scored, and what is optimised"""
    thought: ThoughtSettings = field(default_factory=ThoughtSettings)
    """thoughts before the answers of rollouts; none by default"""
    tids: str | None = None
    """TID directory (stage 05) with the terms that instructions may name, for task history_to_instruction"""
    instruction: InstructionSettings = field(default_factory=InstructionSettings)
    """terms and instructions behind thoughts, for that task"""
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    """who grades instructions, for rewards that need a judge"""
    vllm: VllmSettings = field(default_factory=VllmSettings)
    """what writes the thoughts: vLLM, or the trainer's own model"""
    samples: int = 2
    """rollouts of each kind of task in samples.jsonl, whenever rollouts with thoughts are made; 0 = none"""
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
    task_rows: dict[str, int] = field(default_factory=dict)
    """the same for single tasks, before it"""
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
    """COUNTxCARD (8xH100, 1xA100 zero2) or cpu: say prompts, questions to a judge, memory and time there, by estimate, and stop; nothing is written"""
    allow_change: list[str] = field(default_factory=list)
    """keys in which a run that was cut off may differ from its beginning (trainer.learning_rate, examples, world_size, ...): it goes on,
    and the manifest tells"""
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
        if self.teacher_folds < 0 or self.teacher_folds == 1:
            raise InputError(f"teacher_folds {self.teacher_folds} must be at least 2, or 0 for none")
        require_needs(self)
        check_choice(self.train_what, self.lora)
        wrong = sorted(set(self.tasks) - SID_TASKS - {INSTRUCTION_TASK})
        if wrong or not self.tasks:
            raise InputError(
                f"tasks {wrong or 'none given'} have no semantic-ID answer -> any of {', '.join(sorted(SID_TASKS))}, or "
                f"{INSTRUCTION_TASK} with thoughts"
            )
        if self.instructs and (not self.thinks or self.tids is None):
            raise InputError(
                f"task {INSTRUCTION_TASK} is answered behind thoughts, with the catalogue's terms -> thought.max_tokens above 0, "
                "and --tids DIRECTORY (stage 05)"
            )
        if off := [task for task, rows in self.task_rows.items() if task not in self.tasks or rows < 1]:
            raise InputError(
                f"task_rows.{off[0]} {self.task_rows[off[0]]} -> at least 1, of a task of {', '.join(self.tasks)}"
            )

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        rewarded = wanted(read_specs(self.rewards))
        return [
            Need(("teacher", "teacher_folds"), "teacher" in rewarded, "a reward that needs a teacher"),
            Need(("embeddings",), "embeddings" in rewarded, "a reward that needs embeddings"),
            Need(
                ("data",), self.newest_share is not None or bool(rewarded & {"titles", "popularity"})
                or ("teacher" in rewarded and self.teacher_folds > 0),
                "newest_share or a reward that needs titles, popularity or a teacher of folds",
            ),
            Need(("tids", "instruction"), self.instructs, f"task {INSTRUCTION_TASK}"),
            Need(("judge",), "judge" in rewarded, "a reward that needs a judge"),
            Need(("vllm", "samples"), self.thinks, "thought.max_tokens above 0"),
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

    @property
    def instructs(self) -> bool:
        """Whether instructions are among what is rolled out."""
        return INSTRUCTION_TASK in self.tasks


def thinned(args: GrpoArgs, trainer: Any, validator: Any, *, interval: int) -> Any:
    """The callback that keeps validation within `eval_share`; interval: steps between planned ones."""
    from train.supervised.schedule import EveryNth, forward_work, validation_stride

    config, settings, prompts = trainer.args, args.rollout, trainer.prompts
    per_step = args.trainer.get("per_device_train_batch_size", 8) * config.gradient_accumulation_steps
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


def planned(args: GrpoArgs, config: Any, prompts: int) -> int:
    """Optimizer steps between planned validations; InputError where a checkpoint would fall between the updates of one rollout."""
    from train.supervised.schedule import planned_interval

    per_step = args.trainer.get("per_device_train_batch_size", 8) * config.gradient_accumulation_steps
    updates, whole = args.rollout.updates, prompts // (per_step * config.world_size)
    steps = whole * updates if updates > 1 else math.ceil(prompts / (per_step * config.world_size))
    interval = planned_interval(config, steps=max(1, steps))
    if config.eval_strategy == "steps" and interval % updates:
        raise InputError(
            f"trainer.eval_steps {config.eval_steps:g} is no multiple of rollout.updates {updates}: a checkpoint between them "
            "would lose the rollouts -> a multiple"
        )
    return interval


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

    from train.policy.text.build import config_fields

    fixed |= config_fields(args)
    return trainer_arguments(GRPOConfig, args.trainer, output_dir=out.path, seed=args.seed, **fixed)


def make_trainer(asked: GrpoArgs, engine: Any, decode: DecodeSettings, router: Any, **common: Any) -> Any:
    """The trainer of rollouts with or without thoughts; `common` is what both take."""
    if asked.thinks:
        from train.policy.text.build import make_text_trainer

        return make_text_trainer(asked, router, **common)
    from train.policy.reference import load_reference
    from train.policy.sid_trainer import SidTrainer

    return SidTrainer(
        engine=engine, reference=load_reference(asked, engine, decode), settings=asked.rollout, **common
    )


def validation_thoughts(args: GrpoArgs) -> ThinkSettings:
    """Greedy thoughts, as many at once as a rollout writes."""
    at_once = args.thought.batch_size * args.rollout.num_generations
    return ThinkSettings(max_tokens=args.thought.max_tokens, batch_size=at_once)


def load_policy(args: GrpoArgs, decode: DecodeSettings) -> tuple[Any, Any]:
    """(the engine whose model trains, what rolls it out where rollouts think)."""
    think = validation_thoughts(args) if args.thinks else None
    engine = load_engine(
        args.model, args.sids, args.examples, decode, trainable=True, mode="think" if args.thinks else "direct", think=think
    )  # fmt: skip
    if not args.thinks:
        return engine, None
    from train.policy.text.build import make_router

    return engine, make_router(args, engine)


def load_rewards(args: GrpoArgs, engine: Any, judge: RewardJudge | None) -> Any:
    """The mixture; InputError for a task of which no reward speaks."""
    from train.rewards.mixture import build_mixture
    from train.rewards.needs import Sources

    sources = Sources(
        engine.sids, data=args.data, embeddings=args.embeddings, teacher=args.teacher, made_from=args.examples,
        sid_format=engine.renderer.vocab.format, judge=judge, teacher_folds=args.teacher_folds,
    )  # fmt: skip
    mixture = build_mixture(read_specs(args.rewards), sources)
    if args.judge.client.backend == "heuristic":
        warn(f"no model judges: {judge.teacher} is a rule, and every grade says so")
    for task in args.tasks:
        if all(member.tasks is not None and task not in member.tasks for member in mixture.members):
            raise InputError(
                f"rewards: none speaks for task {task} -> add one that does (train/README.md), or leave the task out"
            )
    return mixture


def train(args: GrpoArgs, out: Output, judge: RewardJudge | None) -> None:
    """Build the trainer, train to the end (resuming where there is a checkpoint), write final/."""
    from train.progress import Timing, without_signal
    from train.safety import finish, train_to_the_end
    from train.supervised.schedule import Patience
    from train.trackers import tracker_callbacks
    from train.trainable import choose
    from train.validation import Validator

    callbacks = tracker_callbacks(args, out.path)
    config = configured(args, out)
    rows, group = prompt_rows(args), args.rollout.num_generations
    interval = planned(args, config, len(rows))
    decode = DecodeSettings(
        beams=args.valid_beams, max_prompt=args.max_prompt, batch_tokens=args.rollout.tokens_per_forward
    )
    engine, router = load_policy(args, decode)
    trainable = choose(args, engine)
    rewards = load_rewards(args, engine, judge)
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
        router,
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
        from train.policy.hints import hints_of

        trainer.hints_R = hints_of(args, trainer, out)
    callbacks += [Timing(out.path), thinned(args, trainer, validator, interval=interval)]
    callbacks += [] if args.patience is None else [Patience(args.patience)]
    train_to_the_end(trainer, out.path, callbacks)
    finish(trainer, engine, validator, out)
    out.counts |= {"prompts": len(rows)} | {f"prompts_{task}": count for task, count in by_task(rows).items()}
    out.facts |= {} if judge is None else {"judge": judge.teacher, "graded": len(judge.known)}
    if without_signal(out.path):
        warn(
            "no group had rewards that differ: nothing was learned -> other rewards, more rollouts (rollout.num_generations), "
            "or a model that sometimes finds the target"
        )


def load_judge(args: GrpoArgs) -> RewardJudge | None:
    """Who grades instructions, where a reward asks; InputError without its key, before anything is written."""
    if not args.judge.asked:
        return None
    from train.rewards.judged import RewardJudge

    return RewardJudge(args.judge.judge(), stop_after=args.judge.client.stop_after)


def main(args: GrpoArgs) -> None:
    if args.plan is not None:
        from train.plans.rollouts import plan

        rows = prompt_rows(args)
        print(*described(args, rows), *plan(args, len(rows)), sep="\n")
        return
    names = ("model", "examples", "sids", "data", "embeddings", "teacher", "reference", "hints")
    inputs = {name: getattr(args, name) for name in names}
    if args.newest_share is not None:
        inputs["data"] = data_of(args.data, args.examples)
    inputs |= {f"reward {file}": file for spec in read_specs(args.rewards) if (file := spec.file)}
    inputs |= {} if args.tids is None else {"tids": args.tids}
    judge = load_judge(args)
    with open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        out.write_text("config.yaml", program.as_yaml(args))
        train(args, out, judge)


if __name__ == "__main__":
    program.run(GrpoArgs, main)
