"""The Engine of a model directory, whatever generates its semantic IDs: a language model, an encoder-decoder, a compact generator."""

from __future__ import annotations

from pathlib import Path

from infer.engine import DecodeSettings, Engine, load_engine
from infer.models import contract
from infer.text.thinking import ThinkSettings


def open_engine(
    model: str | Path,
    sids: str | Path,
    examples: str | Path,
    settings: DecodeSettings,
    *,
    device: str | None = None,
    mode: str = "direct",
    think: ThinkSettings | None = None,
) -> Engine:
    """As infer.engine.load_engine; a directory with an item model and no text model is a compact generator's.

    InputError for other item models, which are not decoded, and for what a compact generator cannot do.
    """
    if (Path(model) / contract.FILE).exists() and not (Path(model) / "config.json").exists():
        from infer.models.retrievers import compact_decoding

        return compact_decoding.load_engine(model, sids, settings, device=device, mode=mode)
    return load_engine(model, sids, examples, settings, device=device, mode=mode, think=think)
