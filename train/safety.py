"""What the stock Trainer lacks to be left alone overnight, as a mixin over any transformers Trainer.

- a non-finite loss or gradient stops the run before the optimizer step (the stock Trainer logs 0.0 and trains on)
- every checkpoint ends with COMPLETE.json, written last; rotation happens after it, so one trusted checkpoint always
  exists; resume takes the newest trusted one
- SIGTERM, SIGUSR1 and SIGINT end the current step, write a checkpoint and leave with 143 / 130; rollouts and validations of a
  single process are broken off (train/scale/preemption.py)
- metrics.jsonl holds one line per log, no wall-clock values; a resumed run continues it line for line; a value that is
  not finite is null
- the best checkpoint is chosen by item-level NDCG@10 on validation rows, never by a test number; where a run measures
  the model as it came in (step 0), that model competes and is handed on if nothing beats it
- a checkpoint is a model directory like final/: it can be evaluated and trained on; where little trains it is an adapter,
  which counts as one
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from configs.program import EnvironmentFault, InputError, NumericError, deferred_signals, say
from data.sid import SidVocab, write_vocab
from data.store.checkpoints import best_of, discard_after, fault, mark_complete, newest_complete, rotate
from data.store.output import Output, allowed_keys
from infer.loading import PROMPTS, load_model, prompt_bound
from train.progress import METRICS_FILE, Progress
from train.samples import FILE as SAMPLES
from train.scale.changed import load_states, settings_kept
from train.scale.gathering import require_sharding, shards_weights
from train.scale.preemption import OWED, LeavesInTime, PayWhatIsOwed, StopOnSignal
from train.scale.room import require_room
from train.trainable import NEW_TOKENS, Trainable, new_tokens_of

# not the same after a resume, or on another number of processes
RUN_KEYS = ("time", "_seconds", "per_second", "total_flos", "train_loss", "num_tokens", "padding", "mfu")


class MetricsFile(TrainerCallback):
    """Appends every log to metrics.jsonl as {"step", ...}."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / METRICS_FILE

    def rewind(self, step: int, *, owed: bool) -> None:
        """Drop lines after `step` here and of the samples, and the validation at `step` where it is owed: they are written again."""
        for path in (self.path, self.path.with_name(SAMPLES)):
            if path.exists():
                lines = [line for line in path.read_text().splitlines() if _step(line) <= step]
                if owed:
                    lines = [line for line in lines if _step(line) < step or '"loss"' in line]
                temporary = path.with_suffix(".tmp")
                temporary.write_text("".join(f"{line}\n" for line in lines))
                os.replace(temporary, path)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        values = {k: v for k, v in logs.items() if not any(word in k for word in RUN_KEYS)}
        if set(values) <= {"epoch"}:
            return
        with open(self.path, "a") as file:
            line = {"step": state.global_step} | {k: _finite(v) for k, v in values.items()}
            file.write(json.dumps(line, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step(line: str) -> int:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return 1 << 62  # a line cut short by a kill is written again


class LogBeforeSave(TrainerCallback):
    """A checkpoint has no room for the loss summed since the last log: log first, or a resumed run reports it too low."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= control.should_save

    on_epoch_end = on_step_end


class SafeTrainer(LeavesInTime):
    """Mixin, placed before a Trainer class. `validate()` returns {"ndcg@10": ..} on validation rows.

    Overrides public `training_step`, `evaluate`, `create_optimizer` and `create_scheduler`, and `_save_checkpoint`, `_save`, `_clip_grad_norm`,
    `_init_training_state`, `_run_epoch`, `_load_from_checkpoint`, `_load_optimizer_and_scheduler`, `_load_best_model` and `_issue_warnings_after_load` of transformers 5.17.
    """

    validate: Callable[[], dict[str, float]]
    trainable: Trainable | None = None  # what trains where not all does
    vocab: SidVocab | None = None  # what makes a checkpoint a model that speaks semantic IDs
    example_ids: Sequence[int] = range(1 << 62)  # names of rows; positions until someone says better
    new_tokens: str | None = None  # the list of them that came with the model and goes where it goes
    max_prompt: int | None = None  # the bound of prompts in training, where there was one
    evaluates_loss: bool = True
    trains_shards: bool = False  # whether loss and validation work where a process holds parts of the weights
    keep_checkpoints: int = 2
    allowed: Sequence[str] = ()  # keys that may differ from what the checkpoint was trained with
    step_rows: Sequence[int] = ()

    def equip(self, args: Any, engine: Any, trainable: Trainable, *, example_ids: Sequence[int]) -> None:
        """What checkpoints need to know: the arguments of the program, its model's tokens, what trains, the names of rows."""
        self.keep_checkpoints = args.keep_checkpoints
        # Those of earlier starts too: the newest checkpoint may be older than the change.
        self.allowed = [*allowed_keys(args.output_dir), *args.allow_change]
        self.trainable = trainable
        self.vocab, self.new_tokens = engine.renderer.vocab, new_tokens_of(args.model)
        self.max_prompt = prompt_bound(args.model, args.max_prompt)
        self.example_ids = example_ids

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        with _values_of_the_user("optimizer"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        with _values_of_the_user("learning rate schedule"):
            return super().create_scheduler(*args, **kwargs)

    def get_batch_samples(self, *args: Any) -> tuple[list, Any]:
        """Remembers the rows of the step: a bad gradient is that of all of them."""
        batches, count = super().get_batch_samples(*args)
        self.step_rows = [row for inputs in batches for row in self.rows_of(inputs)]
        return batches, count

    def rows_of(self, inputs: Any) -> list[int]:
        """The positions of a micro-batch's rows."""
        return inputs["row"].tolist()

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not math.isfinite(float(loss)):
            self._stop_non_finite("loss", float(loss), self.rows_of(inputs))
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None and not math.isfinite(float(norm)):
            self._stop_non_finite("gradient norm", float(norm), self.step_rows)
        return norm

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A tied head is not stored, so its absence from a checkpoint is no fault; tie it again and warn of the rest."""
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        if tied & set(load_result.missing_keys):
            self.model.tie_weights()
        kept = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(type(load_result)(kept, load_result.unexpected_keys))

    def _stop_non_finite(self, what: str, value: float, rows: Sequence[int]) -> None:
        step = self.state.global_step + 1
        report = {"step": step, what: str(value), "learning_rate": self._get_learning_rate()}
        report["example_ids"] = [self.example_ids[row] for row in rows]
        path = Path(self.args.output_dir, "nan_step.json")
        path.write_text(json.dumps(report) + "\n")
        raise NumericError(
            f"{what} is {value} at step {step} in {self.args.output_dir} -> the last checkpoint is intact; "
            f"lower the learning rate or look at the {len(rows)} examples that {path.name} names"
        )

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Validation by constrained recommendation, and the loss on the evaluation set where `evaluates_loss`."""
        metrics: dict[str, float] = {}
        with self.measuring():
            if self.evaluates_loss:
                metrics = super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            self.model.eval()  # logged as evaluation; the next training step switches back
            with self.accelerator.autocast():  # in the number format of training
                measured = self.validate()
        found = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        self.log(dict(found))
        if self.state.global_step == 0:
            self._determine_best_metric(found, trial=None)  # the model as it came in competes
        # What the stock method does besides: else the last step would be evaluated twice.
        if not self.evaluates_loss:
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return metrics | found

    def _init_training_state(self, *args: Any) -> tuple[int, int]:
        """The stock method forgets a best checkpoint whose recorded path is gone, but keeps its score: find it by name."""
        trained = super()._init_training_state(*args)
        if self.state.best_global_step:
            best = Path(self.args.output_dir, f"checkpoint-{self.state.best_global_step}")
            self.state.best_model_checkpoint = str(best)
        return trained

    def _run_epoch(self, **kwargs: Any) -> None:
        """The stock loop looks whether to stop after a step: resumed from the last checkpoint it would train one more."""
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        reason = fault(best)
        if reason is not None:
            raise EnvironmentFault(
                f"the best checkpoint {best} was damaged: {reason} -> run the same command again"
            )
        if self._adapts:
            self.trainable.read(best)
            return
        super()._load_best_model()
        if self.trainable is not None:
            self.trainable.read(best)

    @property
    def _adapts(self) -> bool:
        return self.trainable is not None and self.trainable.adapts

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._adapts:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.trainable is not None:
            self.trainable.read(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Settings of the optimizer are those of now where they may differ. DeepSpeed reads weights by itself: what trains beside them is here."""
        if checkpoint is not None and self.is_deepspeed_enabled and self.trainable is not None:
            self.trainable.read(Path(checkpoint))
        whole = not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        with settings_kept(self, self.allowed if checkpoint is not None else ()):
            if checkpoint is None or self.args.device.type != "cpu" or self.args.world_size == 1 or not whole:
                super()._load_optimizer_and_scheduler(checkpoint)
            else:
                load_states(self, checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self._adapts:
            super()._save(output_dir, state_dict)
            return
        directory = Path(output_dir or self.args.output_dir)
        self.trainable.write(directory)
        self.processing_class.save_pretrained(directory)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            directory = Path(self.args.output_dir)
            checkpoint = directory / f"checkpoint-{self.state.global_step}"
            if self.vocab is not None:
                write_tokens(checkpoint, self.vocab, self.new_tokens, self.max_prompt)
            if self.owes:
                (checkpoint / OWED).touch()
            mark_complete(checkpoint, step=self.state.global_step)
            best = self.state.best_model_checkpoint
            rotate(directory, keep=self.keep_checkpoints, protect=Path(best) if best else None)
        self.accelerator.wait_for_everyone()


class PushRows(TrainerCallback):
    """Rows that train go back into their tables after every step."""

    def __init__(self, trainable: Trainable) -> None:
        self.trainable = trainable

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainable.push()


def write_tokens(directory: Path, vocab: SidVocab, new_tokens: str | None, max_prompt: int | None) -> None:
    """What says which tokens of a model are those of semantic IDs, which were added, and how long its prompts were in training."""
    write_vocab(directory, vocab)
    if new_tokens is not None:
        (directory / NEW_TOKENS).write_text(new_tokens)
    if max_prompt is not None:
        (directory / PROMPTS).write_text(json.dumps({"max_prompt": max_prompt}) + "\n")


@contextmanager
def _values_of_the_user(what: str) -> Iterator[None]:
    """What torch and transformers refuse where they make the `what` comes from `trainer:`."""
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(
            f"trainer: no {what} of these values: {text} -> change them in the config or flags"
        ) from error


def selection(settings: dict[str, Any], by: str = "ndcg@10") -> dict[str, Any]:
    """TrainingArguments that save at every evaluation and reload the best checkpoint at the end."""
    steps = settings.get("eval_steps")
    if steps is not None and (not str(steps).replace(".", "", 1).isdigit() or not float(steps)):
        raise InputError(
            f"trainer.eval_steps: {steps!r} is not a number of steps above 0 -> correct the value"
        )
    strategy = SaveStrategy.STEPS if steps else SaveStrategy.EPOCH
    fixed = {
        "eval_strategy": strategy.value,
        "save_strategy": strategy.value,
        "load_best_model_at_end": True,
        "metric_for_best_model": f"eval_{by}",
        "greater_is_better": by != "loss",
    }
    return fixed | ({"save_steps": float(steps)} if steps else {})


def require_whole_tables(trainer: Any) -> None:
    """InputError where rows or adapters are to train of weights that are split between processes."""
    what = "all" if trainer.trainable is None else trainer.trainable.what
    if what not in ("all", "embeddings") and shards_weights(trainer.accelerator):
        raise InputError(
            f"train_what {what} needs whole weights in every process; so little trains that splitting them saves nothing -> "
            "ACCELERATE_CONFIG=configs/accelerate/ddp.yaml or zero2.yaml"
        )


def train_to_the_end(trainer: Any, directory: Path, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Train, from the newest trusted checkpoint where there is one; raises Interrupted after a signal's checkpoint."""
    require_sharding(trainer.accelerator, trainable=trainer.trains_shards)
    require_whole_tables(trainer)
    checkpoint = newest_complete(directory)
    owed = checkpoint is not None and (checkpoint / OWED).exists()
    metrics = MetricsFile(directory)
    trainer.accelerator.wait_for_everyone()  # all ranks have looked before rank 0 removes anything
    if trainer.args.should_save:
        discard_after(directory, checkpoint)
        if checkpoint:  # the killed run may not have come to it, and after the last checkpoint nobody would
            rotate(directory, keep=trainer.keep_checkpoints, protect=best_of(checkpoint))
        metrics.rewind(int(checkpoint.name.split("-")[1]) if checkpoint else -1, owed=owed)
        require_room(trainer, directory)
    trainer.accelerator.wait_for_everyone()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(metrics)
    for callback in (Progress(), *callbacks):
        trainer.add_callback(callback)
    if trainer.trainable is not None:
        trainer.add_callback(PushRows(trainer.trainable))
    with deferred_signals() as flag:
        flag.polled = trainer.accelerator.num_processes == 1
        stop = StopOnSignal(flag, every=trainer.whole_steps)
        trainer.add_callback(stop)
        trainer.add_callback(LogBeforeSave())
        if owed:
            trainer.add_callback(PayWhatIsOwed(trainer, checkpoint))
        if checkpoint:
            say(f"resuming from {checkpoint}")
            trainer.args.eval_on_start = False  # that line of the log is already written
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        stop.agree()
        flag.raise_if_set()


def finish(trainer: Any, engine: Any, validator: Any, out: Output) -> None:
    """Write final/ (model, tokenizer, sid_vocab.json, COMPLETE.json last) and the manifest's account of the choice.

    The weights are those of the best checkpoint, or of the model as it came in where none of them beat it. Where an adapter
    trained, adapter/ holds it and final/ is the model with it.
    """
    final, state = out.path / "final", trainer.state
    unbeaten = state.best_global_step == 0
    adapts = trainer.trainable is not None and trainer.trainable.adapts
    source = Path(engine.model.name_or_path)
    if not unbeaten and not adapts:
        trainer.save_model(str(final))
    if trainer.args.should_save:
        if adapts and not unbeaten:
            source = out.path / "adapter"
            trainer.trainable.write(source)
            _complete(source, trainer, engine)
        if adapts or unbeaten:
            load_model(source, device="cpu", trainable=True)[0].save_pretrained(final)
        if unbeaten:
            say(
                f"no checkpoint beat the model as it came in (NDCG@10 {state.best_metric:.4f}): final/ is that model"
            )
        (final / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.yaml says the same
        _complete(final, trainer, engine)
    out.counts["steps"] = state.global_step
    out.facts |= validator.facts() | {
        f"best_{trainer.args.metric_for_best_model.removeprefix('eval_')}": state.best_metric,
        "best_step": state.best_global_step,
        "final_is": "the model as it came in" if unbeaten else f"checkpoint-{state.best_global_step}",
        "num_processes": trainer.accelerator.num_processes,
    }


def _complete(directory: Path, trainer: Any, engine: Any) -> None:
    """Tokenizer, token lists and COMPLETE.json beside the weights in `directory`."""
    engine.renderer.tokenizer.save_pretrained(directory)
    write_tokens(directory, engine.renderer.vocab, trainer.new_tokens, trainer.max_prompt)
    mark_complete(directory, step=trainer.state.global_step, full=True)
