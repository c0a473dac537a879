"""Settings of policy optimisation, checked at construction and free of heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from configs.needs import Need, require_needs
from configs.program import InputError
from data.store.configuration import added
from infer.search.trie import SCORE_SPACES
from infer.text.generate import TextSettings

TAILS = ("greedy", "sample", "beams")
LEARNS = ("thought", "all", "list")
CREDITS = ("shared", "own")
DRAWN = ("stochastic_beam", "sample", "dynamic_sampling")


@dataclass(frozen=True)
class GrpoSettings:
    """How rollouts are drawn and scored, and what is optimised."""

    num_generations: int = 16
    """rollouts per prompt: the beam width of the constrained search"""
    rollouts: Literal["beam", "stochastic_beam", "sample", "dynamic_sampling"] = "beam"
    """beam: the best, best first; stochastic_beam: distinct items drawn without replacement, weighted by their inclusion
    probability; sample: independent draws; dynamic_sampling: of 1.5 times as many draws all hits, then one of each item"""
    add_ground_truth: bool = False
    """a group without the target gets it in its last place; it counts as drawn by the policy, which it was not (logged)"""
    hint: bool = False
    """give the first codes of the target, as few as a search needs to find it (train/policy/hints.py); no loss on them"""
    hint_loss: float = 0.0
    """weight of a cross-entropy on the given codes"""
    target_loss: float = 0.0
    """weight of a cross-entropy on the target of every prompt: policy gradients cannot teach what no beam contains"""
    temperature: float = 1.0
    """divides the logits in rollouts and loss"""
    rollout_space: str = "full"
    """score space of the search: full, level or trie; draws need trie"""
    logprob_space: str = "full"
    """score space of the policy in the loss: full, level or trie"""
    forced_tokens: bool = added(False, before=True)
    """count codes that the trie forces (no other may follow) in the loss, as published trainers do"""
    loss: Literal["grpo", "dapo", "gspo", "dr_grpo", "rloo", "expected", "sdpo"] = "grpo"
    """the loss, by name (train/policy/losses.py); expected: the exact expected reward over all legal items behind the beams'
    last prefixes, the whole catalogue where num_generations is as large; sdpo: rollouts above the mean reward of their group are
    preferred to those below it (S-DPO), beta being the strength of the reference"""
    baseline: Literal["group", "leave_one_out", "siblings"] | None = None
    """what a reward is compared with (train/policy/advantages.py); null = as the loss has it"""
    scale_rewards: Literal["group", "batch", "none"] | None = None
    """whose standard deviation divides the advantages; null = as the loss has it"""
    sigma_floor: float = 0.0
    """least standard deviation that divides: keeps groups that differ little from pushing with full strength"""
    epsilon: float = 0.2
    """ratios below 1 - epsilon are clipped; matters where updates is above 1"""
    epsilon_high: float | None = None
    """ratios above 1 + epsilon_high are clipped; null = epsilon"""
    delta: float | None = None
    """bound of the ratio for negative advantages (two-sided or dual clip); null = none"""
    updates: int = 1
    """optimizer steps on the same rollouts (num_iterations in TRL)"""
    beta: float = 1e-3
    """weight of the KL penalty; 0 needs no reference model"""
    kl: Literal["k1", "k3"] = "k3"
    """estimate of the KL divergence"""
    use_bias_correction_kl: bool = added(True, before=False)
    """multiply it by the ratio: the gradient is then that of the reverse KL divergence; trainers before TRL 1.16 do not"""
    sync_reference: int | None = None
    """steps after which the reference moves towards the policy; null = it stays"""
    sync_mixup: float = 0.6
    """the share of the policy in the reference that it then becomes"""
    drop_zero_variance: bool = False
    """leave groups whose rewards are all equal out of the loss"""
    replay: float = 0.0
    """largest share of a batch whose groups without signal make room for prompts that had signal before, rolled out anew"""
    tokens_per_forward: int = 32768
    """most tokens of a forward, padding included: longer batches are split, which changes the memory and nothing else"""
    dropout: bool = False
    """keep the dropout of the model's own configuration in the loss; rollouts never have it"""

    def __post_init__(self) -> None:
        if self.num_generations < 2:
            raise InputError(f"num_generations {self.num_generations}: a group needs at least 2 rollouts")
        if self.beta < 0 or self.temperature <= 0:
            raise InputError(
                f"beta {self.beta} must not be negative and temperature {self.temperature} must be positive"
            )
        for name, space in (("rollout_space", self.rollout_space), ("logprob_space", self.logprob_space)):
            if space not in SCORE_SPACES:
                raise InputError(f"{name} {space!r} -> one of {', '.join(SCORE_SPACES)}")
        self._check_ranges()
        self._check_rollouts()
        self._check_loss()
        require_needs(self, "rollout.")

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        sampled = self.loss not in ("expected", "sdpo")
        return [
            Need(("use_bias_correction_kl", "kl"), self.beta > 0, "beta above 0"),
            Need(
                ("use_bias_correction_kl", "kl", "epsilon", "epsilon_high", "delta"),
                sampled,
                "a loss of drawn rollouts",
            ),
            Need(("sync_reference",), self.beta > 0, "beta above 0"),
            Need(("sync_mixup",), self.sync_reference is not None, "sync_reference"),
            Need(("hint_loss",), self.hint, "hint true"),
        ]

    def _check_ranges(self) -> None:
        for name in ("hint_loss", "target_loss", "sigma_floor"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} {getattr(self, name)} must not be negative")
        if not 0 < self.epsilon < 1 or (self.epsilon_high is not None and not self.epsilon_high > 0):
            raise InputError(
                f"epsilon {self.epsilon} must lie in (0, 1), epsilon_high {self.epsilon_high} above 0"
            )
        if self.delta is not None and self.delta <= 1 + (self.epsilon_high or self.epsilon):
            raise InputError(f"delta {self.delta} must lie above 1 + epsilon_high")
        if self.updates < 1 or self.tokens_per_forward < 1:
            raise InputError(
                f"updates {self.updates} and tokens_per_forward {self.tokens_per_forward} must be at least 1"
            )
        if not 0 <= self.replay < 1 or not 0 < self.sync_mixup <= 1:
            raise InputError(
                f"replay {self.replay} must lie in [0, 1), sync_mixup {self.sync_mixup} in (0, 1]"
            )
        if self.sync_reference is not None and self.sync_reference < 1:
            raise InputError(f"sync_reference {self.sync_reference} must be at least 1")
        if self.sync_reference is not None and self.sync_reference % self.updates:
            raise InputError(
                f"sync_reference {self.sync_reference} is no multiple of updates {self.updates}: the reference moves between "
                "rollouts -> a multiple"
            )

    def _check_rollouts(self) -> None:
        if self.rollouts in DRAWN and self.rollout_space != "trie":
            raise InputError(
                f"rollouts {self.rollouts} draws legal items, which rollout_space {self.rollout_space} does not sum to one "
                "over -> rollout_space trie"
            )
        if self.rollouts == "stochastic_beam" and (self.logprob_space != "trie" or self.add_ground_truth):
            raise InputError(
                "rollouts stochastic_beam weighs items by the probability with which they were drawn -> logprob_space trie, "
                "without add_ground_truth"
            )

    def _check_loss(self) -> None:
        given = [name for name in ("baseline", "scale_rewards") if getattr(self, name) is not None]
        if self.loss == "expected":
            given += [name for name in ("hint", "add_ground_truth", "sigma_floor") if getattr(self, name)]
            given += ["updates"] if self.updates > 1 else []
            given += ["rollouts"] if self.rollouts != "beam" else []
            if given or self.logprob_space != "trie":
                raise InputError(
                    f"loss expected is exact over the legal items -> logprob_space trie, without {', '.join(given) or 'others'}"
                )
        if self.loss == "sdpo" and (
            given or self.updates > 1 or not self.beta > 0 or self.rollouts == "stochastic_beam"
        ):
            raise InputError(
                "loss sdpo compares the rollouts of a group under a reference -> beta above 0, one update, other rollouts than "
                "stochastic_beam, without baseline and scale_rewards"
            )
        if self.baseline == "siblings" and self.rollouts == "stochastic_beam":
            raise InputError("baseline siblings knows no inclusion weights -> rollouts beam or sample")


