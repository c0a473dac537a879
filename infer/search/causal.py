"""Decoder-only models as the tree decoder drives them: beams are query tokens of one sequence behind the prompt.

The prompt is encoded once, padded on the right so that plain causal attention is exact for it. Each later forward appends
one query token per beam to a preallocated cache that is never reordered; a mask lets a beam see the prompt, its own
ancestors and itself, and explicit position ids place all beams of a level at the same position. Sliding-window layers get
masks of their own, by position.

Legend: B prompts, K beams, T prompt slots, Q queries, N slots of the cache, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from configs.program import InputError

# Positions or state come from the order of the slots, which a tree does not have.
UNSUPPORTED = ("bloom", "mpt", "gpt_neo", "xlnet", "ctrl", "rwkv")
MASKED_BY_US = ("sdpa", "eager")


class AttentionMasks:
    """Additive masks for the layers of a decoder-only model, from which slot may see which and at what positions they sit.

    Raises InputError for models whose layers are no attention over positions, or an attention kernel without masks.
    """

    def __init__(self, model: Any) -> None:
        self.config = config = model.base_model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        if not kinds and getattr(config, "sliding_window", None) is not None:
            kinds = {"sliding_attention"}  # Mistral and its kin: every layer slides
        other = kinds - {"full_attention", "sliding_attention"}
        if other or config.model_type in UNSUPPORTED or getattr(config, "alibi", False):
            raise InputError(
                f"a {config.model_type} model {sorted(other) or ''} cannot branch -> choose one with rotary "
                "or learned positions and attention in every layer (Qwen, Llama, Gemma, GPT-2, ...)"
            )
        if config._attn_implementation not in MASKED_BY_US:
            raise InputError(
                f"attention {config._attn_implementation!r} takes no mask -> load the model with attn_implementation='sdpa'"
            )
        self.kinds = kinds or {"full_attention"}
        self.dtype = next(model.parameters()).dtype

    def __call__(self, allowed_BQN: Tensor, positions_BQ: Tensor, positions_BN: Tensor) -> Any:
        """The mask [B, 1, Q, N] of each kind of layer; one mask where all layers are alike."""
        masks = {}
        for kind in self.kinds:
            seen_BQN = allowed_BQN
            if kind == "sliding_attention":
                distance_BQN = positions_BQ[..., None] - positions_BN[:, None]
                seen_BQN = allowed_BQN & (distance_BQN < self.config.sliding_window)
            blank = torch.zeros(seen_BQN.shape, dtype=self.dtype, device=seen_BQN.device)
            masks[kind] = blank.masked_fill_(~seen_BQN, torch.finfo(self.dtype).min)[:, None]
        return masks if len(masks) > 1 else next(iter(masks.values()))


def require_masks(model: Any) -> None:
    """InputError for a model whose attention leaves out the masks that it is given: its losses and beams would be wrong."""
    device = next(model.parameters()).device
    allowed_BTT = torch.ones((1, 3, 3), dtype=torch.bool, device=device).tril()
    allowed_BTT[0, 2, 1] = False
    positions_BT = torch.arange(3, device=device)[None]
    masks = AttentionMasks(model)(allowed_BTT, positions_BT, positions_BT)
    with torch.no_grad():
        seen = [
            model(
                input_ids=torch.tensor([[2, token, 3]], device=device),
                position_ids=positions_BT,
                attention_mask=masks,
                use_cache=False,
            ).logits[0, 2]
            for token in (4, 5)
        ]
    if not torch.equal(*seen):
        raise InputError(
            f"{type(model).__name__} as it was loaded sees tokens that its mask hides -> another loading.loader or attention"
        )


class CausalTrunk:
    """One search's forwards over a decoder-only model. `slots`: tokens per row that will follow the prompt."""

    def __init__(self, model: Any, *, slots: int) -> None:
        self.trunk, self.slots = model.base_model, slots
        self.masks = AttentionMasks(model)
        self.config = self.masks.config

    def start(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Hidden state [B, 1, D] behind each prompt: ids padded on the right, and their lengths."""
        self.lengths_B1 = lengths_B[:, None]
        slots_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        # Slots of the cache: the position of each, and which of them a beam may see.
        self.positions_BN = slots_T.expand(len(ids_BT), -1)
        self.prompt_B1T = (slots_T < self.lengths_B1)[:, None]
        self.tokens_BT = ids_BT.where(self.prompt_B1T[:, 0], -1)
        self.path_BKl = ids_BT.new_empty((len(ids_BT), 1, 0))
        self.cache = PreallocatedCache(self.config.num_hidden_layers, ids_BT.shape[1] + self.slots)
        self.widths: list[int] = []
        with self._last_mlp_at(self.lengths_B1 - 1):
            hidden_BTD = self._forward(ids_BT, None, self.positions_BN)
        return _at(hidden_BTD, self.lengths_B1 - 1)

    @contextmanager
    def _last_mlp_at(self, slots_B1: Tensor) -> Iterator[None]:
        """Within it the last layer's MLP computes one slot of each row: no other slot's output is ever read.

        The other slots get a copy of that output, so that shapes stay. Models without such a module are left as they are.
        """
        layers = getattr(self.trunk, "layers", None) or getattr(self.trunk, "h", None)
        mlp = getattr(layers[-1], "mlp", None) if layers is not None else None
        if not type(mlp).__name__.endswith("MLP"):
            yield
            return
        before = mlp.register_forward_pre_hook(lambda _, args: (_at(args[0], slots_B1), *args[1:]))
        width = self.positions_BN.shape[1]
        after = mlp.register_forward_hook(lambda _, args, output: output.expand(-1, width, -1))
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def extend(self, tokens_BK: Tensor, parent_BK: Tensor) -> Tensor:
        """Hidden states [B, K, D] behind beam k's new token, which continues beam `parent_BK` of the last call."""
        batch, beams = tokens_BK.shape
        own_K = torch.arange(beams, device=tokens_BK.device)
        depth = self.path_BKl.shape[2]
        parent_BKl = self.path_BKl.gather(1, parent_BK[..., None].expand(-1, -1, depth))
        self.path_BKl = torch.cat([parent_BKl, own_K.expand(batch, -1)[..., None]], dim=2)
        self.widths.append(beams)
        ancestors = [
            self.path_BKl[..., level, None] == torch.arange(width, device=own_K.device)
            for level, width in enumerate(self.widths)
        ]
        allowed_BKN = torch.cat([self.prompt_B1T.expand(-1, beams, -1), *ancestors], dim=2)
        positions_BK = (self.lengths_B1 + depth).expand(-1, beams)
        self.positions_BN = torch.cat([self.positions_BN, positions_BK], dim=1)
        masks = self.masks(allowed_BKN, positions_BK, self.positions_BN)
        return self._forward(tokens_BK, masks, positions_BK)

    def _forward(self, ids: Tensor, mask: Any, positions: Tensor) -> Tensor:
        return self.trunk(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state


def _at(states_BTD: Tensor, slots_B1: Tensor) -> Tensor:
    """The state [B, 1, D] in one slot of each row."""
    return states_BTD.gather(1, slots_B1[..., None].expand(-1, -1, states_BTD.shape[2]))


class PreallocatedCache(Cache):
    """Keys and values of every slot in one buffer per layer; sliding layers keep every slot too, their mask slides."""

    def __init__(self, layers: int, capacity: int) -> None:
        super().__init__(layers=[_Slots(capacity) for _ in range(layers)])


class _Slots(CacheLayerMixin):
    """Buffers [B, heads, capacity, D] that are filled from the front; reading gives the filled part as a view."""

    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.filled = capacity, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        batch, heads = key_states.shape[:2]
        self.keys = key_states.new_empty((batch, heads, self.capacity, key_states.shape[3]))
        self.values = value_states.new_empty((batch, heads, self.capacity, value_states.shape[3]))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.filled, self.filled + key_states.shape[2]
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.filled + query_length, 0

    def get_seq_length(self) -> int:
        return self.filled

    def get_max_length(self) -> int:
        return self.capacity
