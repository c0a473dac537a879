"""Whole weights from what several processes wrote: torch.distributed.checkpoint (FSDP) and DeepSpeed ZeRO checkpoints.

    FSDP    <dir>/pytorch_model_fsdp_0/{.metadata, __<rank>_0.distcp}   or such a folder itself
    ZeRO    <dir>/latest -> <dir>/<tag>/{*_optim_states.pt, *_model_states.pt}, or a <tag> folder itself

DeepSpeed keeps the float32 weights in the optimizer's files, flattened and cut: stage 1 and 2 cut the whole row of parameters,
stage 3 every parameter by itself, padded. It need not be installed. Files of others are pickles: only tensors, containers and
the named record classes are built from them, whatever else they name is refused.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.program import InputError

METADATA, LATEST = ".metadata", "latest"
RECORDS = {  # what the index of torch.distributed.checkpoint is made of
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float32", "float16", "bfloat16", "float64", "int64", "int32", "int8", "uint8", "bool"},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "collections": {"OrderedDict"},
}  # fmt: skip
# of DeepSpeed's own records nothing is needed: they become empty objects
DEEPSPEED_RECORDS = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler", "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum", "deepspeed.utils.tensor_fragment.fragment_address",
)  # fmt: skip


def is_sharded_checkpoint(directory: Path) -> bool:
    """Whether `whole_weights` reads it."""
    return fsdp_folder(directory) is not None or zero_folder(directory) is not None


def whole_weights(directory: Path) -> dict[str, Tensor]:
    """{name: whole tensor} of a sharded checkpoint, as it was stored (ZeRO: float32); InputError where parts are missing."""
    folder = fsdp_folder(directory)
    if folder is not None:
        return read_fsdp(folder)
    folder = zero_folder(directory)
    if folder is None:
        raise InputError(
            f"{directory} holds no sharded checkpoint -> a checkpoint-* with pytorch_model_fsdp_0/ or a DeepSpeed `latest`"
        )
    return read_zero(folder)


def fsdp_folder(directory: Path) -> Path | None:
    """Where the index of a torch.distributed.checkpoint is."""
    folders = (directory, directory / "pytorch_model_fsdp_0")
    return next((folder for folder in folders if (folder / METADATA).is_file()), None)


def zero_folder(directory: Path) -> Path | None:
    """Where the files of a DeepSpeed checkpoint are; InputError where `latest` names nothing that is there."""
    if (directory / LATEST).is_file():
        tag = (directory / LATEST).read_text().strip()
        if not re.fullmatch(r"[\w.-]+", tag) or not (directory / tag).is_dir():
            raise InputError(
                f"{directory}/{LATEST} names {tag[:40]!r}, which is not there -> copy the checkpoint again"
            )
        return directory / tag
    return directory if list(directory.glob("*_optim_states.pt")) else None


class _Index(pickle.Unpickler):
    """Builds RECORDS and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in RECORDS.get(module, ()):
            raise InputError(
                f"the index of this checkpoint names {module}.{name}, which no index needs -> it is not loaded"
            )
        return super().find_class(module, name)


def read_fsdp(folder: Path) -> dict[str, Tensor]:
    """All tensors of a torch.distributed.checkpoint, without process group."""
    import torch.distributed.checkpoint as dcp

    class Reader(dcp.FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            with open(folder / METADATA, "rb") as file:
                index = _Index(file).load()
            index.storage_meta = index.storage_meta or dcp.metadata.StorageMeta()
            index.storage_meta.load_id = self.load_id
            return index

    try:
        reader = Reader(str(folder))
        entries = reader.read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in entries.items()
            if hasattr(entry, "properties")
        }
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    except (OSError, EOFError, pickle.UnpicklingError, RuntimeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{folder}: {_first_line(error)} -> parts are missing or damaged; copy it again"
        ) from error
    except dcp.api.CheckpointException as error:
        raise InputError(
            f"{folder}: {_first_line(error)} -> parts are missing or damaged; copy it again"
        ) from error
    return tensors


