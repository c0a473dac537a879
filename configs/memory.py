"""How much memory a training of a size takes on one GPU: an estimate by counting, made before anything is loaded.

    estimate(Shape.of(json.load(open("config.json"))), MemoryPlan(train_what="all", tokens=4096)).total

Counted, per process, in bytes: weights (float32 masters and the bfloat16 copies that autocast keeps), gradients, the two
moments of Adam, what a layer keeps of every token for its gradient, the label block of the output layer, and the cache of the
largest batch of a validation, which comes when no gradient is alive. Added: CONTEXT for CUDA itself and a SLACK for fragments.
These are estimates; none was checked against a GPU. On a CPU (device cpu: float32 throughout, and in place of CONTEXT what the process
holds already) they were: tests/test_planning.py.

Legend of the arithmetic: D hidden size, I inner size of the MLP, V rows of the vocabulary, T tokens of a batch.
"""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

GIB = 2**30
CONTEXT = 0.75 * GIB
SLACK = 1.1  # of everything but the context
HEAD_BLOCK = 512 * 2**20  # float32 logits of one block (train/supervised/head.py)
CPU_HEAD_BLOCK = 4 * 2**20
HEAD_COPIES = 2.5  # the logits, their bfloat16 origin, their gradient
ADAPTERS = ("q", "k", "v", "o", "gate", "up", "down")


def peak_mib() -> int:
    """Peak resident memory of this program in MiB; on Linux not that of the process that started it, which getrusage may say."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+)", status.read_text())):
        return int(found[1]) // 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform != "darwin" else peak // 2**20


@dataclass(frozen=True)
class Shape:
    """What of a config.json decides about memory."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head_dim: int
    vocab: int
    tied: bool
    biases: bool = False
    """of q, k and v (Qwen2)"""
    head_norms: bool = False
    """of queries and keys (Qwen3)"""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From a config.json; KeyError for one that is no decoder of this kind."""
        heads = config["num_attention_heads"]
        return cls(
            hidden=config["hidden_size"],
            inner=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            key_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocab=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", False)),
            biases=config.get("model_type") == "qwen2",
            head_norms=config.get("model_type") == "qwen3",
        )

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the linear layers of a block."""
        queries, keys = self.heads * self.head_dim, self.key_heads * self.head_dim
        return {
            "q": (self.hidden, queries), "k": (self.hidden, keys), "v": (self.hidden, keys), "o": (queries, self.hidden),
            "gate": (self.hidden, self.inner), "up": (self.hidden, self.inner), "down": (self.inner, self.hidden),
        }  # fmt: skip

    @property
    def layer(self) -> int:
        """Parameters of one block, norms included."""
        bias = (self.heads + 2 * self.key_heads) * self.head_dim if self.biases else 0
        norms = 2 * self.hidden + (2 * self.head_dim if self.head_norms else 0)
        return sum(rows * columns for rows, columns in self.linears.values()) + bias + norms

    @property
    def table(self) -> int:
        """Parameters of one vocabulary table."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.layers * self.layer + self.hidden + self.table * (1 if self.tied else 2)


@dataclass(frozen=True)
class MemoryPlan:
    """How a shape would be trained."""

    train_what: Literal["all", "lora"] = "all"
    sharding: Literal["ddp", "zero2", "fsdp2"] = "ddp"
    processes: int = 1
    tokens: int = 4096
    """of one forward, padding included"""
    checkpointing: bool = False
    """gradient checkpointing: a layer keeps its input only"""
    eight_bit: bool = False
    """moments of Adam in a byte each (optim adamw_bnb_8bit)"""
    rank: int = 16
    """of LoRA"""
    cached: int = 64 * 256
    """tokens of a validation's largest batch: 64 prompts (DecodeSettings.batch_size) of 256"""
    reference: bool = False
    """a second model for the KL term, whole in float32"""
    device: Literal["cuda", "cpu"] = "cuda"


