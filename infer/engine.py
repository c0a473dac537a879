"""The one path by which evaluation, rollouts and serving generate: a model, its tries, its renderer.

engine = load_engine(model_dir, sids_dir, examples_dir, DecodeSettings(beams=50))
engine.recommend([[3, 17, 5], [8]], k=10)
engine.recommend([[3, 17, 5], [8]], k=10, allowed_items=[[1, 2, 3], None], exclude_history=True)
nodes, scores = engine.rank(prompts)            # arrays, for evaluation

Legend: B prompts, N rows, K beams, E searches (one per thought).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from configs.program import InputError
from data.prompts import wording as named_wording
from data.renderer import MODES, HistoryRenderer, Renderer
from data.sid import SidTable, SidVocab, read_sids, read_vocab, sid_format
from data.signals import Signals, read_signals
from data.store.checkpoints import require_model
from data.tasks import Example
from infer.loading import USUAL, LoadSettings, context_length, examples_facts, load_model, prompt_bound
from infer.search.allowed import Catalogues, exhausted, item_ids, members, read_allowed
from infer.search.scoring import Parity
from infer.search.trie import SCORE_SPACES, Trie
from infer.text.thinking import ThinkSettings, TransformersWriter, aggregate, answer_prompts, seed_of

STRATEGIES = ("beam", "sample")
RACE = "race"


@dataclass(frozen=True)
class Recommendation:
    """One recommended semantic ID: its items, codes and score (a log-probability)."""

    item_ids: tuple[int, ...]
    codes: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class DecodeSettings:
    """How to decode; stored beside every result."""

    beams: int = 50
    """semantic IDs returned per prompt"""
    score_space: str = "full"
    """full (whole vocabulary), level (the level's codes) or trie (the legal codes)"""
    temperature: float = 1.0
    """divides the logits before masking"""
    batch_size: int = 64
    """most prompts per forward"""
    max_prompt: int | None = None
    """longest prompt in tokens; a longer history loses its oldest items; null = as in training, else what the context has room for"""
    batch_tokens: int = 32768
    """most prompt tokens per forward, padding included; bounds the memory where prompts are long"""
    terminator: bool = False
    """score the tokens that end an answer too, as published evaluations do"""
    repetition_penalty: float = 1.0
    """on tokens of the prompt and the answer so far; 1.1 is what some published numbers were made with"""
    penalise: str = "logprobs"
    """what the penalty changes: logprobs or logits"""
    length_penalty: float = 0.0
    """a score is divided by its number of tokens to this power"""
    strategy: str = "beam"
    """beam: the best; sample: distinct items drawn without replacement, in the order of the draw (score space trie)"""
    seed: int = 0
    """of strategy sample"""

    def __post_init__(self) -> None:
        if min(self.beams, self.batch_size, self.batch_tokens) < 1:
            raise InputError(
                f"beams {self.beams}, batch_size {self.batch_size}, batch_tokens {self.batch_tokens} must be positive"
            )
        if self.max_prompt is not None and self.max_prompt < 1:
            raise InputError(f"max_prompt {self.max_prompt} must be at least 1")
        if self.score_space not in SCORE_SPACES:
            raise InputError(f"unknown score space {self.score_space!r} -> one of {', '.join(SCORE_SPACES)}")
        if self.strategy not in STRATEGIES:
            raise InputError(f"unknown strategy {self.strategy!r} -> one of {', '.join(STRATEGIES)}")
        if self.strategy == "sample" and self.score_space != "trie":
            raise InputError(
                f"strategy sample draws legal items, which score space {self.score_space} does not sum to one over "
                "-> score_space trie"
            )
        if self.terminator and self.score_space != "full":
            raise InputError(
                f"terminators have probability 1 in score space {self.score_space} -> score_space full or terminator false"
            )
        if self.terminator and self.strategy == "sample":
            raise InputError("strategy sample draws items, not terminators -> terminator false")
        _ = self.parity

    @property
    def parity(self) -> Parity:
        """The same for infer.search.tree."""
        return Parity(
            temperature=self.temperature, terminator=self.terminator, repetition_penalty=self.repetition_penalty,
            penalise=self.penalise, length_penalty=self.length_penalty,
        )  # fmt: skip


class Engine:
    """Constrained recommendation with one model. `model` is in eval mode on the device where it should run.

    mode: where the answer starts (data.renderer.MODES); with `think` a thought is generated first, as `think` says; with `race`
    the answers behind the thoughts and the one without a thought are one list.
    """

    _catalogues: Catalogues | None = None

    def __init__(
        self,
        model: Any,
        renderer: Renderer,
        sids: SidTable,
        settings: DecodeSettings,
        *,
        wording: str = "short",
        mode: str = "direct",
        think: ThinkSettings | None = None,
        signals: Signals | None = None,
        category: str = "items",
    ) -> None:
        if mode not in (*MODES, RACE):
            raise InputError(f"unknown mode {mode!r} -> one of {', '.join((*MODES, RACE))}")
        self.model, self.renderer = model, renderer
        self.sids, self.settings, self.wording = sids, settings, wording
        self.races = mode == RACE
        self.mode, self.think = "think" if self.races else mode, think or ThinkSettings()
        words = named_wording(wording)
        self.histories = HistoryRenderer(
            renderer, sids, words, mode=self.mode, signals=signals, category=category
        )

    def over(self, vocab: SidVocab, sids: SidTable, settings: DecodeSettings) -> Engine:
        """The same model over semantic IDs of fewer levels, or over fewer of them; prompts are never cut."""
        renderer = Renderer(self.renderer.tokenizer, vocab)
        return Engine(self.model, renderer, sids, settings, wording=self.wording, mode=self.mode)

    def told(self, ids: Sequence[int]) -> str:
        """Tokens of a prompt or an answer as a person reads them."""
        return self.renderer.tokenizer.decode(ids)

    @property
    def catalogues(self) -> Catalogues:
        """On the device where the model is now: built again where a trainer has moved it."""
        device, made = next(self.model.parameters()).device, self._catalogues
        if made is None or made.device != device:
            made = self._catalogues = Catalogues(self.sids, self.renderer.answer_vocab, device=device)
        return made

    @property
    def trie(self) -> Trie:
        """The trie of all items."""
        return self.catalogues.whole

    @cached_property
    def writer(self) -> TransformersWriter:
        """What generates thoughts with the engine's own model."""
        return TransformersWriter(self.model, self.renderer, self.think)

    def batches(self, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Row numbers of each batch: similar lengths together, within `batch_size` rows and `batch_tokens` tokens.

        The longest of `prompts` come first, so that a batch that does not fit fails before the others are decoded. InputError for a prompt that the model's
        positions do not cover.
        """
        lengths = np.array([len(prompt) for prompt in prompts])
        self.check_context(int(lengths.max(initial=0)))
        order, result, start = np.argsort(-lengths, kind="stable"), [], 0
        while start < len(order):
            fitting = max(1, self.settings.batch_tokens // max(int(lengths[order[start]]), 1))
            stop = start + min(fitting, self.settings.batch_size)
            result.append(order[start:stop])
            start = stop
        return result

    @property
    def answer_tokens(self) -> int:
        """Tokens of an answer that are scored."""
        end = len(self.renderer.answer_vocab.suffix_ids) + 1 if self.settings.terminator else 0
        return self.sids.num_levels + end

    def prompt_room(self) -> int | None:
        """The longest prompt that leaves room for thought and answer; None where positions have no end, or leave no room.

        The tokens that end an answer count whether they are scored or not: training computes them, and its prompts are these.
        """
        context = context_length(self.model.config)
        if context is None:
            return None
        thought = self.thought_room if self.mode == "think" else 0
        room = context - thought - self.sids.num_levels - len(self.renderer.answer_vocab.suffix_ids)
        return room if room >= 1 else None

    def check_context(self, longest: int, *, before_answer: int = 0) -> None:
        """InputError where a prompt of `longest` tokens, `before_answer` more and the answer exceed the model's context."""
        answer = self.answer_tokens
        context = context_length(self.model.config)
        if context is not None and longest + before_answer + answer - 1 > context:
            room = context - before_answer - answer + 1
            if room < 1:
                raise InputError(
                    f"the model reads {context} tokens, and a thought with its answer takes up to {before_answer + answer} "
                    "-> a smaller think.max_tokens, so that the history has room before it"
                )
            raise InputError(
                f"a prompt has {longest} tokens, but the model reads {context} and the answer needs "
                f"{before_answer + answer} -> set decode.max_prompt to at most {room}, so that long histories lose their "
                "oldest items"
            )

    def search_batches(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        trie: Trie | None = None,
        roots_B: np.ndarray | None = None,
        exclude: np.ndarray | None = None,
        keys: Sequence[int] | None = None,
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield (row numbers int64 [B], Beams) over all prompts, batch by batch.

        trie and roots_B: restricted catalogues; exclude: SID rows [N, H], -1 = none; keys: one integer per prompt, which
        with the seed decides what strategy sample draws for it (default: its number). Exclusions take effect at the last
        level, so a row with h of them is searched with h more beams, whatever the rows beside it exclude; the rows of
        Beams are as wide as the widest.
        """
        from infer.search.sampling import StochasticBeam
        from infer.search.tree import search

        settings = self.settings
        wider = 0 if exclude is None else exclude.shape[1]
        own = None if exclude is None else settings.beams + (exclude >= 0).sum(1)
        for rows in self.batches(prompts):
            sampler = None
            if settings.strategy == "sample":
                sampler = StochasticBeam(
                    settings.seed, [int(row) if keys is None else keys[row] for row in rows]
                )
            beams = search(
                self.model,
                [prompts[row] for row in rows],
                self.trie if trie is None else trie,
                settings.beams + wider,
                settings.score_space,
                parity=settings.parity,
                roots_B=None if roots_B is None else roots_B[rows],
                exclude=None if exclude is None else exclude[rows],
                sampler=sampler,
                own_beams=None if own is None else own[rows],
                terminator_ids=self.renderer.terminator_ids(self.mode),
            )
            yield rows, beams

    def rank(
        self, prompts: Sequence[Sequence[int]], *, keys: Sequence[int] | None = None, **restricted: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """(nodes int64 [N, K] = rows of sids_SL, -1 where there are fewer; scores float32 [N, K]) behind prompts.

        `restricted`: trie, roots_B and exclude of `search_batches`. K = beams, or the whole catalogue where it is smaller.
        """
        beams = min(self.settings.beams, len(self.sids.sids_SL))
        nodes_NK = np.full((len(prompts), beams), -1, np.int64)
        scores_NK = np.full((len(prompts), beams), -np.inf, np.float32)
        for rows, found in self.search_batches(prompts, keys=keys, **restricted):
            scores_BK = found.scores_BK[:, :beams].float().cpu().numpy()
            width, nodes_BK = scores_BK.shape[1], found.nodes_BK[:, :beams].cpu().numpy()
            nodes_NK[rows, :width] = np.where(np.isfinite(scores_BK), nodes_BK, -1)
            scores_NK[rows, :width] = scores_BK
        return nodes_NK, scores_NK

    def rank_thoughts(
        self, prompts: Sequence[Sequence[int]], thoughts: Sequence[Sequence[Any]], *, keys: Sequence[int],
        without: Sequence[Sequence[int]] | None = None, **restricted: Any
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """As `rank`, behind prompt + thought; several thoughts of a row become one list as `think.aggregate` says.

        without: in mode race, the prompts without a thought (`plain_prompts`), whose lists are merged with the others.
        """
        extended, row_E = answer_prompts(
            prompts, thoughts, self.renderer, task="history_to_sid", without=without
        )
        spread = {
            name: None if value is None else value[row_E] if name in ("roots_B", "exclude") else value
            for name, value in restricted.items()
        }
        place_E = np.arange(len(row_E)) - np.searchsorted(row_E, row_E)
        seeds = [seed_of(keys[row], thought) for row, thought in zip(row_E, place_E.tolist(), strict=True)]
        nodes, scores = self.rank(extended, keys=seeds, **spread)
        return aggregate(nodes, scores, row_E, how=self.think.aggregate, beams=nodes.shape[1])

    def plain_prompts(self, examples: Sequence[Example]) -> list[list[int]] | None:
        """The prompts without a thought, in mode race."""
        return self.renderer.prompts(examples, self.think.without) if self.races else None

    def recommend(
        self,
        histories: Sequence[Sequence[int]],
        k: int,
        *,
        allowed_items: Any = None,
        exclude_history: bool = False,
        keys: Sequence[int] | None = None,
    ) -> list[list[Recommendation]]:
        """The k best semantic IDs for each history of item ids (oldest first); fewer where fewer are legal.

        allowed_items: item ids or a mask bool [items] for all requests, or a list with one of these (or None = every
        item) per request. exclude_history leaves out what was chosen before: items of the history, and semantic IDs of
        which no other allowed item remains. keys: an integer per request, which with the seed decides what is drawn for it
        (strategy sample, sampled thoughts); default: one made of its prompt. The list of a request does not depend on the
        others. Raises InputError for an empty history, unknown items, an empty allowed set,
        more than `beams`, or a prompt beyond the model's context; NumericError for scores that are not finite.
        """
        if not 1 <= k <= self.settings.beams:
            raise InputError(f"k {k} must lie in 1..beams ({self.settings.beams})")
        for request, history in enumerate(histories):
            if isinstance(history, int | np.integer) or not len(history):
                raise InputError(
                    f"history of request {request} is {history!r} -> a list of at least one item id per request"
                )
            item_ids(history, self.sids.num_items, f"history of request {request}")
        examples = [self.histories.example(history) for history in histories]
        prompts, plain = self.renderer.prompts(examples, self.mode), self.plain_prompts(examples)
        keys = [seed_of(0, tuple(prompt)) for prompt in prompts] if keys is None else keys
        masks, set_B = read_allowed(allowed_items, requests=len(prompts), num_items=self.sids.num_items)
        results: list[list[Recommendation]] = [[] for _ in histories]
        for group in self.catalogues.groups(masks, set_B):
            chosen = [histories[row] for row in group.rows]
            gone = exhausted(self.sids, chosen, masks, set_B[group.rows]) if exclude_history else None
            restricted = {"trie": group.trie, "roots_B": group.roots, "exclude": gone}
            rows = group.rows.tolist()
            group_prompts, group_keys = [prompts[row] for row in rows], [keys[row] for row in rows]
            if self.mode == "think":
                longest = max(map(len, group_prompts), default=0)
                self.check_context(longest, before_answer=self.thought_room)
                thoughts = self.writer.write(group_prompts, group_keys)
                without = None if plain is None else [plain[row] for row in rows]
                nodes_NK, scores_NK = self.rank_thoughts(
                    group_prompts, thoughts, keys=group_keys, without=without, **restricted
                )
            else:
                nodes_NK, scores_NK = self.rank(group_prompts, keys=group_keys, **restricted)
            for row, nodes, scores in zip(rows, nodes_NK[:, :k], scores_NK[:, :k], strict=True):
                without = histories[row] if exclude_history else ()
                for sid, score in zip(nodes[nodes >= 0].tolist(), scores.tolist(), strict=False):
                    items = members(self.sids, sid, masks[set_B[row]], without).tolist()
                    codes = self.sids.sids_SL[sid].tolist()
                    results[row].append(Recommendation(tuple(items), tuple(codes), score))
        return results

    @property
    def thought_room(self) -> int:
        """Tokens between a prompt and its answer in mode think, at most."""
        return self.think.max_tokens + len(self.renderer.close_thought("history_to_sid", finished=False))


def load_engine(
    model_dir: str | Path, sids_dir: str | Path, examples_dir: str | Path, settings: DecodeSettings, *,
    device: str | None = None, trainable: bool = False, loading: LoadSettings = USUAL, mode: str = "direct",
    think: ThinkSettings | None = None,
) -> Engine:  # fmt: skip
    """An Engine from a model, the SIDs it was expanded with and examples of the same SIDs; InputError for a mixture.

    `trainable` loads float32 on the CPU: device and mixed precision are then the trainer's business, `loading` changes it.
    """
    directory = require_model(model_dir, written_by="scripts/08_expand_vocab.sh or sft.sh")
    vocab, sids = read_vocab(directory), read_sids(sids_dir)
    vocab.check(sids, model=directory, sids=sids_dir)
    facts = examples_facts(examples_dir, sids, sids_dir)
    if sid_format(facts["format"]) != vocab.format:
        raise InputError(
            f"examples {examples_dir} write semantic IDs as {facts['format']}, model {directory} as {vocab.format.token} "
            "-> build both with the same --format"
        )
    model, tokenizer = load_model(
        directory, device="cpu" if trainable else device, trainable=trainable, loading=loading
    )
    bound = prompt_bound(directory, settings.max_prompt)
    json_sids = named_wording(facts["wording"]).json_sids
    renderer = Renderer(tokenizer, vocab, max_prompt=bound, json_sids=json_sids)
    signals = read_signals(examples_dir, tokenizer)
    engine = Engine(
        model, renderer, sids, settings, wording=facts["wording"], mode=mode, think=think, signals=signals,
        category=facts.get("category", "items"),  # examples of before it was a fact
    )  # fmt: skip
    if bound is None:
        renderer.max_prompt = engine.prompt_room()
    return engine
