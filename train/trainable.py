"""What of a model trains, chosen after loading and before there is an optimizer; the rest stays bitwise what it was.

| `train_what` | trains |
|---|---|
| all | every parameter |
| lora | low-rank changes of linear layers and, with `lora.new_rows`, the rows of new tokens |
| new_rows | the rows of new tokens, in the input and the output table |
| input_rows_and_head | the rows of new tokens in the input table and the whole output layer, which is untied |
| embeddings | both tables whole |

New tokens are those of sid_vocab.json and new_tokens.json, by token id: some of them may lie on rows that the model had
before. Checkpoints of `lora` and `new_rows` hold what trained (data/store/adapters.py), those of the others whole models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from configs.program import InputError
from data.sid import SidVocab
from data.store.adapters import WEIGHTS, write_base
from data.store.inputs import fingerprint

TrainWhat = Literal["all", "lora", "new_rows", "input_rows_and_head", "embeddings"]
NEW_TOKENS = "new_tokens.json"
PREFIX = "base_model.model."  # of PEFT's names


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank changes of linear layers (train_what lora)."""

    rank: int = 16
    """of each change"""
    alpha: float = 32.0
    """the change counts alpha / rank times"""
    dropout: float = 0.05
    """of a change's input"""
    targets: list[str] = field(default_factory=lambda: ["all"])
    """linear layers by the end of their name, e.g. q_proj or mlp.up_proj; all = every one except the output layer"""
    new_rows: bool = True
    """train the rows of new tokens too: a model that has never seen them cannot learn them through other layers alone"""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"lora.rank {self.rank} must be at least 1")
        if not self.alpha > 0:
            raise InputError(f"lora.alpha {self.alpha} must be positive")
        if not 0 <= self.dropout < 1:
            raise InputError(f"lora.dropout {self.dropout} must lie in [0, 1)")
        if not self.targets:
            raise InputError(
                "lora.targets is empty: nothing would change -> name layers, or train_what new_rows"
            )


def check_choice(what: TrainWhat, lora: LoraSettings, *, quantized: bool = False) -> None:
    """InputError for LoRA options without LoRA, and for quantized weights that are to move."""
    if quantized and what not in ("lora", "new_rows"):
        raise InputError(f"train_what {what} moves weights, and 4-bit weights cannot move -> train_what lora")
    if what != "lora" and lora != LoraSettings():
        raise InputError(
            f"lora options are given, but train_what is {what} -> train_what lora, or remove them"
        )


class Trainable:
    """What trains of `model`, and how it is written and read.

    `adapts`: only a small part trains; then checkpoints are adapters of the model `base`.
    """

    def __init__(
        self, model: Any, what: TrainWhat, *, base: str, rows: Any = None, config: Any = None
    ) -> None:
        self.model, self.what, self.base, self.rows, self.config = model, what, base, rows, config
        self.adapts = config is not None
        self.base_sha256 = ""  # of the base's content, before anything is written

    def tensors(self) -> dict[str, Any]:
        """What trains, by PEFT's names."""
        found = {}
        for name, parameter in self.model.named_parameters():
            if ".lora_" in name:
                found[PREFIX + name.replace(".default", "")] = parameter
        if self.rows is not None:
            adapter = "" if self.what == "new_rows" else "token_adapter."
            for path, rows_RD in zip(
                table_names(self.model), (self.rows.input, self.rows.output), strict=False
            ):
                if rows_RD is not None:
                    found[f"{PREFIX}{path}.{adapter}trainable_tokens_delta"] = rows_RD
        return found

    def write(self, directory: Path) -> None:
        """An adapter directory, without tokenizer and COMPLETE.json."""
        from safetensors.torch import save_file

        directory.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.tensors().items()}
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
        self.config.base_model_name_or_path = self.base
        self.config.save_pretrained(directory)
        write_base(directory, self.base, sha256=self.base_sha256)

    def read(self, directory: Path) -> None:
        """Take what trains from an adapter directory, or, where whole models are written, from the tables just loaded."""
        import torch
        from safetensors.torch import load_file

        if self.adapts:
            found, own = load_file(directory / WEIGHTS), self.tensors()
            if found.keys() != own.keys():
                raise InputError(
                    f"{directory} holds an adapter of other layers -> start again with --overwrite"
                )
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(found[name])
            self.push()
        elif self.rows is not None:
            self.rows.pull(self.model)

    def push(self) -> None:
        """After an optimizer step: the tables hold the rows too."""
        if self.rows is not None:
            self.rows.push(self.model)


