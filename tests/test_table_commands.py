"""The rows of tables that need more than this machine: their commands start programs that take every file, flag and value."""

from __future__ import annotations

import pytest

from configs.program import ROOT
from infer.tables import sheet
from tests.shell import parsed_programs
from tests.test_configs import parse_config

WHERE = {
    row.command.replace(f"DATASET={dataset}", "DATASET=d").replace(f"data/{dataset}", "data/d"): row.command
    for paper in sorted((ROOT / "configs").glob("*/rows.csv"))
    for dataset, rows in sheet.read_plan(paper.parent).items()
    for row in rows
    if row.needs
}
TRAINED = {"train.sft", "train.grpo", "train.train_tiger", "infer.recommend", "infer.fuse"}


def test_there_are_such_rows():
    papers = {"mimigenrec", "sidreasoner", "navigen", "gpr", "hidvae", "lcrec", "bigrec", "d3", "sdpo"}
    assert len(WHERE) > 15 and papers <= {
        word.split("=")[1] for command in WHERE for word in command.split() if word.startswith("PAPER=")
    }


@pytest.mark.parametrize("command", WHERE.values(), ids=list(WHERE))
def test_the_command_of_a_row_is_understood(command, tmp_path):
    assert TRAINED & set(parsed_programs(command, tmp_path)), command


@pytest.mark.parametrize(
    ("paper", "rows", "schedule", "tasks"),
    [
        ("minionerec", 1024, "linear", {"titles_to_title", "titles_to_sid"}),
        ("mimigenrec", 2048, "cosine", set()),
    ],
)
def test_published_values_of_sft(paper, rows, schedule, tasks):
    """Eight processes; stopped by the loss on valid, looked at 20 times; both papers ask for SIDs, titles of SIDs and next titles."""
    args = parse_config(ROOT / f"configs/{paper}/sft_published.yaml")
    told = args.trainer
    assert told["per_device_train_batch_size"] * told["gradient_accumulation_steps"] * 8 == rows
    assert (told["learning_rate"], told["lr_scheduler_type"], told["warmup_steps"]) == (3e-4, schedule, 20)
    assert (told["num_train_epochs"], told["eval_steps"], args.max_length) == (10, 0.05, 512)
    assert (args.select_by, args.patience, args.train_what) == ("loss", 3, "all")
    assert set(args.tasks) == {"history_to_sid", "sid_to_title", "title_to_sid", "history_to_title"} | tasks
