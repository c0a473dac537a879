"""Config files laid over one another, and what is said about a name that does not exist."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from configs import program
from configs.overlays import nearest, overlay
from configs.program import InputError


@dataclass
class Inner:
    depth: int = 1
    width: float = 0.5


@dataclass
class Args:
    data: str = "d"
    sizes: list[int] = field(default_factory=lambda: [1, 2, 3])
    inner: Inner = field(default_factory=Inner)
    perhaps: Inner | None = None
    rows: int | None = 5
    trainer: dict[str, Any] = field(default_factory=dict)
    overwrite: bool = False


def parsed(tmp_path: Path, *files: str, flags: tuple[str, ...] = ()) -> Args:
    argv = list(flags)
    for number, text in enumerate(files):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        argv += [f"--config={path}"] if number else ["--config", str(path)]
    return program.parse(Args, argv)[0]


RECIPE = """
sizes: [8, 8]
inner: {depth: 3}
trainer: {learning_rate: 1e-3, steps: 10, scheduler: {kind: cosine, warm: 5}}
"""


def test_mappings_merge_key_by_key_lists_are_replaced_null_removes_flags_win(tmp_path: Path) -> None:
    changes = "sizes: [4]\ninner: {width: 0.25}\nrows: null\ntrainer: {steps: null, scheduler: {warm: 0}, x: on time}\n"
    last = "trainer.scheduler: {warm: 7}\nperhaps: {depth: 2}\n"
    flags = ("--inner.depth", "9", "--trainer.learning_rate", "1e-4")
    assert parsed(tmp_path, RECIPE, changes, "", last, flags=flags) == Args(
        sizes=[4],
        inner=Inner(9, 0.25),
        perhaps=Inner(2),
        rows=None,
        trainer={"learning_rate": 1e-4, "scheduler": {"kind": "cosine", "warm": 7}, "x": "on time"},
    )


def test_an_overlay_of_nothing_and_over_nothing_is_the_recipe(tmp_path: Path) -> None:
    alone = parsed(tmp_path, RECIPE)
    assert (
        parsed(tmp_path, RECIPE, "")
        == parsed(tmp_path, "", RECIPE)
        == parsed(tmp_path, RECIPE, RECIPE)
        == alone
    )
    below = {"a": {"b": 1}}
    assert overlay(below, {"a": {"b": None, "c": 2}}, None, where="x") == {"a": {"c": 2}} and below == {
        "a": {"b": 1}
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("szies: [1]", "0.yaml: unknown key szies -> did you mean sizes?"),
        ("inner: {dept: 1}", "0.yaml: unknown key inner.dept -> did you mean inner.depth?"),
        ("depth: 1", "0.yaml: unknown key depth -> did you mean inner.depth?"),
        ("zzz: 1", "0.yaml: unknown key zzz -> see `--help`"),
        ("- 1", "0.yaml holds no mapping of options"),
        ("a: [1,", "0.yaml is no YAML"),
    ],
)
def test_a_bad_config_file_is_named_with_the_key_that_was_meant(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(InputError) as error:
        parsed(tmp_path, text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--szies", "did you mean --sizes?"),
        ("--inner.dpeth", "did you mean --inner.depth?"),
        ("--width=1", "did you mean --inner.width?"),
        ("--over-write", "did you mean --overwrite?"),
        ("--confg", "did you mean --config?"),
        ("--qqq", "see `--help`"),
    ],
)
def test_an_unknown_flag_is_told_what_was_meant(flag: str, meant: str) -> None:
    with pytest.raises(InputError) as error:
        program.parse(Args, [flag, "1"])
    assert str(error.value) == f"unknown flag {flag.split('=')[0]} -> {meant}"


@pytest.mark.parametrize(
    ("given", "meant"),
    [(["--data", "perhaps"], "perhaps"), (["--data=perhaps"], "perhaps"), (["--data", "d"], "inner")],
)
def test_of_several_groups_that_have_it_the_chosen_one_is_meant(
    tmp_path: Path, given: list[str], meant: str
) -> None:
    """As `--constructor hidvae --epochs 3` means the epochs of hidvae, in a file too."""
    with pytest.raises(InputError, match=f"did you mean --{meant}.depth?"):
        program.parse(Args, [*given, "--depth", "2"])
    (tmp_path / "0.yaml").write_text(f"data: {given[-1].split('=')[-1]}\n")
    with pytest.raises(InputError, match=f"did you mean --{meant}.depth?"):
        program.parse(Args, ["--config", str(tmp_path / "0.yaml"), "--depth", "2"])
    assert program.parse(Args, ["--trainer.anything", "1"])[0].trainer == {"anything": 1}


def test_a_config_that_cannot_be_read_is_named_with_the_cause(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for name, cause in (
        ("absent.yaml", "No such file"),
        ("", "Is a directory"),
        ("bytes.yaml", "is no text"),
    ):
        with pytest.raises(InputError, match=cause):
            program.parse(Args, ["--config", str(tmp_path / name)])
    if os.geteuid() != 0:
        (tmp_path / "closed.yaml").touch(mode=0)
        with pytest.raises(InputError, match="Permission denied"):
            program.parse(Args, ["--config", str(tmp_path / "closed.yaml")])


def test_the_nearest_name() -> None:
    names = ["seed", "rollout.beta", "rollout.num_generations"]
    assert nearest("num_generations", names) == nearest("rollout.num_generation", names) == names[2]
    assert nearest("sed", names) == "seed" and nearest("x", names) is None