@dataclass(frozen=True)
class Estimate:
    """Bytes on one GPU."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    head: float
    validation: float
    context: float = CONTEXT

    @property
    def total(self) -> float:
        """The peak: training's, or validation's where that is more."""
        held = self.weights + self.gradients + self.optimizer
        return self.context + SLACK * (held + max(self.activations + self.head, self.validation))

    def __str__(self) -> str:
        parts = {
            "weights": self.weights, "gradients": self.gradients, "optimizer": self.optimizer,
            "activations": self.activations, "output layer": self.head, "validation": self.validation,
        }  # fmt: skip
        told = ", ".join(f"{name} {value / GIB:.2f}" for name, value in parts.items())
        return f"about {self.total / GIB:.2f} GiB a process ({told}); an estimate, not measured"


def estimate(shape: Shape, plan: MemoryPlan) -> Estimate:
    """The memory of one process.

    All parameters on one GPU: 4 bytes of a weight, 2 of its copy, 4 of its gradient, 8 of its moments. A million parameters
    hold 18 MB between steps. Frozen weights (LoRA) are 4 bytes each.
    """
    weights, gradients, optimizer = _held(shape, plan)
    if plan.reference:
        weights += 4.0 * shape.parameters
    on_cpu = plan.device == "cpu"
    head = HEAD_COPIES * (CPU_HEAD_BLOCK if on_cpu else HEAD_BLOCK)
    if plan.train_what == "all":
        head += 4 * shape.table  # the block-wise sum of its gradient
    cache = plan.cached * key_value_bytes(shape) * (2 if on_cpu else 1)
    return Estimate(
        weights,
        gradients,
        optimizer,
        _activations(shape, plan),
        head,
        cache,
        resident() if on_cpu else CONTEXT,
    )


def resident() -> float:
    """Bytes that this process has in memory."""
    for line in (
        Path("/proc/self/status").read_text().splitlines() if Path("/proc/self/status").exists() else ()
    ):
        if line.startswith("VmRSS:"):
            return 1024.0 * int(line.split()[1])
    return float(peak_mib() << 20)


def trained(shape: Shape, plan: MemoryPlan) -> int:
    """Parameters with a gradient."""
    if plan.train_what == "all":
        return shape.parameters
    return shape.layers * plan.rank * sum(sum(shape.linears[name]) for name in ADAPTERS)


def _held(shape: Shape, plan: MemoryPlan) -> tuple[float, float, float]:
    """Bytes of (weights, gradients, optimizer) that stay between steps."""
    every, some = shape.parameters, trained(shape, plan)
    moments = 2 if plan.eight_bit else 8
    if plan.device == "cpu":  # float32, no copies; every process holds all
        return 4.0 * (every + some * (plan.train_what != "all")), 4.0 * some, float(moments * some)
    if plan.sharding == "zero2":  # bfloat16 weights whole; gradients and float32 masters in parts
        return 2.0 * every, 2.0 * some / plan.processes, (4 + moments) * some / plan.processes
    if plan.sharding == "fsdp2":  # all in parts, two layers and the tables in bfloat16 while they compute
        alive = 2.0 * (2 * shape.layer + shape.table * (1 if shape.tied else 2))
        return (
            4.0 * every / plan.processes + alive,
            4.0 * some / plan.processes + alive,
            moments * some / plan.processes,
        )
    return 4.0 * every + 2.0 * some, 4.0 * some, float(moments * some)


def _activations(shape: Shape, plan: MemoryPlan) -> float:
    """What the layers keep of every token. float32 residual stream and norms, bfloat16 inputs of linear layers."""
    queries, keys = shape.heads * shape.head_dim, shape.key_heads * shape.head_dim
    if plan.device == "cpu":
        # floats of two norms (input, normed, output), of q and k (in, normed), q k v and output of attention with keys spread over
        # the heads, the input of o, and gate, its activation, up and their product
        layer = 4 * (6 * shape.hidden + 7 * queries + 2 * keys + 4 * shape.inner)
        if plan.checkpointing:
            return float(plan.tokens * (shape.layers * 4 * shape.hidden + layer))
        return float(plan.tokens * shape.layers * layer)
    attention = 2 * (2 * queries + 2 * keys) + 2 * queries + 8 * (queries + keys)  # q k v o, rotated, normed
    layer = 4 * shape.hidden + 2 * (8 * shape.hidden + 2 * shape.hidden) + attention + 4 * 2 * shape.inner
    if plan.checkpointing:
        return float(plan.tokens * (shape.layers * 4 * shape.hidden + layer))
    return float(plan.tokens * shape.layers * layer)


def key_value_bytes(shape: Shape) -> int:
    """Bytes of one token in the cache of all layers, bfloat16."""
    return 2 * 2 * shape.layers * shape.key_heads * shape.head_dim


def largest_that_fits(
    shape: Shape, plan: MemoryPlan, *, card: float, choices: tuple[int, ...]
) -> MemoryPlan | None:
    """The plan with the most tokens of `choices` (ascending) whose estimate stays within `card` bytes; None where none does."""
    fitting = [tokens for tokens in choices if estimate(shape, replace(plan, tokens=tokens)).total <= card]
    return replace(plan, tokens=fitting[-1]) if fitting else None
