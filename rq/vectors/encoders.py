"""Item vectors by a local model directory: text through any Hugging Face encoder, images through CLIP or SigLIP.

Work is cut into batches before it is shared out: batches depend on the items alone, rank r of W takes every W-th, so that any
number of processes gives the same rows. Ranks come from the environment that torchrun and accelerate set; rank 0 collects what
the others wrote, and checks that every item is there once.

Legend: N items, B items of a batch, T tokens, D dimensions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from configs import program
from configs.program import EnvironmentFault, InputError, NumericError
from data.store.checkpoints import require_model
from data.store.claim import rank_and_world
from data.store.fingerprints import read_record
from data.store.models import load_processor, load_tokenizer, load_weights

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Image processors by model_type. These need Pillow only: the automatic choice asks for torchvision, whose pixels differ a little.
PROCESSORS = {
    "clip": ("transformers.models.clip.image_processing_pil_clip", "CLIPImageProcessorPil"),
    "siglip": ("transformers.models.siglip.image_processing_pil_siglip", "SiglipImageProcessorPil"),
}
WAIT_HOURS = 24  # how long the first rank to finish waits for the last


@dataclass
class TextEncoder:
    """How an `hf` part turns text into vectors."""

    pooling: Literal["mean", "last", "cls"] = "mean"
    """Which hidden state of the last layer is the vector: the mean over tokens (MiniOneRec, MiniLM), the last token's
    (Qwen3-Embedding and other causal encoders), the first token's (BERT-class with a trained [CLS])."""
    instruction: str = ""
    """Text put before every item text, e.g. an instruction that the encoder was trained with."""
    max_length: int = 512
    """Tokens per item; longer texts lose their end."""
    batch_tokens: int = 16384
    """Tokens per batch, padding included; one item is always taken."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the model; auto = bfloat16 on a GPU, float32 on a CPU. Vectors are summed in float32."""
    word_drop: float = 0.0
    """Share of words left out at random (by seed and item), as LC-Rec's option of that name."""
    trust_remote_code: bool = False
    """Run model code that lies in the directory."""

    def __post_init__(self) -> None:
        if self.max_length < 1 or self.batch_tokens < 1 or not 0 <= self.word_drop < 1:
            raise InputError(
                f"hf: max_length {self.max_length} and batch_tokens {self.batch_tokens} must be >= 1, "
                f"word_drop {self.word_drop} a share in [0, 1)"
            )


@dataclass
class ImageEncoder:
    """How a `clip` part turns images into vectors."""

    images: str | None = None
    """Folder of the images: <raw_id>.jpg (.jpeg .png .webp), or the file name at the end of the item's `image`. Null: `image`
    is itself a path. Nothing is downloaded."""
    batch_images: int = 64
    """Images per batch."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the model; auto = bfloat16 on a GPU, float32 on a CPU."""

    def __post_init__(self) -> None:
        if self.batch_images < 1:
            raise InputError(f"clip: batch_images {self.batch_images} must be >= 1")


@contextmanager
def process_group() -> Iterator[None]:
    """The processes of this launch can wait for each other inside; nothing happens for a single one."""
    _, world = rank_and_world()
    if world == 1:
        yield
        return
    from datetime import timedelta

    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(hours=WAIT_HOURS))
    try:
        yield
    finally:
        dist.destroy_process_group()


def device() -> Any:
    """This process's GPU, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def load_model(path: str, *, dtype: str, trust_remote_code: bool = False) -> Any:
    """The model of a local directory on this process's device, in eval mode; InputError when it is none."""
    import torch
    from transformers import AutoModel

    require_model(path)
    where = device()
    if dtype == "auto":
        dtype = "bfloat16" if where.type == "cuda" else "float32"
    model = load_weights(
        AutoModel, path, dtype=getattr(torch, dtype), remote_code=trust_remote_code, partial=True
    )
    return model.to(where).eval()


def batches_by_tokens(lengths: np.ndarray, *, batch_tokens: int) -> list[np.ndarray]:
    """Items of every batch: longest first, as many as fit into `batch_tokens` with padding, at least one."""
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        fits = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + fits])
        start += fits
    return batches


