"""Older outputs stay what they are: configurations are compared key by key, whatever options came since."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from configs.program import AlreadyComplete, InputError, as_yaml
from data.store.configuration import added, config_hash, differences, pace
from data.store.output import Output, open_output
from rq.train_quantizer import TrainQuantizerArgs
from train.sft import SftArgs, say_of_another_order


@dataclass
class Group:
    depth: int = 1
    width: float = 0.5


@dataclass
class Part:
    name: str
    weight: float = 1.0


@dataclass
class Old:
    """The arguments of a program before options were added."""

    output_dir: str
    sizes: list[int] = field(default_factory=lambda: [8, 8])
    kind: str = "a"
    a: Group = field(default_factory=lambda: Group(depth=3))
    trainer: dict[str, Any] = field(default_factory=dict)
    overwrite: bool = False


@dataclass
class Deeper(Group):
    height: int = 7


@dataclass
class New(Old):
    a: Deeper = field(default_factory=lambda: Deeper(depth=3, height=9))
    b: Group = field(default_factory=Group)
    parts: list[Part] = field(default_factory=list)
    shuffle: bool = True

    def not_chosen(self) -> set[str]:
        return {"a", "b"} - {self.kind}


TRAINER = {"learning_rate": 0.001, "deep": {"x": 1}}


def write(args: Any) -> str:
    """What `open_output` does: kept, resumed, started, or the change that it refuses."""
    try:
        with open_output(args, "demo", version=1, inputs={}) as out:
            out.write_text("a.txt", "a")
            return "resumed" if out.resuming else "started"
    except AlreadyComplete:
        return "kept"
    except InputError as error:
        return str(error).split("another run (")[1].split(") -> pass")[0]


def changed(**values: Any) -> list[str]:
    recorded = dataclasses.asdict(Old("out", trainer=TRAINER))
    return [str(one) for one in differences(New("elsewhere", **({"trainer": TRAINER} | values)), recorded)]


def test_a_key_that_is_missing_counts_as_its_default():
    assert changed() == [], "a group's default is the one of the field that holds it, height 9 and not 7"
    assert changed(overwrite=True) == []
    assert changed(shuffle=False) == ["shuffle True -> False"]
    assert changed(a=Deeper(depth=3, height=8)) == ["a.height 9 -> 8"]
    assert changed(a=Deeper(depth=4, height=9), sizes=[8, 9]) == ["sizes [8, 8] -> [8, 9]", "a.depth 3 -> 4"]
    assert changed(parts=[Part("x")]) == ["parts [] -> [{'name': 'x', 'weight': 1.0}]"]


def test_a_key_that_came_with_another_default_counts_as_what_was_done_before():
    @dataclass
    class Later(Old):
        layout: str = added("tree", before="rows")

    assert Later("out").layout == "tree"
    recorded = dataclasses.asdict(Old("out"))
    assert differences(Later("out", layout="rows"), recorded) == []
    assert differences(Later("out"), recorded) == [("layout", "rows", "tree")]
    assert differences(Later("out"), recorded | {"layout": "tree"}) == []

    recorded = dataclasses.asdict(SftArgs("m", "e", "s", "o"))
    for name in ("layout", "row_tokens", "eval_share", "tokens_dir"):
        del recorded[name]
    as_before = SftArgs("m", "e", "s", "o", layout="padded", row_tokens=99, eval_share=1.0, tokens_dir="t")
    assert differences(as_before, recorded) == []
    assert [one.key for one in differences(SftArgs("m", "e", "s", "o"), recorded)] == ["layout", "eval_share"]


@pytest.mark.parametrize(("text", "resuming", "said"), [("layout: padded", True, False), ("dropout: 0.1", True, True),
                                                         ("dropout: 0.1", False, False)])  # fmt: skip
def test_a_training_of_before_layouts_says_that_its_batches_are_drawn_anew(
    tmp_path: Path, capsys: Any, text: str, resuming: bool, said: bool
) -> None:
    (tmp_path / "config.yaml").write_text(f"max_length: 9\n{text}\n")
    say_of_another_order(Output(tmp_path, resuming=resuming))
    assert ("was begun by a version that drew other batches" in capsys.readouterr().err) is said


def test_free_mappings_are_compared_key_by_key():
    assert changed(trainer=TRAINER | {"learning_rate": 0.003}) == ["trainer.learning_rate 0.001 -> 0.003"]
    assert changed(trainer={"learning_rate": 0.001, "deep": {"x": 1, "y": 2}}) == [
        "trainer.deep.y (absent) -> 2"
    ]
    assert changed(trainer={"deep": {"x": 1}}) == ["trainer.learning_rate 0.001 -> (absent)"]


def test_options_of_what_was_not_chosen_do_not_count():
    recorded = dataclasses.asdict(New("out", b=Group(5), parts=[Part("x"), Part("y")])) | {"gone": 1}
    del recorded["parts"][1]["weight"]
    new = New("out", parts=[Part("x", 2.0), Part("y")])
    assert [str(one) for one in differences(new, recorded)] == [
        "parts[0].weight 1.0 -> 2.0",
        "gone 1 -> (absent)",
    ]
    assert differences(dataclasses.replace(new, kind="b"), recorded)[:2] == [
        ("kind", "a", "b"),
        ("b.depth", 5, 1),
    ]


def test_a_finished_output_of_before_is_kept(tmp_path: Path) -> None:
    assert write(Old(str(tmp_path / "out"), trainer=TRAINER)) == "started"
    before = (tmp_path / "out/manifest.json").read_bytes()
    assert write(New(str(tmp_path / "out"), trainer=TRAINER)) == "kept"
    assert write(New(str(tmp_path / "out"), trainer=TRAINER, shuffle=False)) == "shuffle True -> False"
    assert (tmp_path / "out/manifest.json").read_bytes() == before


@pytest.mark.parametrize("record", ["hash alone", "hash and config.yaml", "with its configuration"])
def test_a_killed_run_of_before_is_resumed(tmp_path: Path, record: str) -> None:
    old = Old(str(tmp_path), trainer=TRAINER)
    pending = {"stage": "demo", "stage_version": 1, "config_hash": config_hash(old, {}), "inputs": {}}
    if record == "with its configuration":
        pending["config"] = dataclasses.asdict(old)
    if record == "hash and config.yaml":
        (tmp_path / "config.yaml").write_text(as_yaml(old))
    (tmp_path / "pending.json").write_text(json.dumps(pending))
    later = New(str(tmp_path), trainer=TRAINER)
    assert write(dataclasses.replace(old, trainer={})) == (
        "configuration" if record == "hash alone" else "trainer.learning_rate 0.001 -> (absent), trainer.deep {'x': 1} -> (absent)"
    )  # fmt: skip
    assert write(old if record == "hash alone" else later) == "resumed"


def test_a_config_file_that_is_not_of_the_killed_run_says_nothing(tmp_path: Path) -> None:
    old = Old(str(tmp_path), sizes=[4])
    pending = {"stage": "demo", "stage_version": 1, "config_hash": config_hash(old, {}), "inputs": {}}
    (tmp_path / "pending.json").write_text(json.dumps(pending))
    (tmp_path / "config.yaml").write_text(as_yaml(Old(str(tmp_path))))
    assert write(New(str(tmp_path))) == "configuration"


def test_a_quantizer_of_before_other_constructors_is_the_same():
    recorded = dataclasses.asdict(TrainQuantizerArgs("e", "o", constructor="balanced"))
    del recorded["hidvae"], recorded["opq"]
    recorded["rvq"]["something"] = 3
    assert differences(TrainQuantizerArgs("e", "o", constructor="balanced"), recorded) == []


@dataclass
class Patient(Old):
    speed: int = pace(1)
    way: Part = field(default_factory=lambda: Part(name="x"))


def test_how_fast_a_run_goes_makes_no_output_foreign(tmp_path):
    assert write(Patient(str(tmp_path / "a"))) == "started"
    assert write(Patient(str(tmp_path / "a"), speed=9)) == "kept"
    old = dataclasses.asdict(Patient("x"))
    assert [change.key for change in differences(Patient("x", speed=9, kind="b"), old)] == ["kind"]
