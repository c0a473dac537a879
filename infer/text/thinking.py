"""Think, then recommend: a model writes a thought, and the semantic ID is searched behind it. All on token ids.

Step 1 generates thoughts behind `prompt_ids(example, "think")` up to the end-of-thought token and keeps them as a table
(THOUGHTS); step 2 searches the trie behind prompt + thought + `close_thought`. Between the steps lie files, so that step 1
may run elsewhere, under vLLM, and step 2 can be repeated. Ids are never decoded and encoded again.

A thought that reached the length limit, or ended its turn, is closed by force: it is recorded as not `finished`, and the
manifest counts such rows (`forced_close`, `unfinished_thought_rate`).

Several thoughts per row are one mixture: `logsumexp` gives log(mean of the probabilities) of each semantic ID over the
thoughts, `max` its best score (published two-stage inference keeps the first thought only). An ID that one thought's
beams do not hold counts as probability 0 there.

A *race* adds one more list to those of the thoughts, that of decoding without one: where a thought leads astray, what the model
would have said at once is still among the candidates. With `max` an ID keeps its best score, with `logsumexp` decoding without a
thought weighs as much as one thought.

Legend: N rows, T thoughts per row, K beams, E entries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from configs.needs import Need, require_needs
from configs.program import EnvironmentFault, InputError
from data import artifacts
from data.artifacts import INT_LIST
from data.predictions import THOUGHTS
from data.renderer import Renderer
from infer.text.generate import TextSettings, generate_ids

AGGREGATES = ("logsumexp", "max")
WRITERS = ("transformers", "vllm")
WITHOUT = ("direct", "empty_think")


@dataclass(frozen=True, kw_only=True)
class ThinkSettings:
    """How thoughts are written and combined; used with modes think and race."""

    thoughts: int = 1
    """thoughts per example; more than one needs a temperature above 0"""
    max_tokens: int = 512
    """longest thought in tokens; a longer one is closed by force and counted"""
    temperature: float = 0.0
    """0 = greedy"""
    top_p: float = 1.0
    """sample from the smallest set of tokens with this probability mass"""
    top_k: int = 0
    """sample from this many likeliest tokens; 0 = all"""
    batch_size: int = 16
    """prompts per call of generate"""
    seed: int = 0
    """of the sampling"""
    aggregate: str = "logsumexp"
    """how several thoughts of a row become one list: logsumexp or max"""
    without: str = "direct"
    """mode race: where the answer without a thought starts, direct or empty_think (behind an empty think block)"""
    writer: str = "transformers"
    """what generates the thoughts: transformers, or vllm where it is installed"""
    gpu_memory: float = 0.85
    """share of the GPU's memory that vLLM may take"""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("aggregate", self.aggregate, AGGREGATES),
            ("writer", self.writer, WRITERS),
            ("without", self.without, WITHOUT),
        ):
            if value not in known:
                raise InputError(f"unknown think.{name} {value!r} -> one of {', '.join(known)}")
        if not 0 < self.gpu_memory <= 1:
            raise InputError(f"think.gpu_memory {self.gpu_memory} must lie in (0, 1]")
        require_needs(self, "think.")
        self.text()

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        return [
            Need(("top_p", "top_k"), self.temperature > 0, "think.temperature above 0"),
            Need(("gpu_memory",), self.writer == "vllm", "think.writer vllm"),
        ]

    def text(self) -> TextSettings:
        """The same for infer.text.generate."""
        return TextSettings(
            max_new_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k,
            samples=self.thoughts, batch_size=self.batch_size, seed=self.seed,
        )  # fmt: skip


def needs_of_mode(mode: str, think: ThinkSettings) -> list[Need]:
    """Which options of a group `think` a program with this mode reads."""
    race = mode == "race"
    return [
        Need(("think",), race or mode == "think", "mode think or race"),
        Need(("think.without",), race, "mode race"),
        Need(("think.aggregate",), race or think.thoughts > 1, "think.thoughts above 1 or mode race"),
    ]


@dataclass(frozen=True)
class Thought:
    """Generated ids up to the end marker (without it); `finished` where the model wrote the marker itself."""

    ids: tuple[int, ...]
    finished: bool