def drop_words(text: str, *, share: float, seed: int, item: int) -> str:
    """`text` without a random `share` of its words; the same for the same seed and item. Never empty."""
    words = text.split()
    kept = np.random.default_rng([seed, item]).random(len(words)) >= share
    return " ".join(word for word, keep in zip(words, kept, strict=True) if keep) or text


def pooled(hidden_BTD: Any, mask_BT: Any, *, pooling: str) -> Any:
    """One vector per row of right-padded hidden states, float32 [B, D]."""
    import torch

    hidden_BTD = hidden_BTD.float()
    if pooling == "cls":
        return hidden_BTD[:, 0]
    if pooling == "last":
        last_B = mask_BT.sum(1) - 1
        return hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), last_B]
    weight_BT1 = mask_BT[..., None].float()
    return (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)


def encode_texts(
    texts: list[str], *, model: str, options: TextEncoder, seed: int, shards: Path
) -> np.ndarray | None:
    """float32 [N, D] of all texts on rank 0, None on the others. `shards`: a folder all processes can reach."""
    import torch

    require_model(model)
    tokenizer = load_tokenizer(model, remote_code=options.trust_remote_code)
    if options.word_drop:
        texts = [drop_words(text, share=options.word_drop, seed=seed, item=i) for i, text in enumerate(texts)]
    encoded = tokenizer(
        [options.instruction + text for text in texts], truncation=True, max_length=options.max_length
    )["input_ids"]
    ids = [row if len(row) else [tokenizer.pad_token_id or 0] for row in encoded]
    network = load_model(model, dtype=options.dtype, trust_remote_code=options.trust_remote_code)
    if network.config.is_encoder_decoder:
        network = network.get_encoder()
    where = next(network.parameters()).device

    def encode(members: np.ndarray) -> np.ndarray:
        longest = max(len(ids[item]) for item in members)
        ids_BT = torch.zeros(len(members), longest, dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, item in enumerate(members):
            ids_BT[row, : len(ids[item])] = torch.tensor(ids[item])
            mask_BT[row, : len(ids[item])] = 1
        ids_BT, mask_BT = ids_BT.to(where), mask_BT.to(where)
        with torch.inference_mode():
            hidden = network(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        return pooled(hidden, mask_BT, pooling=options.pooling).cpu().numpy()

    lengths = np.array([len(row) for row in ids])
    batches = batches_by_tokens(lengths, batch_tokens=options.batch_tokens)
    return sharded(batches, encode, num_items=len(texts), shards=shards, label="encode text")


def image_paths(raw_ids: list[str], images: list[str | None], *, folder: str | None) -> list[Path | None]:
    """The image file of every item, None where there is none."""
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"clip.images {folder} is no folder -> pass the folder of the item images")
    found: list[Path | None] = []
    for raw_id, image in zip(raw_ids, images, strict=True):
        if folder is None:
            candidates = [Path(image)] if image else []
        else:
            names = [f"{raw_id}{suffix}" for suffix in SUFFIXES] if Path(raw_id).name == raw_id else []
            if image and Path(image.split("?")[0]).name:
                names.append(Path(image.split("?")[0]).name)
            candidates = [Path(folder) / name for name in names]
        found.append(next((path for path in candidates if path.is_file()), None))
    return found


def encode_images(
    paths: list[Path | None], *, model: str, options: ImageEncoder, shards: Path
) -> np.ndarray | None:
    """float32 [N, D] of the images on rank 0, None on the others; a missing or unreadable image is a zero row."""
    import torch
    from PIL import Image, UnidentifiedImageError

    present = np.flatnonzero([path is not None for path in paths])
    if not len(present):
        raise InputError(f"no item of {len(paths)} has an image file -> check clip.images")
    processor = image_processor(model)
    network = load_model(model, dtype=options.dtype)
    weight = next(network.parameters())

    def encode(members: np.ndarray) -> np.ndarray:
        pictures, readable = [], []
        for row, item in enumerate(members):
            try:
                with Image.open(paths[item]) as picture:
                    pictures.append(picture.convert("RGB"))
            except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
                continue
            readable.append(row)
        out = np.zeros((len(members), width), np.float32)
        if pictures:
            pixels = processor(images=pictures, return_tensors="pt")["pixel_values"].to(weight)
            with torch.inference_mode():
                out[readable] = image_features(network, pixels).float().cpu().numpy()
        return out

    size = network.config.vision_config.image_size
    with torch.inference_mode():
        width = image_features(network, torch.zeros(1, 3, size, size).to(weight)).shape[1]
    batches = np.split(present, range(options.batch_images, len(present), options.batch_images))
    return sharded(batches, encode, num_items=len(paths), shards=shards, label="encode images", partial=True)


def image_processor(model: str) -> Any:
    """The image processor of a CLIP or SigLIP directory; InputError for any other model."""
    import importlib

    require_model(model)
    kind = (read_record(Path(model) / "config.json") or {}).get("model_type")
    if kind not in PROCESSORS:
        raise InputError(f"{model} is a {kind} model -> pass a CLIP or SigLIP directory")
    module, name = PROCESSORS[kind]
    try:
        return load_processor(getattr(importlib.import_module(module), name), model)
    except (OSError, ValueError) as error:
        raise InputError(f"{model} has no readable preprocessor_config.json ({str(error)[:100]})") from None


def image_features(network: Any, pixels: Any) -> Any:
    """Projected image vectors [B, D] of CLIP or SigLIP, whose return type changed with transformers 5."""
    out = network.get_image_features(pixel_values=pixels)
    return out if hasattr(out, "shape") else out.pooler_output


def sharded(
    batches: list[np.ndarray],
    encode: Callable[[np.ndarray], np.ndarray],
    *,
    num_items: int,
    shards: Path,
    label: str,
    partial: bool = False,
) -> np.ndarray | None:
    """This rank's batches encoded; on rank 0 all rows float32 [N, D], on the others None.

    Every rank leaves one file in `shards`. With `partial` items in no batch are zero rows; otherwise each must be in one.
    """
    rank, world = rank_and_world()
    mine = batches[rank::world]
    rows = [encode(batch) for batch in program.progress(mine, label=label, unit="batch")]
    items = np.concatenate([*mine, np.zeros(0, np.int64)]).astype(np.int64)
    vectors = np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)
    bad = items[~np.isfinite(vectors).all(axis=1)] if len(items) else items
    if len(bad):
        raise NumericError(
            f"{label}: {len(bad)} vectors are not finite (first: item {bad[0]}) -> use dtype float32 or bfloat16"
        )
    if world == 1:
        parts = [(items, vectors)]
    else:
        parts = exchange(items, vectors, shards=shards)
        if rank:
            return None
    return collected(parts, num_items=num_items, partial=partial)


