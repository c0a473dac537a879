"""What the tests of generation share: tiny random models built once, instructions by hand, and a maker that draws at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from data import artifacts
from data.store.output import open_output
from generation.pictures import check_picture
from generation.production import conclude, produce
from tests.handmade import Made

SIZE = (16, 16)


def write_instructions(directory: Path, rows: Sequence[dict[str, Any]], **facts: Any) -> Path:
    """An output of stage 12; each row at least example_id, user_id, target_item, terms, instruction."""
    kinds = artifacts.INSTRUCTIONS.required | {"item_ids": artifacts.INT_LIST}
    usual = {"thought": "", "constrained": True, "status": "ok", "item_ids": []}
    columns = {name: pa.array([(usual | row)[name] for row in rows], kind) for name, kind in kinds.items()}
    with open_output(Made(), "instruct", version=1, inputs={}, directory=directory) as out:
        out.write_table("instructions.parquet", pa.table(columns))
        out.facts |= {"split": "test", "model": "by hand"} | facts
    return directory


class Sketch:
    """A maker whose pictures are noise of their seed, those of `per_seed` rows of one. `bad`: prompts that raise; `black`: prompts that come out black."""

    suffix, outside = ".png", False

    def __init__(
        self, *, batch: int = 2, per_seed: int = 1, bad: Sequence[str] = (), black: Sequence[str] = ()
    ) -> None:
        self.batch, self.per_seed, self.bad, self.black = batch, per_seed, bad, black
        self.drawn: list[str] = []

    def refusal(self, prompt: str) -> str | None:
        return "too long" if len(prompt) > 40 else None

    def make(self, requests: Sequence[Any], seeds: Sequence[int], files: Sequence[Path]) -> list[str | None]:
        if any(request.prompt in self.bad for request in requests):
            raise RuntimeError("a prompt that breaks the model")
        for request, seed, file in zip(requests, seeds, files, strict=True):
            pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)
            Image.fromarray(pixels * (request.prompt not in self.black)).save(file, "PNG")
            self.drawn.append(request.uid)
        return [None] * len(files)

    def check(self, file: Path) -> Any:
        return check_picture(file, size=SIZE)


@dataclass
class Drawn:
    """Arguments of an output of pictures."""

    output_dir: str
    overwrite: bool = False


def draw(path: Path, requests: Sequence[Any], maker: Sketch, *, model: str = "sketch") -> None:
    """An output of stage 13 by a maker."""
    with open_output(Drawn(str(path)), "generate_images", version=1, inputs={}) as out:
        produce(out, requests, maker, seed=0, model=model)
        conclude(out, requests, maker, seed=0, model=model)
