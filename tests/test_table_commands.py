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


def test_sidreasoners_rows_name_their_semantic_ids_and_prompts():
    """A released checkpoint speaks the published semantic IDs once its tokens are listed; stage 3 reads the prompts of its recipe."""
    rows = [row for of_set in sheet.read_plan(ROOT / "configs/sidreasoner").values() for row in of_set]
    released = [row.command.split(" && ") for row in rows if row.row == "released"]
    assert len(released) == 3
    for expand, evaluate in released:
        assert "08_expand_vocab.sh" in expand and "MODEL=/path/to/checkpoint" in expand
        data = next(word for word in expand.split() if word.startswith("DATASET="))
        assert {"SIDS=published", data} <= set(expand.split()) & set(evaluate.split())
        assert f"MODEL=outputs/sidreasoner-{data.removeprefix('DATASET=')}/vocab" in evaluate.split()
    header = (ROOT / "configs/sidreasoner/grpo_published.yaml").read_text().split("\n", 1)[0].split()
    told = {"STAGE", "RUN", "EXAMPLES", "NUM_GPUS"}
    for row in rows:
        if row.row == "grpo_published":
            assert {word for word in header if word.split("=")[0] in told} <= set(row.command.split())


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
