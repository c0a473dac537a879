"""Before stage 08: a pretrained model in one GGUF file becomes an ordinary Hugging Face directory.

    python -m preprocess.convert_gguf --gguf SmolLM2-135M-Instruct.Q4_1.gguf --output_dir outputs/models/smollm2 \\
        --eos_token '<|im_end|>' --pad_token '<|endoftext|>'

reads   a GGUF file of an architecture that transformers can dequantize (Llama, Qwen, Gemma, ...); needs the package gguf
writes  <output_dir>/  bfloat16 safetensors, tokenizer with chat template, generation config that never samples

`MODEL=smollm2 bash scripts/08_expand_vocab.sh` does this once for SmolLM2-135M-Instruct (scripts/smollm2.sh).
A GGUF file knows neither how a chat turn ends nor what to pad with: its tokenizer says bos = eos = the token that begins a
turn, and no pad token. Both are therefore named here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import program
from configs.integrity import sha256
from configs.program import EnvironmentFault, InputError
from data.store.models import load_gguf, quiet_transformers, write_model
from data.store.output import open_output
from preprocess.model.base_model import settle_generation

STAGE, VERSION = "convert_gguf", 1


@dataclass(frozen=True, kw_only=True)
class ConvertGgufArgs:
    """Arguments of preprocess.convert_gguf."""

    gguf: str
    """the GGUF file"""
    output_dir: str
    """where the model directory goes"""
    eos_token: str | None = None
    """token that ends an answer; null = the file's own"""
    pad_token: str | None = None
    """token that fills batches; null = the file's own, or else the end token"""
    sha256: str | None = None
    """the file's expected sha256; another one is an error"""
    overwrite: bool = False
    """replace an output of another configuration"""


def read_gguf(file: Path) -> tuple[Any, Any]:
    """(dequantized bfloat16 causal LM, tokenizer) of a GGUF file; InputError for one that transformers cannot read."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise EnvironmentFault(
            "reading GGUF needs the package gguf -> python -m pip install gguf==0.19.0"
        ) from None
    quiet_transformers()
    if program.quiet():
        os.environ.setdefault("TQDM_DISABLE", "1")  # the reader's own bar
    try:
        model, tokenizer = load_gguf(file)
    except Exception as error:  # a damaged file: struct.error, IndexError and whatever its tokenizer raises
        program.raise_environment_fault(error, where=f"while reading {file}")
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise InputError(
            f"{file} cannot be read as GGUF ({reason}) -> copy it again, or give a safetensors model"
        ) from error
    return forget_quantization(model), tokenizer


def forget_quantization(model: Any) -> Any:
    """The same model as one that was never quantized: saving refuses it otherwise, though its weights are plain by now."""
    model.hf_quantizer = None
    for owner, name in (
        (model.config, "quantization_config"),
        (model, "is_quantized"),
        (model, "quantization_method"),
    ):
        if hasattr(owner, name):
            delattr(owner, name)
    return model


def settle_tokens(tokenizer: Any, *, eos_token: str | None, pad_token: str | None) -> None:
    """Set the tokens that end an answer and fill a batch; InputError for a token that the vocabulary lacks."""
    vocabulary = tokenizer.get_vocab()
    for flag, token in (("eos_token", eos_token), ("pad_token", pad_token)):
        if token is not None and token not in vocabulary:
            raise InputError(f"{flag} {token!r} is no token of this model -> name one of its special tokens")
    tokenizer.eos_token = eos_token or tokenizer.eos_token
    tokenizer.pad_token = pad_token or tokenizer.pad_token or tokenizer.eos_token
    if tokenizer.bos_token == tokenizer.eos_token or eos_token is not None:
        tokenizer.bos_token = None  # the chat template begins every turn itself
    tokenizer.padding_side = "left"
    tokenizer.clean_up_tokenization_spaces = False


def main(args: ConvertGgufArgs) -> None:
    """Read, check, write."""
    file = Path(args.gguf)
    if not file.is_file():
        raise InputError(f"there is no file {file} -> give a .gguf file")
    if args.sha256 and (found := sha256(file)) != args.sha256:
        raise InputError(f"{file} has sha256 {found}, not {args.sha256} -> download it again")
    with open_output(args, STAGE, version=VERSION, inputs={"gguf": args.gguf}) as out:
        model, tokenizer = read_gguf(file)
        settle_tokens(tokenizer, eos_token=args.eos_token, pad_token=args.pad_token)
        settle_generation(model, tokenizer)
        write_model(out, model, tokenizer)
        out.counts |= {"tokens": len(tokenizer), "parameters": model.num_parameters()}
        out.facts["architecture"] = model.config.architectures


if __name__ == "__main__":
    program.run(ConvertGgufArgs, main)