def make_trainable(
    model: Any, what: TrainWhat, lora: LoraSettings, *, new_ids: Sequence[int], base: str, seed: int
) -> Trainable:
    """Freeze all of `model` except `what`; call it before hooks of others and before the optimizer.

    InputError where nothing is left to train, a target is no linear layer, or a model's tables are of an unknown kind.
    """
    from train.new_rows import NewRows

    rows = config = None
    if what != "all":
        model.requires_grad_(False)
    if what == "embeddings":
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            table.weight.requires_grad_(True)
    elif what == "input_rows_and_head":
        untie(model)
        model.get_output_embeddings().requires_grad_(True)
        rows = NewRows(model, new_ids, output=False)
    elif what == "new_rows":
        rows = NewRows(model, new_ids)
        config = _rows_config(model, rows)
    elif what == "lora":
        config = _inject(model, lora, seed=seed)
        if lora.new_rows:
            rows = NewRows(model, new_ids)
            config.trainable_token_indices = dict.fromkeys(_leaf_names(model, rows), rows.ids_R.tolist())
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"train_what {what} leaves nothing of this model to train -> another value")
    if getattr(model, "is_quantized", False):
        model._hf_peft_config_loaded = True  # the trainer of transformers asks this of quantized weights
    return Trainable(model, what, base=base, rows=rows, config=config)


def choose(args: Any, engine: Any) -> Trainable:
    """`make_trainable` on the model of an engine, as the arguments of a trainer say (train_what, lora, model, seed)."""
    renderer = engine.renderer
    ids = new_token_ids(renderer.vocab, renderer.tokenizer, new_tokens_of(args.model))
    made = make_trainable(
        engine.model, args.train_what, args.lora, new_ids=ids, base=args.model, seed=args.seed
    )
    if made.adapts:
        made.base_sha256 = fingerprint(args.model)
    return made


def new_tokens_of(directory: str | Path) -> str | None:
    """The text of new_tokens.json, which lists the tokens that stage 08 added; None where a model came without."""
    file = Path(directory, NEW_TOKENS)
    return file.read_text() if file.is_file() else None


def new_token_ids(vocab: SidVocab, tokenizer: Any, listed: str | None) -> list[int]:
    """Ids of all semantic-ID tokens and of the further tokens that stage 08 `listed`."""
    ids = {*vocab.prefix_ids, *vocab.suffix_ids}
    ids |= {token for level in vocab.levels for token in level.token_ids.tolist()}
    known = tokenizer.get_vocab()
    return sorted(ids | {known[token] for token in json.loads(listed or "[]") if token in known})


def table_names(model: Any) -> list[str]:
    """Module names of the input and the output table."""
    wanted = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(module)] for module in wanted]


def linear_names(model: Any) -> list[str]:
    """Names of all linear layers except the output layer."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    kinds = (nn.Linear, Conv1D)
    return [
        name for name, module in model.named_modules() if isinstance(module, kinds) and module is not head
    ]


def untie(model: Any) -> None:
    """Give the output layer a table of its own, with the same numbers."""
    from torch import nn

    head = model.get_output_embeddings()
    if head.weight is not model.get_input_embeddings().weight:
        return
    head.weight = nn.Parameter(head.weight.detach().clone())
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}


def _inject(model: Any, lora: LoraSettings, *, seed: int) -> Any:
    """Put LoRA layers in place of the targets; PEFT's configuration of them."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    names = linear_names(model)
    targets = sorted({name.rsplit(".", 1)[-1] for name in names}) if lora.targets == ["all"] else lora.targets
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
            raise InputError(
                f"lora.targets: this model has no linear layer {target!r} -> all, or some of {known}"
            )
    from transformers.pytorch_utils import Conv1D

    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(targets),
        fan_in_fan_out=transposed, task_type="CAUSAL_LM",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()  # whatever the frozen weights are kept in
    return config


def _rows_config(model: Any, rows: Any) -> Any:
    from peft import TrainableTokensConfig

    names = _leaf_names(model, rows)
    return TrainableTokensConfig(
        target_modules=names, token_indices=rows.ids_R.tolist(), task_type="CAUSAL_LM"
    )


def _leaf_names(model: Any, rows: Any) -> list[str]:
    names = [name.rsplit(".", 1)[-1] for name in table_names(model)]
    return names[:1] if rows.output is None else names
