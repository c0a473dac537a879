"""Fixtures shared by the slow tests: a small store taken through stages 07 and 08 once per session."""

from __future__ import annotations

import os

# Bitwise comparisons between processes need one number of threads everywhere; read when torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from tests import handmade, store

# A machine under load is slow, not wrong: no test sets a deadline of its own.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


# Seconds of processor time add up here; with these files first no worker is left with a long one at the end.
LONGEST_FIRST = (
    "test_stages", "test_trainers", "test_recommend", "test_layering", "test_encoders", "test_serve", "test_vocabulary",
    "test_setup", "test_constructors", "test_crashes", "test_configs", "test_chat_journal", "test_safety", "test_chat_client",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order of LONGEST_FIRST, then as collected; within a file nothing moves."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@dataclass(frozen=True)
class Chain:
    """Directories of a small store whose users walk along item chains: learnable within seconds."""

    data: Path
    sids: Path
    examples: Path
    model: Path

    def flags(self, **changes: Path) -> list[str]:
        """--model --examples --sids of a trainer."""
        paths = {"model": self.model, "examples": self.examples, "sids": self.sids} | changes
        return [part for name, path in paths.items() for part in (f"--{name}", str(path))]


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    root = tmp_path_factory.mktemp("chain")
    made = Chain(root / "data", root / "data/sids/x", root / "data/examples/x", root / "run/vocab")
    store.write_store(made.data)
    sizes = (8, 8, 4)
    spread = np.random.default_rng(0).permutation(np.prod(sizes))[: store.ITEMS]
    codes = np.stack(np.unravel_index(spread, sizes), axis=1).astype(np.int32)
    handmade.write_sids(made.sids, data=made.data, codes=codes, sizes=sizes)
    handmade.call(
        "preprocess.build_examples", "--data", made.data, "--sids", made.sids, "--output_dir", made.examples
    )
    shape = [
        "--shape.hidden_size",
        32,
        "--shape.num_layers",
        2,
        "--shape.head_dim",
        8,
        "--shape.intermediate_size",
        64,
    ]
    base = made.model.with_name("base")
    handmade.call(
        "preprocess.init_base_model", "--data", made.data, "--output_dir", base, "--vocab_size", 400, *shape
    )
    handmade.call("preprocess.expand_vocab", "--model", base, "--sids", made.sids, "--output_dir", made.model)
    return made