@dataclass(frozen=True)
class ThoughtSettings:
    """Thoughts before the answers of rollouts. None, unless `max_tokens` is above 0."""

    max_tokens: int = 0
    """longest thought in tokens; 0 = no thoughts: rollouts are semantic IDs alone"""
    temperature: float = 1.0
    """of the thoughts; a group of equal thoughts says nothing, so it must be above 0"""
    top_p: float = 1.0
    """sample from the smallest set of tokens with this probability mass"""
    tail: str = "greedy"
    """the semantic ID behind a thought: greedy (code by code), sample (drawn, legal ones only) or beams (the best by search: rewards
    see `beams` of them as one group, and the thought gets the largest reward among them)"""
    beams: int = 10
    """tail beams: how many behind each thought"""
    hindsight: bool = False
    """tail beams with learns all: the codes that are learned are the target's wherever a beam holds it, else the best beam's"""
    score_target: bool = False
    """tail beams: the target is scored too, wherever it stands; for reward rank_margin"""
    learns: str = "thought"
    """which tokens carry the loss: thought (with its end marker), all that the model chose, codes included, or list (tail beams): all, and
    the completion holds every beam, best first, a line each: thought and list are learned as one text"""
    credit: str = "shared"
    """tail beams, codes learned: shared = codes have the advantage of their thought; own = a semantic ID that of its own reward, beside
    all those of its prompt"""
    drop_unfinished: bool = False
    """leave rollouts whose thought was cut off out of their group"""
    batch_size: int = 16
    """prompts per call of generate"""

    def __post_init__(self) -> None:
        if self.max_tokens < 0 or self.batch_size < 1:
            raise InputError(
                f"thought.max_tokens {self.max_tokens} must not be negative, batch_size {self.batch_size} at least 1"
            )
        require_needs(self, "thought.")
        if self.max_tokens and not self.temperature > 0:
            raise InputError(
                f"thought.temperature {self.temperature}: greedy thoughts of a group are all the same -> above 0"
            )
        if not 0 < self.top_p <= 1 or self.beams < 2:
            raise InputError(
                f"thought.top_p {self.top_p} must lie in (0, 1], beams {self.beams} be at least 2"
            )
        for name, known in (("tail", TAILS), ("learns", LEARNS), ("credit", CREDITS)):
            if (value := getattr(self, name)) not in known:
                raise InputError(f"unknown thought.{name} {value!r} -> one of {', '.join(known)}")
        if self.learns == "list" and self.tail != "beams":
            raise InputError(
                f"thought.learns list is a list of beams, tail {self.tail} has none -> tail beams"
            )

    def needs(self) -> list[Need]:
        """All but the length need one."""
        others = tuple(one.name for one in fields(self) if one.name != "max_tokens")
        searched = self.tail == "beams"
        return [
            Need(others, self.max_tokens > 0, "thought.max_tokens above 0"),
            Need(("beams", "score_target"), searched, "tail beams"),
            Need(("hindsight",), searched and self.learns == "all", "tail beams and learns all"),
            Need(("credit",), searched and self.learns != "thought", "tail beams and learns all or list"),
        ]


