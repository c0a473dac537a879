"""Model directories in memory: the one place where transformers loads anything.

Local files only, safetensors only, and no code of a checkpoint unless the user asked for it by flag. A model is complete
or refused: transformers itself fills a missing tensor with random numbers and goes on. Of an adapter, the base with the
adapter merged into it is loaded.
"""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from configs.program import InputError, quiet, raise_environment_fault
from data.store.adapters import WEIGHTS, is_adapter
from data.store.checkpoints import require_sound
from data.store.inputs import base_of


def load_config(directory: str | Path, *, remote_code: bool = False) -> Any:
    """The AutoConfig of a local directory; InputError when it has none that can be read."""
    from transformers import AutoConfig

    if is_adapter(directory):
        return load_config(base_of(directory), remote_code=remote_code)
    return _load(AutoConfig, directory, remote_code=remote_code)


def load_tokenizer(directory: str | Path, *, remote_code: bool = False, **options: Any) -> Any:
    """The tokenizer of a local directory; InputError when it has none that can be read."""
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, directory, remote_code=remote_code, **options)


def load_processor(kind: Any, directory: str | Path) -> Any:
    """The image processor of class `kind` in a local directory."""
    return kind.from_pretrained(directory, local_files_only=True)


def load_weights(
    kind: Any,
    directory: str | Path,
    *,
    dtype: Any,
    remote_code: bool = False,
    partial: bool = False,
    options: dict[str, Any] | None = None,
) -> Any:
    """The model of class `kind` in a local directory, with exactly the tensors of its safetensors files.

    InputError naming the first tensor that is missing, left over or of another shape, and for files that are not those
    that COMPLETE.json beside them lists. `partial` is for encoders that are taken out of a larger model: what they have no
    use for may be left over, and a pooling head, which is not read, may be missing. `options`: further ones of transformers. A model
    that caps its attention logits (Gemma 2) is read with attention eager, as the library's default leaves the cap out.
    """
    import torch

    require_sound(Path(directory))
    quiet_transformers()
    if is_adapter(directory):
        exact = dtype if dtype == "auto" else "float32"  # rounded once, after the merge, like a model on disk
        base = base_of(directory)
        base = load_weights(
            kind, base, dtype=exact, remote_code=remote_code, partial=partial, options=options
        )
        merged = merge_adapter(base, directory)
        merged.name_or_path = str(directory)
        if dtype == "auto":
            return merged
        return merged.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    attention = (options or {}).get("attn_implementation")
    options = (options or {}) | {
        "dtype": dtype,
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    model, info = _load(kind, directory, remote_code=remote_code, **options)
    missing = sorted(name for name in info["missing_keys"] if not (partial and "pooler" in name))
    unexpected = [] if partial else sorted(info["unexpected_keys"])
    mismatched = sorted(str(entry[0]) for entry in info["mismatched_keys"])
    for what, names in (
        ("lacks", missing),
        ("does not know", unexpected),
        ("has another shape of", mismatched),
    ):
        if names:
            more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
            raise InputError(
                f"model {directory} {what} {names[0]}{more} -> its weights do not belong to its config.json; copy it again"
            )
    keep_cap(model, attention, where=directory)
    return model


def keep_cap(model: Any, attention: str | None, *, where: str | Path) -> None:
    """Attention eager for a model that caps its attention logits; InputError where another one was asked for."""
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is None:
        return
    if attention not in (None, "eager"):
        raise InputError(
            f"{where} caps its attention logits, which attention {attention} leaves out -> eager, or null"
        )
    model.set_attn_implementation("eager")


def untrained(directory: str | Path, *, dtype: Any = None) -> Any:
    """A causal LM of the architecture in a local directory, its weights drawn as its class does (by torch's seed).

    dtype None is what the config names. InputError for a model of another kind.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(directory)
    try:
        return AutoModelForCausalLM.from_config(config, dtype=dtype or config.dtype or torch.float32)
    except ValueError as error:
        text = " ".join(str(error).split())[:100]
        raise InputError(f"{directory} is no causal LM ({text}) -> another model") from None


def merge_adapter(model: Any, directory: str | Path) -> Any:
    """`model`, a base model in memory, with the adapter's change added to its weights (in float32, then in its own dtype)."""
    from peft import PeftModel

    if not Path(directory, WEIGHTS).is_file():
        raise InputError(
            f"adapter {directory} has no {WEIGHTS} -> save it as safetensors; pickles are not read"
        )
    dtype = model.dtype
    try:
        with warnings.catch_warnings():  # of tied tables, which share the rows that it sets in one of them
            warnings.simplefilter("ignore")
            whole = PeftModel.from_pretrained(model.float(), str(directory), local_files_only=True)
            merged = whole.merge_and_unload()
    except Exception as error:  # as in `_load`
        raise_environment_fault(error, where=f"while merging {directory}")
        text = " ".join(str(error).split())[:200]
        raise InputError(f"adapter {directory} cannot be merged: {text} -> is it of this model?") from error
    merged._hf_peft_config_loaded = False  # it is a whole model again, and is saved as one
    return merged.to(dtype)


def load_with_unsloth(directory: str | Path, *, dtype: Any, quantize: bool) -> Any:
    """The causal LM of a local directory as Unsloth loads it: its kernels, all parameters or a quantized base. Not run."""
    import unsloth

    require_sound(Path(directory))
    model, _ = _load(
        unsloth.FastLanguageModel,
        str(directory),
        remote_code=False,
        dtype=dtype,
        load_in_4bit=quantize,
        full_finetuning=not quantize,
    )
    return model


def load_gguf(file: Path) -> tuple[Any, Any]:
    """(bfloat16 causal LM, tokenizer) of a GGUF file, with whatever error transformers has for one it cannot read."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    return AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.bfloat16, **where), tokenizer


def write_model(out: Any, model: Any, tokenizer: Any) -> None:
    """Write model (None: none) and tokenizer into an `Output`, each file whole or not at all."""
    quiet_transformers()
    temporary = out.path / ".model.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if model is not None:
        model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    for file in sorted(temporary.iterdir()):
        with out.replacing(file.name) as target:
            os.replace(file, target)
    temporary.rmdir()


def quiet_transformers() -> None:
    """Switch off the bars of loading and saving where bars only fill a log."""
    from transformers.utils import logging

    if quiet():
        logging.disable_progress_bar()


def _load(kind: Any, directory: str | Path, *, remote_code: bool, **options: Any) -> Any:
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of several lines; what it says is an error of ours
    try:
        return kind.from_pretrained(
            directory, local_files_only=True, trust_remote_code=remote_code, **options
        )
    # Files of others: tokenizers raises plain Exceptions, configurations errors of their own.
    except Exception as error:
        raise_environment_fault(error, where=f"while loading {directory}")
        text = " ".join(str(error).split())[:200]
        raise InputError(f"model {directory} cannot be loaded: {text} -> check the directory") from error
    finally:
        logging.set_verbosity(verbosity)
