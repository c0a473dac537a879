"""Log-probabilities of the reference policy: a frozen model, the policy without its adapter, or one that follows slowly.

A reference that never moves is asked once per (prompt, semantic ID): what it said is kept. With LoRA no second model is
loaded: the adapter is switched off and the rows of new tokens are put back for the time of the call.

Legend: P prompts, G rollouts, L levels, M entries of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedType
from torch import Tensor

from configs.program import InputError
from data.sid import SidVocab
from infer.engine import DecodeSettings, load_engine
from infer.search.tree import Beams
from train.new_rows import NAME
from train.policy.dropout import without_dropout
from train.policy.rollouts import take_beams

FILE = "reference.safetensors"
MOST_ENTRIES = 2_000_000  # of what is known


class Known:
    """Log-probabilities that were asked for: float32 [L] of every (row, node), in one table that grows.

    Two million entries of three levels took 233 MiB.
    """

    def __init__(self) -> None:
        self.place: dict[int, int] = {}
        self.values_ML = np.empty((0, 0), np.float32)

    def __len__(self) -> int:
        return len(self.place)

    def __contains__(self, key: tuple[int, int]) -> bool:
        return _packed(*key) in self.place

    def of(self, keys: Sequence[tuple[int, int]]) -> np.ndarray:
        """float32 [len(keys), L]; KeyError for one that is not known."""
        return self.values_ML[[self.place[_packed(*key)] for key in keys]]

    def add(self, keys: Sequence[tuple[int, int]], values: np.ndarray) -> None:
        """values: float32 [len(keys), L]; what is known already stays as it is."""
        for key, value_L in zip(keys, values, strict=True):
            if (packed := _packed(*key)) in self.place:
                continue
            count = len(self.place)
            if count == len(self.values_ML):
                more_ML = np.empty((max(1024, count), len(value_L)), np.float32)
                self.values_ML = np.concatenate([self.values_ML, more_ML]) if count else more_ML
            self.values_ML[count] = value_L
            self.place[packed] = count

    def keys_M2(self) -> np.ndarray:
        """int64 [M, 2], as they came."""
        packed_M = np.fromiter(self.place, np.int64, len(self.place))
        return np.stack([packed_M >> 32, packed_M & 0xFFFFFFFF], axis=1)


def _packed(row: int, node: int) -> int:
    return row << 32 | node


class Reference:
    """`logprobs(rows, prompts, beams)` of `model`, which is in eval mode and never gets a gradient.

    score: (model, prompts, beams) -> float32 [P, G, L]. `moves`: its weights change, so nothing is kept. dtype: what the weights compute
    in where that is not what they are kept in; small moves would be lost in bfloat16.
    """

    def __init__(
        self,
        model: Any,
        score: Callable[[Any, Sequence[Sequence[int]], Beams], Tensor],
        *,
        moves: bool = False,
        keep: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model, self.score, self.moves = model, score, moves
        self.masters: dict[str, Tensor] | None = None
        if dtype is not None:
            if moves:
                self.masters = {name: value.detach().clone() for name, value in model.named_parameters()}
            model.to(dtype)
        self.known = Known() if keep and not moves else None

    @torch.no_grad()
    def logprobs(self, rows: Sequence[int], prompts: Sequence[Sequence[int]], beams: Beams) -> Tensor:
        """float32 [P, G, L]; only prompts with an ID that has not been asked yet go through the model."""
        if self.known is None:
            return self._scored(prompts, beams)
        nodes = beams.nodes_BK.tolist()
        keys = [[(row, node) for node in group] for row, group in zip(rows, nodes, strict=True)]
        asked = [
            p for p, group in enumerate(keys) if any(key[1] >= 0 and key not in self.known for key in group)
        ]
        found = beams.scores_BK.new_zeros(beams.codes_BKL.shape)
        if asked:
            at = torch.tensor(asked, device=beams.nodes_BK.device)
            found[at] = self._scored([prompts[p] for p in asked], take_beams(beams, at))
            kept = found.cpu().numpy()
            if len(self.known) < MOST_ENTRIES:
                for p in asked:
                    legal = [g for g, key in enumerate(keys[p]) if key[1] >= 0]
                    self.known.add([keys[p][g] for g in legal], kept[p, legal])
        for p in set(range(len(keys))) - set(asked):
            legal = [g for g, key in enumerate(keys[p]) if key[1] >= 0]
            known = torch.from_numpy(self.known.of([keys[p][g] for g in legal]))
            found[p, legal] = known.to(found.device)
        return found

    def _scored(self, prompts: Sequence[Sequence[int]], beams: Beams) -> Tensor:
        return self.score(self.model, prompts, beams).float()

    @torch.no_grad()
    def follow(self, policy: Any, share: float) -> None:
        """reference <- share * policy + (1 - share) * reference (TRL's ref_model_mixup_alpha)."""
        for mine, theirs in zip(self._kept_in().values(), policy.parameters(), strict=True):
            mine.lerp_(theirs.to(mine.dtype), share)
        self._put_in()

    def _kept_in(self) -> dict[str, Tensor]:
        return dict(self.model.named_parameters()) if self.masters is None else self.masters

    def _put_in(self) -> None:
        for name, master in (self.masters or {}).items():
            self.model.get_parameter(name).copy_(master)

    def write(self, directory: Path, rank: int) -> None:
        """Into a checkpoint: the weights of a reference that moves (first process), or what this process keeps.

        What is kept is equal to what would be computed again up to rounding, and a resumed run is to be equal bit for bit.
        """
        from safetensors.torch import save_file

        if self.moves and rank == 0:
            weights = {name: value.detach().cpu().contiguous() for name, value in self._kept_in().items()}
            save_file(weights, directory / FILE)
        if self.known:
            logps_ML = torch.from_numpy(self.known.values_ML[: len(self.known)].copy())
            keys_M2 = torch.from_numpy(self.known.keys_M2())
            save_file({"keys": keys_M2, "logps": logps_ML}, _kept(directory, rank))

    @torch.no_grad()
    def read(self, directory: Path, rank: int) -> None:
        """What `write` wrote."""
        from safetensors.torch import load_file

        if self.moves:
            found = load_file(directory / FILE)
            for name, value in self._kept_in().items():
                value.copy_(found[name])
            self._put_in()
        if self.known is not None and _kept(directory, rank).exists():
            kept = load_file(_kept(directory, rank))
            self.known = Known()
            self.known.add(list(map(tuple, kept["keys"].tolist())), kept["logps"].numpy())


def _kept(directory: Path, rank: int) -> Path:
    return directory / f"reference_logps-{rank}.safetensors"


class AdapterReference(Reference):
    """The policy as it came in: its adapter off, the rows of new tokens as they were when this was made."""

    def __init__(self, policy: Any, score: Callable[..., Tensor], *, keep: bool = True) -> None:
        super().__init__(policy, score, keep=keep)
        rows = getattr(policy, NAME, None)
        self.rows = rows
        self.came = [] if rows is None else [value.detach().clone() for value in rows.parameters()]

    def _scored(self, prompts: Sequence[Sequence[int]], beams: Beams) -> Tensor:
        training = self.model.training
        self.model.eval()
        with self._as_it_came():
            found = super()._scored(prompts, beams)
        self.model.train(training)
        return found

    @contextmanager
    def _as_it_came(self) -> Iterator[None]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        now = [] if self.rows is None else [value.detach().clone() for value in self.rows.parameters()]
        for layer in layers:
            layer.enable_adapters(False)
        self._put(self.came)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            self._put(now)

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        if self.rows is not None:
            for row, value in zip(self.rows.parameters(), values, strict=True):
                row.copy_(value)
            self.rows.push(self.model)


def reference_of(
    given: Any | None, trainer: Any, score: Callable[..., Tensor], *, moves: bool
) -> Reference | None:
    """The reference of a trainer: of a model, of "adapter" (the policy without its own), or None."""
    if given is None:
        return None
    if given == "adapter":
        if moves:
            raise InputError(
                "rollout.sync_reference moves a second model, and an adapter has none -> remove it, or train_what all"
            )
        return AdapterReference(trainer.model, score)
    if not moves:
        without_dropout(given)
    given.to(trainer.args.device).eval().requires_grad_(False)
    # the same mixed precision as the policy, or the KL would start above 0
    prepared = trainer.accelerator.prepare_model(given, evaluation_mode=True)
    trainer.accelerator._models.remove(
        given
    )  # nothing of it is clipped; under FSDP, clipping compares all that it knows
    return Reference(prepared, score, moves=moves, dtype=weights_dtype(trainer))


def weights_dtype(trainer: Any) -> torch.dtype | None:
    """What DeepSpeed turns the policy's weights into, where accelerate computes in float32 weights with casts; else None."""
    if trainer.accelerator.distributed_type != DistributedType.DEEPSPEED:
        return None
    return torch.bfloat16 if trainer.args.bf16 else torch.float16 if trainer.args.fp16 else None


def require_same_tokens(reference: SidVocab, policy: SidVocab, *, where: str, rows: tuple[int, int]) -> None:
    """InputError where a reference speaks with other tokens than the policy; rows: of their output tables."""
    same = rows[0] == rows[1] and [level.token_ids.tolist() for level in reference.levels] == [
        level.token_ids.tolist() for level in policy.levels
    ]
    if not same:
        raise InputError(
            f"reference {where} has another vocabulary than the model ({rows[0]} rows against {rows[1]}) -> the model that "
            "training starts from, or another stage of it"
        )


def load_reference(args: Any, engine: Any, decode: DecodeSettings) -> Any:
    """A second model for the KL term, "adapter" where the policy without its own is one, None at beta 0."""
    if not args.rollout.beta:
        return None
    if args.train_what == "lora":
        return "adapter"
    where = args.reference or args.model
    other = load_engine(where, args.sids, args.examples, decode, trainable=True)
    rows = tuple(len(one.model.get_output_embeddings().weight) for one in (other, engine))
    require_same_tokens(other.renderer.vocab, engine.renderer.vocab, where=where, rows=rows)
    return other.model