def exchange(items: np.ndarray, vectors: np.ndarray, *, shards: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every rank's (items, vectors) on rank 0, through files; nothing on the others."""
    import torch.distributed as dist

    rank, world = rank_and_world()
    shards.mkdir(parents=True, exist_ok=True)
    for name, array in (("items", items), ("vectors", vectors)):
        np.save(shards / f"{name}-{rank:05d}-of-{world:05d}.npy", array, allow_pickle=False)
    dist.barrier()
    if rank:
        return []
    names = [f"-{r:05d}-of-{world:05d}.npy" for r in range(world)]
    missing = [name for name in names if not (shards / f"vectors{name}").exists()]
    if missing:
        raise EnvironmentFault(
            f"{shards} lacks the files of {len(missing)} ranks -> put it where all can write"
        )
    return [(np.load(shards / f"items{name}"), np.load(shards / f"vectors{name}")) for name in names]


def collected(parts: list[tuple[np.ndarray, np.ndarray]], *, num_items: int, partial: bool) -> np.ndarray:
    """Rows put where they belong; EnvironmentFault when an item is missing or came twice."""
    items = np.concatenate([part[0] for part in parts])
    times = np.bincount(items, minlength=num_items)
    if (times > 1).any() or (not partial and (times == 0).any()):
        raise EnvironmentFault(
            f"{int((times == 0).sum())} items were not encoded and {int((times > 1).sum())} twice -> run again"
        )
    width = max(part[1].shape[1] for part in parts)
    out_ND = np.zeros((num_items, width), np.float32)
    for rows, vectors in parts:
        if len(rows):
            out_ND[rows] = vectors
    return out_ND
