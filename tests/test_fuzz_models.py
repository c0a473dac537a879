# ruff: noqa: F811
"""Model files damaged at random: a marked directory is whole or refused, one without a mark and a GGUF file never end in a traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from configs.program import ProgramError, classify
from data.store.checkpoints import MARK
from infer.loading import load_model
from preprocess.convert_gguf import read_gguf
from tests.damage import NASTY, damage
from tests.test_convert_gguf import file as gguf_file  # noqa: F401 - a fixture
from tests.test_loading import sound  # noqa: F401 - a fixture

LONG = settings(max_examples=60, database=None, suppress_health_check=list(HealthCheck))
FILES = (
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
)


def refused(read: Callable[[], object]) -> bool:
    """Whether `read` refuses in one line; anything but that or success is a bug."""
    try:
        read()
    except ProgramError as error:
        code, line = classify(error)
        assert code in (2, 3, 4) and "\n" not in line and len(line) < 1200, line
        return True
    return False


def damaged(source: Path, target: Path, name: str, change: Callable[[bytes], bytes]) -> bool:
    """A copy of a directory with one file changed; False where the change changes nothing."""
    shutil.copytree(source, target)
    before = (target / name).read_bytes()
    (target / name).write_bytes(change(before))
    return (target / name).read_bytes() != before


def test_a_marked_directory_is_whole_or_refused(sound: Path, tmp_path: Path) -> None:
    for number, made in enumerate(NASTY[::4]):
        name = FILES[number % len(FILES)]
        if damaged(sound, tmp_path / f"{number}", name, lambda whole, made=made: made):
            assert refused(lambda number=number: load_model(tmp_path / f"{number}", device="cpu"))


@pytest.mark.long
@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_damaged_models(
    name: str, marked: bool, sound: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    @LONG
    @given(change=damage())
    def hold(change: Callable[[bytes], bytes]) -> None:
        place = tmp_path_factory.mktemp("model") / "m"
        changed = damaged(sound, place, name, change)
        if not marked:
            (place / MARK).unlink()
        assert refused(lambda: load_model(place, device="cpu")) or not (marked and changed)

    hold()


@pytest.mark.long
def test_damaged_gguf(gguf_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"

    @LONG
    @given(change=damage())
    def hold(change: Callable[[bytes], bytes]) -> None:
        target.write_bytes(change(gguf_file.read_bytes()))
        refused(lambda: read_gguf(target))

    hold()
