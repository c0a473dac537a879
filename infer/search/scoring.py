"""Log-probabilities of the candidates of a level, and the switches under which published systems take them.

The output layer is computed on the columns of the level only. The whole-vocabulary normaliser is streamed over blocks of
columns that stay in the processor's cache: no (rows, vocabulary) tensor exists.

Legend: B prompts, K beams, C codes of a level, X candidates of a beam, D hidden size, V vocabulary, S tokens of a context,
R = B * K rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from configs.program import InputError
from infer.search.trie import SCORE_SPACES, without_forbidden

if TYPE_CHECKING:
    from torch import Tensor

    from infer.search.trie import Trie

BLOCK_BYTES = {"cpu": 4 * 2**20, "cuda": 128 * 2**20}  # of one block of logits in the streamed normaliser
PENALISED = ("logprobs", "logits")


@dataclass(frozen=True)
class Parity:
    """How scores are taken; the defaults are the plain log-probability of the semantic ID."""

    temperature: float = 1.0
    """divides the logits before normalisation and masking"""
    terminator: bool = False
    """score the tokens that end an answer too; one more forward per token, and the list is ranked anew"""
    repetition_penalty: float = 1.0
    """scores of tokens of the prompt or the answer so far are multiplied by it where negative, divided where positive"""
    penalise: str = "logprobs"
    """what the penalty changes: logprobs (beam search of transformers) or logits (its greedy search and sampling)"""
    length_penalty: float = 0.0
    """a score is divided by its number of tokens to this power"""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"temperature {self.temperature} must be positive and finite")
        if not 0 < self.repetition_penalty < float("inf"):
            raise InputError(f"repetition_penalty {self.repetition_penalty} must be positive and finite")
        if not abs(self.length_penalty) < float("inf"):
            raise InputError(f"length_penalty {self.length_penalty} must be finite")
        if self.penalise not in PENALISED:
            raise InputError(f"unknown penalise {self.penalise!r} -> one of {', '.join(PENALISED)}")


PLAIN = Parity()


class LevelScorer:
    """Scores of a level's candidates from hidden states of `model`, under a score space and parity switches.

    trie: a Trie or TokenTrie. `context_BS`: the tokens int64 that the repetition penalty counts as seen, -1 = none.
    Raises InputError for an unknown score space or an output layer that is neither linear, scaled nor soft-capped.
    """

    def __init__(
        self,
        model: Any,
        trie: Trie,
        score_space: str = "full",
        parity: Parity = PLAIN,
        context_BS: Any = None,
    ) -> None:
        if score_space not in SCORE_SPACES:
            raise InputError(f"unknown score space {score_space!r} -> one of {', '.join(SCORE_SPACES)}")
        head = model.get_output_embeddings()
        self.weight_VD, self.bias_V = head.weight, getattr(head, "bias", None)
        if (trained := getattr(model, "new_rows", None)) is not None:  # train/new_rows.py: their gradient
            self.weight_VD = trained.in_table(head.weight)
        if getattr(model, "final_logits_bias", None) is not None:  # BART and its kin
            self.bias_V = model.final_logits_bias[0]
        self.transform = logits_transform(model.config, parity.temperature)
        self.trie, self.score_space, self.parity = trie, score_space, parity
        self.context_BS = context_BS if parity.repetition_penalty != 1 else None
        self.rows: dict[int, Tensor] = {}  # of each level, where the caller has read them from the table

    def __call__(
        self,
        hidden_BKD: Tensor,
        level: int,
        nodes_BK: Tensor,
        path_BKl: Tensor | None = None,
        full_BK: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(log-probabilities float32 [B, K, X], -inf where forbidden; codes [B, K, X] or None for all codes in order).

        `path_BKl`: tokens of each beam so far, for the repetition penalty. `full_BK`: the
        `full_normaliser` where the caller has it already.
        """
        codes_BKX, penalty_BKX = self.trie.candidates(level, nodes_BK)
        seen_BKC = self._seen(self.trie.tokens[level], path_BKl)
        logits_BKC = self._penalised(
            self._logits(hidden_BKD, self.trie.columns[level], self.rows.get(level)), seen_BKC, "logits"
        )
        logits_BKX = logits_BKC if codes_BKX is None else logits_BKC.gather(-1, codes_BKX)
        if self.score_space == "full":
            norm_BK = self.full_normaliser(hidden_BKD, path_BKl) if full_BK is None else full_BK
        elif self.score_space == "level":
            norm_BK = logits_BKC.logsumexp(-1)
        else:
            norm_BK = without_forbidden(logits_BKX, penalty_BKX).logsumexp(-1)
        scores_BKX = logits_BKX - norm_BK[..., None]
        if seen_BKC is not None:
            seen_BKX = seen_BKC if codes_BKX is None else seen_BKC.gather(-1, codes_BKX)
            scores_BKX = self._penalised(scores_BKX, seen_BKX, "logprobs")
        return without_forbidden(scores_BKX, penalty_BKX), codes_BKX

    def of_codes(self, hidden_BKD: Tensor, level: int, nodes_BK: Tensor, codes_BK: Tensor) -> Tensor:
        """Log-probability float32 [B, K] of one code per beam, -inf where it is illegal; differentiable."""
        return of_candidates(*self(hidden_BKD, level, nodes_BK), codes_BK)

    def of_token(self, hidden_BKD: Tensor, token: int, path_BKl: Tensor | None, full_BK: Tensor) -> Tensor:
        """Whole-vocabulary log-probability float32 [B, K] of one token id; `full_BK` is the normaliser."""
        seen_BK1 = self._seen(self.trie.tokens[0].new_full((1,), token), path_BKl)
        logits_BK1 = self._logits(hidden_BKD, slice(token, token + 1))
        scores_BK1 = self._penalised(logits_BK1, seen_BK1, "logits") - full_BK[..., None]
        return self._penalised(scores_BK1, seen_BK1, "logprobs").squeeze(-1)

    def _logits(self, hidden: Tensor, columns: slice | Tensor, weight_CD: Tensor | None = None) -> Tensor:
        import torch

        weight_CD = self.weight_VD[columns] if weight_CD is None else weight_CD
        bias = None if self.bias_V is None else self.bias_V[columns]
        return self.transform(torch.nn.functional.linear(hidden, weight_CD, bias).float())

    def _seen(self, tokens_C: Tensor, path_BKl: Tensor | None) -> Tensor | None:
        """Which columns are tokens of the context or of the beam's path, bool [B, K or 1, C]; None without a penalty."""
        if self.context_BS is None:
            return None
        seen_BKC = (self.context_BS[..., None] == tokens_C).any(1)[:, None]
        if path_BKl is not None and path_BKl.shape[2]:
            seen_BKC = seen_BKC | (path_BKl[..., None] == tokens_C).any(2)
        return seen_BKC

    def _penalised(self, scores: Tensor, seen: Tensor | None, what: str) -> Tensor:
        if seen is None or self.parity.penalise != what:
            return scores
        penalty = self.parity.repetition_penalty
        return scores.where(~seen, (scores * penalty).where(scores < 0, scores / penalty))

    def full_normaliser(self, hidden_BKD: Tensor, path_BKl: Tensor | None = None) -> Tensor:
        """log sum exp of the logits over the whole vocabulary, float32 [B, K]."""
        import torch

        hidden_RD = hidden_BKD.flatten(0, 1)
        seen_RS = None
        if self.context_BS is not None and self.parity.penalise == "logits":
            beams = hidden_BKD.shape[1]
            seen_BKS = self.context_BS[:, None].expand(-1, beams, -1)
            seen_BKS = seen_BKS if path_BKl is None else torch.cat([seen_BKS, path_BKl], 2)
            seen_RS = seen_BKS.flatten(0, 1)
        recorded = torch.is_grad_enabled() or torch.is_autocast_enabled(hidden_RD.device.type)
        blocks = self._blocks if recorded or self.bias_V is not None else self._blocks_in_place
        top_R1 = torch.full_like(hidden_RD[:, :1], float("-inf"), dtype=torch.float32)
        sum_R1 = torch.zeros_like(top_R1)
        for start, block_RW in blocks(hidden_RD):
            block_RW = block_RW if seen_RS is None else self._penalised_block(block_RW, start, seen_RS)
            new_R1 = torch.maximum(top_R1, block_RW.detach().amax(1, keepdim=True))
            sums_R1 = (block_RW - new_R1).exp() if recorded else block_RW.sub_(new_R1).exp_()
            sum_R1 = sum_R1 * (top_R1 - new_R1).exp() + sums_R1.sum(1, keepdim=True)
            top_R1 = new_R1
        return (top_R1 + sum_R1.log()).view(hidden_BKD.shape[:-1])

    def _width(self, rows: int, device: Any) -> int:
        budget = BLOCK_BYTES.get(device.type, BLOCK_BYTES["cuda"])
        return max(512, min(len(self.weight_VD), budget // (4 * rows) // 256 * 256))

    def _blocks(self, hidden_RD: Tensor) -> Any:
        """(first column, logits float32 [R, W]) of every block of columns; differentiable."""
        width = max(self._width(len(hidden_RD), hidden_RD.device), 16384)
        for start in range(0, len(self.weight_VD), width):
            yield start, self._logits(hidden_RD, slice(start, start + width))

    def _blocks_in_place(self, hidden_RD: Tensor) -> Any:
        """The same without a gradient: every block lies in one buffer, which the caller may overwrite."""
        import torch

        rows, width = len(hidden_RD), self._width(len(hidden_RD), hidden_RD.device)
        buffer = torch.empty(rows * width, dtype=self.weight_VD.dtype, device=hidden_RD.device)
        for start in range(0, len(self.weight_VD), width):
            weight_WD = self.weight_VD[start : start + width]
            block_RW = buffer[: rows * len(weight_WD)].view(rows, -1)
            torch.mm(hidden_RD, weight_WD.t(), out=block_RW)
            yield start, self.transform(block_RW.float())

    def _penalised_block(self, block_RW: Tensor, start: int, seen_RS: Tensor) -> Tensor:
        """Logits of columns start, start + 1, ... with the penalty on the row's seen tokens (repeats count once)."""
        import torch

        width, penalty = block_RW.shape[1], self.parity.repetition_penalty
        at_RS = seen_RS - start
        at_RS = at_RS.where(
            (at_RS >= 0) & (at_RS < width), width
        )  # the last column takes what lies elsewhere
        block = torch.nn.functional.pad(block_RW, (0, 1))
        values_RS = block.gather(1, at_RS)
        values_RS = (values_RS * penalty).where(values_RS < 0, values_RS / penalty)
        return block.scatter(1, at_RS, values_RS)[:, :width]


def of_candidates(scores_BKX: Tensor, at_BKX: Tensor | None, codes_BK: Tensor) -> Tensor:
    """Of what `LevelScorer` returns, the score [B, K] of one code per beam, -inf where it is illegal."""
    if at_BKX is None:
        return scores_BKX.gather(-1, codes_BK[..., None]).squeeze(-1)
    here_BKX = (at_BKX == codes_BK[..., None]) & scores_BKX.isfinite()
    return scores_BKX.masked_fill(~here_BKX, float("-inf")).amax(-1)


def elementwise_slope(transform: Callable[[Tensor], Tensor], raw: Tensor) -> Tensor:
    """The slope of an elementwise function at each value, of the same shape."""
    import torch

    with torch.enable_grad():
        leaf = raw.detach().requires_grad_()
        return torch.autograd.grad(transform(leaf).sum(), leaf)[0]


def logits_transform(config: Any, temperature: float = 1.0) -> Callable[[Tensor], Tensor]:
    """What happens to logits after the output layer, elementwise: the model's scale and soft cap, then the temperature.

    InputError for scalings whose meaning is not known here: scores would come out wrong without a word.
    """
    text = config.get_text_config(decoder=True)
    kind, scale = text.model_type, 1.0
    if getattr(text, "scale_decoder_outputs", False):  # T5 with tied embeddings
        scale = text.d_model**-0.5
    for name in SCALES:
        value = getattr(text, name, None)
        if value in (None, 1, 1.0):
            continue
        if kind.startswith("granite") and name == "logits_scaling":
            scale = 1 / value
        elif kind in ("cohere", "cohere2") and name == "logit_scale":
            scale = value
        else:
            raise InputError(
                f"a {kind} model rescales its logits ({name} = {value}) in a way the decoder does not know "
                "-> choose another model (Qwen, Llama, Gemma, GPT-2, T5, ...)"
            )
    cap = getattr(text, "final_logit_softcapping", None)

    def transform(logits: Tensor) -> Tensor:
        logits = logits if scale == 1 else logits * scale
        logits = logits if cap is None else cap * (logits / cap).tanh()
        return logits if temperature == 1 else logits / temperature

    return transform


# Options that scale logits in one family or another.
SCALES = ("logits_scaling", "logit_scale", "output_multiplier", "lm_head_multiplier")