def read_zero(folder: Path) -> dict[str, Tensor]:
    """Float32 weights of the files of a DeepSpeed checkpoint of stage 1, 2 or 3, frozen ones and buffers included."""
    states = [_load(file) for file in _by_rank(folder, "*_model_states.pt")]
    optimizers = [_load(file)["optimizer_state_dict"] for file in _by_rank(folder, "*_optim_states.pt")]
    if not states or not optimizers:
        raise InputError(
            f"{folder} lacks *_model_states.pt or *_optim_states.pt -> copy the checkpoint again"
        )
    parts = optimizers[0]["partition_count"]
    parts = max(parts) if isinstance(parts, list) else parts
    if parts != len(optimizers):
        raise InputError(
            f"{folder} has the files of {len(optimizers)} of {parts} processes -> copy the others too"
        )
    first = states[0]
    shapes = [{name: tuple(shape) for name, shape in group.items()} for group in first["param_shapes"]]
    tensors = {name: first["module"][name] for name in first["buffer_names"]}
    if "fp32_flat_groups" in optimizers[0]:
        tensors |= _cut_each(optimizers, shapes, folder)
        tensors |= _frozen_parts(states)
    else:
        tensors |= _cut_whole(optimizers, shapes, folder)
        tensors |= first.get("frozen_param_fragments") or {}
    tensors |= {
        name: tensors[same] for name, same in first.get("shared_params", {}).items() if same in tensors
    }
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def _cut_whole(optimizers: list[dict], shapes: list[dict], folder: Path) -> dict[str, Tensor]:
    """Stage 1 and 2: the parameters of a group one behind the other, cut into one piece per process."""
    paddings = optimizers[0].get("param_alignment_paddings") or [[0] * len(group) for group in shapes]
    tensors = {}
    for number, (group, padding) in enumerate(zip(shapes, paddings, strict=True)):
        flat = torch.cat([part["single_partition_of_fp32_groups"][number] for part in optimizers])
        start = 0
        for (name, shape), gap in zip(group.items(), padding, strict=True):
            tensors[name] = _piece(flat, start, shape, name, folder)
            start += math.prod(shape) + gap
    return tensors


def _cut_each(optimizers: list[dict], shapes: list[dict], folder: Path) -> dict[str, Tensor]:
    """Stage 3: of every parameter an equal piece per process, the last one padded."""
    flats = [torch.cat([group.flatten() for group in part["fp32_flat_groups"]]) for part in optimizers]
    tensors, start = {}, 0
    for name, shape in (pair for group in shapes for pair in group.items()):
        size = -(-math.prod(shape) // len(flats))
        pieces = torch.cat([flat[start : start + size] for flat in flats])
        tensors[name] = _piece(pieces, 0, shape, name, folder)
        start += size
    return tensors


def _frozen_parts(states: list[dict]) -> dict[str, Tensor]:
    """Stage 3: frozen parameters lie in pieces beside the optimizer's."""
    shapes = states[0].get("frozen_param_shapes") or {}
    tensors = {}
    for name, shape in shapes.items():
        pieces = torch.cat([state["frozen_param_fragments"][name].flatten() for state in states])
        tensors[name] = pieces[: math.prod(shape)].view(tuple(shape))
    return tensors


def _piece(flat: Tensor, start: int, shape: tuple[int, ...], name: str, folder: Path) -> Tensor:
    size = math.prod(shape)
    if start + size > len(flat):
        raise InputError(f"{folder} holds fewer numbers than {name} needs -> copy the checkpoint again")
    return flat[start : start + size].view(shape)


def _by_rank(folder: Path, pattern: str) -> list[Path]:
    def rank(file: Path) -> int:
        found = re.search(r"zero_pp_rank_(\d+)", file.name)
        return int(found[1]) if found else 0

    return sorted(folder.glob(pattern), key=rank)


def _load(file: Path) -> dict[str, Any]:
    with _deepspeed_records():
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            raise InputError(f"{file} cannot be read: {_first_line(error)} -> copy it again") from error


class _Unread:
    """Stands for a record of DeepSpeed's."""

    def __new__(cls, *args: Any) -> _Unread:
        return object.__new__(cls)

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


@contextmanager
def _deepspeed_records() -> Iterator[None]:
    with torch.serialization.safe_globals([(_Unread, name) for name in DEEPSPEED_RECORDS]):
        yield


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def fitting(tensors: dict[str, Tensor], model: Any, where: Path) -> dict[str, Tensor]:
    """`tensors` under the names of `model` (a wrapper's prefix taken off); InputError for the first that does not belong to it.

    A tied output layer may be left out.
    """
    own = model.state_dict()
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    for prefix in ("", "model.", "module.", "model.module."):
        found = {
            name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
        }
        if set(own) - tied <= set(found) <= set(own):
            break
    else:
        missing = sorted(set(own) - tied - set(tensors)) or sorted(set(tensors) - set(own))
        raise InputError(
            f"{where} and the model of --base do not belong together: {missing[0]} -> another --base"
        )
    for name, value in found.items():
        if value.shape != own[name].shape:
            raise InputError(
                f"{where}: {name} is {list(value.shape)}, that of the model of --base {list(own[name].shape)} -> another --base"
            )
    return found
