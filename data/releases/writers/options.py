"""The options of data.export, which its writers read too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from configs.program import InputError
from data.releases import mimigenrec


@dataclass(frozen=True, kw_only=True)
class ExportArgs:
    """Arguments of data.export."""

    to: Literal["minionerec", "d3", "mimigenrec", "sidreasoner", "recbole", "navigen"]
    """whose folder"""
    data: str
    """prepared data set"""
    output_dir: str
    """where the folder goes"""
    sids: str | None = None
    """its SID directory; recbole has no place for it"""
    name: str = "dataset"
    """D, the start of the file names (mimigenrec: the folder, and data_source unless that is given)"""
    csv_name: str = ""
    """minionerec, d3, sidreasoner: name of the csv and info files without ending, e.g. Industrial_5_2016-10-2018-11; empty = `name`"""
    embeddings: str | None = None
    """minionerec: embeddings directory to write as {D}.emb-<its name>-td.npy"""
    max_valid_samples: int | None = None
    """at most so many valid rows, drawn by `seed`, in their order"""
    max_test_samples: int | None = None
    """at most so many test rows, likewise"""
    keep_longest_only: bool = False
    """of every user and split only the row with the longest history, the last of equals"""
    deduplicate: bool = False
    """drop train rows whose history and target repeat those of an earlier row as semantic IDs"""
    tasks: list[str] = field(default_factory=lambda: list(mimigenrec.TASKS))
    """mimigenrec: which of its five tasks"""
    seq_sample: int = 10_000
    """mimigenrec: rows of the task histitle2sid"""
    data_source: str = ""
    """mimigenrec, sidreasoner: what rl records name as their source; empty = `name`"""
    max_history: int = 50
    """recbole: the newest items of a history that are written"""
    answered: Literal["valid", "test"] = "test"
    """recbole: the rows whose top-k topk.py writes"""
    tids: str | None = None
    """navigen: its TID directory"""
    reasoning: list[str] = field(default_factory=list)
    """navigen, sidreasoner: directories of what a teacher wrote, at most one per kind; or the data set itself, where a published folder
    brought texts with its rows"""
    target_type: Literal["image", "video"] = "image"
    """navigen: what the instructions are for"""
    predictions: str | None = None
    """navigen: predictions for the test rows, to be written as well"""
    instructions: str | None = None
    """navigen: instructions for the test rows (infer.instruct), to be written as well"""
    seed: int = 42
    """seed of every draw"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in mimigenrec.TASKS]
        if unknown or not self.tasks:
            raise InputError(f"tasks {self.tasks} -> some of {', '.join(mimigenrec.TASKS)}")
        if self.max_history < 1:
            raise InputError(f"max_history {self.max_history} -> at least 1")
        if not self.name or "/" in self.name + self.csv_name:
            raise InputError(f"name {self.name!r}, csv_name {self.csv_name!r} -> file names without a folder")
        if (self.sids is None) != (self.to == "recbole"):
            fix = "leave sids out" if self.sids else "name the SID directory: --sids"
            raise InputError(f"--to {self.to} with sids {self.sids} -> {fix}")
        if self.to == "recbole" and self.deduplicate:
            raise InputError(
                "deduplicate compares semantic IDs, which --to recbole has none of -> leave it out"
            )
        if (self.tids is not None) != (self.to == "navigen"):
            raise InputError(f"--to {self.to} with tids {self.tids} -> tids for navigen, and for it alone")
        if (self.predictions or self.instructions) and self.to != "navigen":
            raise InputError("predictions and instructions belong to --to navigen -> leave them out")
        if self.reasoning and self.to not in ("navigen", "sidreasoner"):
            raise InputError("reasoning belongs to --to navigen or sidreasoner -> leave it out")
        if self.embeddings and self.to != "minionerec":
            raise InputError("embeddings belong to --to minionerec -> leave them out")