def thought_of(ids: list[int], *, end: int, eos: int, stopped_by: Any = None) -> Thought:
    """What vLLM generated, as a thought: it keeps the stop token at the end of the ids, or says which one it left out."""
    if ids and ids[-1] in (end, eos):
        return Thought(tuple(ids[:-1]), ids[-1] == end)
    return Thought(tuple(ids), stopped_by == end)


class TransformersWriter:
    """Thoughts from the model that is loaded for the search as well."""

    def __init__(self, model: Any, renderer: Renderer, settings: ThinkSettings) -> None:
        if model.config.is_encoder_decoder:
            raise InputError(
                "mode think needs a causal language model, this one is an encoder-decoder -> mode direct"
            )
        self.model, self.settings = model, settings
        self.end, self.eos = renderer.think_end_id(), renderer.terminator_ids("think")[0]

    def write(self, prompts: Sequence[Sequence[int]], keys: Sequence[int]) -> list[list[Thought]]:
        """The thoughts of each prompt. keys: one integer per prompt (its example id); with the seed and a
        thought's number they decide what is drawn."""
        order = np.argsort([-len(prompt) for prompt in prompts], kind="stable")
        thoughts: list[list[Thought]] = [[] for _ in prompts]
        for start in range(0, len(order), self.settings.batch_size):
            rows = order[start : start + self.settings.batch_size].tolist()
            made = generate_ids(
                self.model,
                [prompts[row] for row in rows],
                self.settings.text(),
                stop_ids=[self.end, self.eos],
                keys=[keys[row] for row in rows],
            )
            for row, texts in zip(rows, made, strict=True):
                thoughts[row] = [Thought(text.ids, text.stop == self.end) for text in texts]
        return thoughts

    def close(self) -> None:
        """Nothing is held."""


class VllmWriter:
    """Thoughts from vLLM, which holds a model of its own; `close` gives its memory back before the search."""

    def __init__(self, model_dir: Any, renderer: Renderer, settings: ThinkSettings, *, context: int) -> None:
        try:
            from vllm import LLM, SamplingParams
        except ImportError:
            raise EnvironmentFault(
                "think.writer vllm needs vLLM, which is not installed -> pip install -r requirements-gpu.txt, or "
                "think.writer transformers"
            ) from None
        self.settings, self.params = settings, SamplingParams
        self.end, self.eos = renderer.think_end_id(), renderer.terminator_ids("think")[0]
        self.llm = LLM(
            model=str(model_dir),
            skip_tokenizer_init=True,
            max_model_len=context,
            gpu_memory_utilization=settings.gpu_memory,
            seed=settings.seed,
        )

    def write(self, prompts: Sequence[Sequence[int]], keys: Sequence[int]) -> list[list[Thought]]:
        """As TransformersWriter.write; every prompt has a seed of its own."""
        settings = self.settings
        params = [
            self.params(
                n=settings.thoughts, temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k or -1,
                max_tokens=settings.max_tokens, stop_token_ids=[self.end, self.eos], detokenize=False,
                repetition_penalty=1.0, seed=seed_of(settings.seed, key),
            )
            for key in keys
        ]  # fmt: skip
        outputs = self.llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], params)
        return [
            [
                thought_of(list(one.token_ids), end=self.end, eos=self.eos, stopped_by=one.stop_reason)
                for one in output.outputs
            ]
            for output in outputs
        ]

    def close(self) -> None:
        """Stop vLLM's engine and free its memory."""
        import gc

        import torch

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()
        torch.cuda.empty_cache()


