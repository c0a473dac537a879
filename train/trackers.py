"""Curves elsewhere: TensorBoard, Weights & Biases or SwanLab show what metrics.jsonl holds, which is written in any case.

    TRACKER=wandb bash sft.sh        # or: python -m train.sft ... --tracker wandb

Nothing waits for a network: without WANDB_API_KEY (SWANLAB_API_KEY) in the environment or `.env` a run is kept on disk, for the
tracker's own `sync`; the tracker's variables (WANDB_MODE, WANDB_PROJECT, SWANLAB_MODE, ...) win. A tracker that fails is
left out with a warning, and training goes on. Its files lie in `tracking/` beside the output, which stays the same with and
without it. The packages are the user's to install, and keys are never arguments.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerCallback

from configs.program import EnvironmentFault, say, warn

PROJECT = "generative-recommendation"


class TrackedRun(NamedTuple):
    """What a tracker is told when it starts."""

    name: str
    identity: str
    folder: Path
    settings: dict[str, Any]


class Session(NamedTuple):
    """An open tracker: log(values, step) and close()."""

    log: Callable[[dict[str, float], int], Any]
    close: Callable[[], Any]


def tensorboard(run: TrackedRun) -> Session:
    """Event files in <folder>/<name>, for `tensorboard --logdir <folder>`."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(log_dir=str(run.folder / run.name))
    writer.add_text("settings", f"```\n{run.settings}\n```")

    def log(values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)
        writer.flush()

    return Session(log, writer.close)


def wandb(run: TrackedRun) -> Session:
    """A run of project WANDB_PROJECT; the same output directory is the same run again."""
    import wandb

    opened = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT), name=run.name, id=run.identity, dir=str(run.folder),
        config=run.settings, mode=_mode("WANDB"), resume="allow",
        settings=wandb.Settings(console="off", init_timeout=30, silent=True),
    )  # fmt: skip
    return Session(lambda values, step: opened.log(values, step=step), opened.finish)


def swanlab(run: TrackedRun) -> Session:
    """A run of project SWANLAB_PROJECT; the same output directory is the same run again."""
    import swanlab

    opened = swanlab.init(
        project=os.environ.get("SWANLAB_PROJECT", PROJECT), name=run.name, id=run.identity,
        log_dir=str(run.folder / "swanlab"), config=run.settings, mode=_mode("SWANLAB"), resume="allow",
    )  # fmt: skip
    return Session(lambda values, step: opened.log(values, step=step), opened.finish)


STARTS = {"tensorboard": tensorboard, "wandb": wandb, "swanlab": swanlab}


def _mode(prefix: str) -> str | None:
    """None leaves the mode to the tracker's own variable, or to its login by key; offline without either."""
    known = {f"{prefix}_MODE", f"{prefix}_API_KEY"}
    return None if known & {name for name, value in os.environ.items() if value} else "offline"


class Tracked(TrainerCallback):
    """Sends every log to a tracker, from the main process."""

    def __init__(self, name: str, run: TrackedRun) -> None:
        self.name, self.run = name, run
        self.session: Session | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.run.folder.mkdir(parents=True, exist_ok=True)
            self.session = self._try(lambda: STARTS[self.name](self.run))
            if self.session is not None:
                say(f"{self.name}: {self.run.name} in {self.run.folder}")

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if self.session is None:
            return
        values = {
            key: float(v)
            for key, v in (logs or {}).items()
            if isinstance(v, (int, float)) and math.isfinite(v)
        }
        session = self.session
        self._try(lambda: session.log(values, state.global_step))

    def close(self) -> None:
        """Let the tracker write what it holds."""
        if self.session is not None:
            self._try(self.session.close)
        self.session = None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def _try(self, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except Exception as error:  # whatever a tracker raises, training goes on
            self.session = None
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            for secret in (value for key, value in os.environ.items() if key.endswith("_API_KEY") and value):
                reason = reason.replace(secret, "***")
            warn(f"{self.name} failed ({reason[:200]}): training goes on, metrics.jsonl has everything")
            return None


def tracker_callbacks(args: Any, directory: Path) -> list[TrainerCallback]:
    """The callback of `args.tracker` for a run that writes `directory`; EnvironmentFault when its package is missing."""
    if args.tracker == "none":
        return []
    if importlib.util.find_spec(args.tracker) is None:
        raise EnvironmentFault(
            f"tracker {args.tracker} is not installed -> .venv/bin/python -m pip install {args.tracker}, or --tracker none"
        )
    identity = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
    name = args.trainer.get("run_name") or f"{directory.parent.name}-{directory.name}"
    return [
        Tracked(
            args.tracker, TrackedRun(name, identity, directory.parent / "tracking", dataclasses.asdict(args))
        )
    ]
