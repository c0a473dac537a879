"""Fixtures shared by the slow tests: a small store taken through stages 07 and 08 once per session."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

# Bitwise comparisons between processes need one number of threads everywhere; read when torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import HealthCheck, settings

from tests.chain import Chain, Dual, build_chain, build_dual
from tests.shell import stand_in

# A machine under load is slow, not wrong: no test sets a deadline of its own.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


# Seconds of processor time add up here; with these files first no worker is left with a long one at the end.
LONGEST_FIRST = (
    "test_stages", "test_serve", "test_recommend", "test_encoders", "test_setup", "test_trainers", "test_help", "test_trainable", "test_readme",
    "test_tiger", "test_train_compact", "test_train_sequential", "test_text_trainer", "test_crashes", "test_bundle", "test_two_tasks",
    "test_vocabulary", "test_constructors", "test_configs", "test_chat_journal", "test_safety", "test_chat_client",
)  # fmt: skip


FROZEN = [0]  # how many modules there were at every freeze


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order of LONGEST_FIRST, then as collected; within a file nothing moves."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="module", autouse=True)
def no_search_among_what_was_imported() -> None:
    """transformers looks for garbage at every training: not among all that was imported, which took it longer than to train.

    Once a file, where modules came: half a second before every test was two thirds of the suite.
    """
    if len(sys.modules) > max(FROZEN):
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        FROZEN.append(len(sys.modules))


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return build_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="session")
def dual(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Dual:
    return build_dual(chain, tmp_path_factory.mktemp("dual"))


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands in for Python: prints its arguments, one program a line."""
    return stand_in(tmp_path_factory.mktemp("bin"))