def seed_of(seed: int, key: int | tuple[int, ...]) -> int:
    """A seed for (run, row), or for (row, thought), that does not depend on the process, the shard or the order of the rows."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:4], "little")


def thoughts_table(
    example_ids: Sequence[int], thoughts: Sequence[Sequence[Thought]], renderer: Renderer
) -> pa.Table:
    """THOUGHTS rows: a row per example and thought. `text` is for people, nothing reads it back."""
    flat = [
        (example, index, thought)
        for example, texts in zip(example_ids, thoughts, strict=True)
        for index, thought in enumerate(texts)
    ]
    decode = renderer.tokenizer.decode
    table = {
        "example_id": pa.array([example for example, _, _ in flat], pa.int64()),
        "thought_index": pa.array([index for _, index, _ in flat], pa.int32()),
        "token_ids": pa.array([thought.ids for _, _, thought in flat], INT_LIST),
        "text": artifacts.text_array(
            [decode(list(thought.ids), clean_up_tokenization_spaces=False) for _, _, thought in flat]
        ),
        "finished": pa.array([thought.finished for _, _, thought in flat], pa.bool_()),
    }
    return artifacts.conform(pa.table(table), THOUGHTS, where=THOUGHTS.file)


def read_thoughts(table: pa.Table, example_ids: Sequence[int], *, where: str) -> list[list[Thought]]:
    """The thoughts of each example, in the order of `example_ids`; InputError when one has none."""
    table = artifacts.conform(table, THOUGHTS, where=where)
    found: dict[int, list[tuple[int, Thought]]] = {}
    for row in table.to_pylist():
        thought = Thought(tuple(row["token_ids"]), row["finished"])
        found.setdefault(row["example_id"], []).append((row["thought_index"], thought))
    missing = [example for example in example_ids if example not in found]
    if missing:
        raise InputError(
            f"{where}: no thought for example {missing[0]} ({len(missing)} such) -> write them again"
        )
    return [
        [thought for _, thought in sorted(found[example], key=lambda pair: pair[0])]
        for example in example_ids
    ]


def answer_prompts(
    prompts: Sequence[Sequence[int]],
    thoughts: Sequence[Sequence[Thought]],
    renderer: Renderer,
    *,
    task: str,
    without: Sequence[Sequence[int]] | None = None,
) -> tuple[list[list[int]], np.ndarray]:
    """(prompt ids behind which the answer of `task` is searched, one per thought; the row of each, int64).

    without: of every row one more prompt, that without a thought; it comes behind those of its thoughts.
    """
    close = {finished: renderer.close_thought(task, finished=finished) for finished in (True, False)}
    extended, rows = [], []
    for row, (prompt, texts) in enumerate(zip(prompts, thoughts, strict=True)):
        own = [[*prompt, *thought.ids, *close[thought.finished]] for thought in texts]
        own += [] if without is None else [list(without[row])]
        extended += own
        rows += [row] * len(own)
    return extended, np.array(rows, np.int64)


def aggregate(
    nodes_EK: np.ndarray, scores_EK: np.ndarray, row_E: np.ndarray, *, how: str, beams: int
) -> tuple[np.ndarray, np.ndarray]:
    """The beams of all thoughts of a row as one list: (nodes int64 [N, beams], scores float32 [N, beams]).

    nodes_EK: one search per thought, -1 where it found fewer; row_E: whose thought it was, ascending from 0. Scores 0.5
    and 0.25 (as probabilities) of one ID under two thoughts give log 0.375 with logsumexp, log 0.5 with max. Equal scores
    are ordered by node.
    """
    num_rows, thoughts_N = int(row_E.max()) + 1, np.bincount(row_E)
    entry, rank = np.nonzero(nodes_EK >= 0)
    row, node = row_E[entry], nodes_EK[entry, rank]
    score = scores_EK[entry, rank].astype(np.float64)
    order = np.lexsort((node, row))
    row, node, score = row[order], node[order], score[order]
    first = np.ones(len(row), bool)
    first[1:] = (row[1:] != row[:-1]) | (node[1:] != node[:-1])
    starts = np.flatnonzero(first)
    row, node = row[starts], node[starts]
    if how == "max":
        score = np.maximum.reduceat(score, starts)
    else:
        score = np.logaddexp.reduceat(score, starts) - np.log(thoughts_N[row])
    order = np.lexsort((node, -score, row))
    row, node, score = row[order], node[order], score[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    kept = place < beams
    nodes_NK = np.full((num_rows, beams), -1, np.int64)
    scores_NK = np.full((num_rows, beams), -np.inf, np.float32)
    nodes_NK[row[kept], place[kept]] = node[kept]
    scores_NK[row[kept], place[kept]] = score[kept]
    return nodes_NK, scores_NK
