"""A small store taken through stages 07 and 08: what trainers need."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data import artifacts
from tests import handmade, store


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


def build_chain(root: Path) -> Chain:
    """The store, its examples and a model of its own, below `root`."""
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


@dataclass(frozen=True)
class Dual:
    """The chain's store with TIDs and examples of dual identifiers."""

    model: Path
    sids: Path
    tids: Path
    examples: Path

    def flags(self, output: Path, *more: object) -> list[object]:
        """--model --sids --tids --examples --output_dir of infer.instruct, and `more`."""
        flags = [part for name, path in vars(self).items() for part in (f"--{name}", path)]
        return [*flags, "--output_dir", output, *more]


def build_dual(chain: Chain, root: Path) -> Dual:
    """TIDs that some items share and some lack, an instruction for every row, and examples of them."""
    terms = [("shelf", f"thing {item % 30}") if item % 9 else () for item in range(store.ITEMS)]
    tids = handmade.write_tids(root / "tids", data=chain.data, terms=terms)
    rows = artifacts.read_sequences(chain.data).to_pylist()
    texts = {row["example_id"]: f"A thing on a shelf, light {row['user_id'] % 3}." for row in rows}
    told = handmade.write_taught(root / "told", data=chain.data, kind="instruction", texts=texts)
    handmade.call(
        "preprocess.build_examples", "--data", chain.data, "--sids", chain.sids, "--tids", tids, "--reasoning",
        json.dumps([str(told)]), "--tasks", '["history_to_sid", "sid_to_tid", "tid_to_sid", "history_to_instruction"]',
        "--output_dir", root / "examples",
    )  # fmt: skip
    return Dual(chain.model, chain.sids, tids, root / "examples")