@dataclass(frozen=True)
class InstructionSettings:
    """Terms and instruction behind a thought, for prompts of history_to_instruction."""

    terms: Literal["sample", "greedy"] = "sample"
    """the terms: drawn from the model's own distribution over those of the catalogue, or its best ones"""
    max_tokens: int = 64
    """longest instruction in tokens; a longer one is closed by force and counted"""
    temperature: float = 1.0
    """of the instruction; 0 = greedy"""
    top_p: float = 1.0
    """sample from the smallest set of tokens with this probability mass"""

    def __post_init__(self) -> None:
        self.text(1)

    def text(self, batch_size: int, seed: int = 0) -> TextSettings:
        """The same for infer.text.generate."""
        return TextSettings(
            max_new_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, batch_size=batch_size, seed=seed
        )  # fmt: skip


@dataclass(frozen=True)
class VllmSettings:
    """vLLM in place of the trainer's own model for the thoughts of rollouts, by TRL's own client; its weights are renewed at every
    step. Not run here: it needs GPUs."""

    mode: Literal["none", "server", "colocate"] = "none"
    """server: `vllm serve` on GPUs of its own; colocate: in the trainer's processes; none: thoughts by the trainer's model"""
    base_url: str = "http://127.0.0.1:8000"
    """server: where it is"""
    timeout: float = 240.0
    """server: seconds to wait until it is there"""
    group_port: int = 51216
    """server: port over which weights go"""
    gpu_memory: float = 0.3
    """colocate: share of each GPU's memory"""
    tensor_parallel: int = 1
    """colocate: GPUs that share one copy of the weights"""

    def __post_init__(self) -> None:
        if not 0 < self.gpu_memory <= 1 or self.tensor_parallel < 1 or not self.timeout > 0:
            raise InputError(
                f"vllm.gpu_memory {self.gpu_memory} must lie in (0, 1], tensor_parallel {self.tensor_parallel} be at least 1, "
                f"timeout {self.timeout} above 0"
            )
        require_needs(self, "vllm.")

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        return [
            Need(("base_url", "timeout", "group_port"), self.mode == "server", "vllm.mode server"),
            Need(("gpu_memory", "tensor_parallel"), self.mode == "colocate", "vllm.mode colocate"),
        ]
