"""preprocess.convert_gguf on a tiny GGUF file of SmolLM2's layout: Llama in Q4_1, byte-level BPE, bos = eos, no pad token."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs.program import InputError
from preprocess.convert_gguf import ConvertGgufArgs, main
from preprocess.expand_vocab import load

WIDTH, HEADS, LAYERS, HIDDEN = 64, 2, 2, 96
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def tensors(rng: np.random.Generator, vocabulary: int) -> dict[str, np.ndarray]:
    shapes = {"token_embd": (vocabulary, WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        block = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (WIDTH, WIDTH))
        block |= {"ffn_gate": (HIDDEN, WIDTH), "ffn_up": (HIDDEN, WIDTH), "ffn_down": (WIDTH, HIDDEN)}
        block |= {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.Q4_1.gguf"
    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet()), "he", "ou"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["h e", "o u"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    kind = gguf.GGMLQuantizationType.Q4_1
    for name, value in tensors(np.random.default_rng(0), len(tokens)).items():
        if value.ndim == 1:
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_becomes_a_model_that_stage_08_accepts(file, tmp_path):
    target = tmp_path / "model"
    main(
        ConvertGgufArgs(
            gguf=str(file), output_dir=str(target), eos_token="<|im_end|>", pad_token="<|endoftext|>"
        )
    )
    model, tokenizer = load(target)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == (
        "<|im_end|>",
        "<|endoftext|>",
        None,
    )
    assert (model.config.eos_token_id, model.config.pad_token_id) == (2, 0)
    assert tokenizer.decode(tokenizer("he said ho\n")["input_ids"]) == "he said ho\n"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False)
    assert chat == "<|im_start|>user\nhe<|im_end|>\n"
    assert (model.config.num_hidden_layers, model.dtype) == (LAYERS, torch.bfloat16)
    assert not getattr(model.config, "quantization_config", None)

    written = tensors(np.random.default_rng(0), 3 + 256 + 2)
    kind = gguf.GGMLQuantizationType.Q4_1
    up = written["blk.1.ffn_up.weight"]
    expected = gguf.quants.dequantize(gguf.quants.quantize(up, kind), kind)
    found = model.model.layers[1].mlp.up_proj.weight.float().detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)
    assert np.abs(found - up).max() < 0.4, "four bits of numbers within about 3 of 0"

    ids = torch.tensor([tokenizer("he said")["input_ids"]])
    again = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16)
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    assert AutoTokenizer.from_pretrained(target).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gguf": "absent.gguf"}, "there is no file"),
        ({"sha256": "0" * 64}, "download it again"),
        ({"eos_token": "<|stop|>"}, "no token of this model"),
    ],
)
def test_bad_input(file, tmp_path, change, message):
    arguments = {"gguf": str(file), "output_dir": str(tmp_path / "model")} | change
    with pytest.raises(InputError, match=message):
        main(ConvertGgufArgs(**arguments))
    assert not (tmp_path / "model").exists()


def test_a_file_that_is_no_gguf(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but then nothing of the kind" * 9)
    with pytest.raises(InputError, match="cannot be read as GGUF"):
        main(ConvertGgufArgs(gguf=str(broken), output_dir=str(tmp_path / "model")))
