"""Tiny random models for trying stages 13 and 14 on a CPU: what they draw is noise, and it is marked as such.

reads   nothing
writes  <output_dir>/{tiny-random-zimage,tiny-random-wan,tiny-random-clip}: a Z-Image pipeline, a Wan video pipeline (both as
        diffusers writes them) and a CLIP, each of some 100,000 random weights; manifest.json

They are real architectures with real code paths, so that a chain that runs with them runs with the real ones: give those by
--model. Byte-level tokenizers: any text is understood, a token a byte.

python -m generation.init_tiny_models --output_dir outputs/quickstart/tiny_models
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

from configs import program
from data.store.output import Output, open_output
from generation.pictures import TINY

STAGE, VERSION = "init_tiny_models", 1
ZIMAGE, WAN, CLIP = f"{TINY}zimage", f"{TINY}wan", f"{TINY}clip"
SPECIAL = ("<|pad|>", "<|end|>", "<|start|>", "<|unk|>")
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@dataclass
class InitTinyModelsArgs:
    """Random models."""

    output_dir: str
    """where the three directories go"""
    seed: int = 0
    """of the weights"""
    overwrite: bool = False
    """replace an output of another configuration"""


def main(args: InitTinyModelsArgs) -> None:
    import torch

    with open_output(args, STAGE, version=VERSION, inputs={}) as out:
        for name, build in ((ZIMAGE, zimage), (WAN, wan), (CLIP, clip)):
            torch.manual_seed(args.seed)
            save(out, name, build())
            out.counts[name] = 1


def save(out: Output, name: str, parts: tuple[Any, ...]) -> None:
    """A directory of what has `save_pretrained`, written beside its place and moved there."""
    made, place = out.path / f".{name}.tmp", out.path / name
    for old in (made, place):
        shutil.rmtree(old, ignore_errors=True)
    for part in parts:
        part.save_pretrained(made)
    made.rename(place)


def tokenizer(*, longest: int) -> Any:
    """A token per byte, and a chat template that takes enable_thinking."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate((*SPECIAL, *alphabet))}
    bytes_ = Tokenizer(models.BPE(vocabulary, [], unk_token=SPECIAL[3]))
    bytes_.pre_tokenizer, bytes_.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    bytes_.post_processor = processors.TemplateProcessing("$A <|end|>", special_tokens=[("<|end|>", 1)])
    pad, end, start, unknown = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_, pad_token=pad, bos_token=start, eos_token=end, unk_token=unknown,
        model_max_length=longest, chat_template=TEMPLATE, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def zimage() -> tuple[Any, ...]:
    """A Z-Image pipeline whose pictures come in multiples of 4 pixels."""
    import torch
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        ZImagePipeline,
        ZImageTransformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3Model

    words = tokenizer(longest=512)
    text = Qwen3Model(
        Qwen3Config(
            vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
        )
    )  # fmt: skip
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=64, n_layers=1, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, qk_norm=True, cap_feat_dim=32, rope_theta=256.0, t_scale=1000.0, axes_dims=[8, 12, 12],
        axes_lens=[1024, 64, 64],
    )  # fmt: skip
    for name, parameter in transformer.named_parameters():
        if "pad_token" in name:  # made by torch.empty
            torch.nn.init.normal_(parameter, std=0.02)
    autoencoder = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, block_out_channels=[32, 32],
        layers_per_block=1, latent_channels=16, norm_num_groups=8, sample_size=32, scaling_factor=0.3611, shift_factor=0.1159,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    return (
        ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=autoencoder, text_encoder=text, tokenizer=words,
            transformer=transformer,
        ),
    )  # fmt: skip


def wan() -> tuple[Any, ...]:
    """A Wan pipeline whose videos come in multiples of 16 pixels and 4k + 1 frames."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    words = tokenizer(longest=512)
    text = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(words),
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=1,
            num_heads=4,
            tie_word_embeddings=True,
        )
    )
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16, text_dim=32,
        freq_dim=32, ffn_dim=32, num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    autoencoder = AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    return (
        WanPipeline(
            tokenizer=words,
            text_encoder=text,
            vae=autoencoder,
            scheduler=scheduler,
            transformer=transformer,
            transformer_2=None,
        ),
    )


def clip() -> tuple[Any, ...]:
    """A CLIP of 32-pixel pictures and 77 tokens."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = tokenizer(longest=77)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    config = CLIPConfig(
        text_config=sizes | special | {"vocab_size": len(words), "max_position_embeddings": 77},
        vision_config=sizes | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return CLIPModel(config), words, processor


if __name__ == "__main__":
    program.run(InitTinyModelsArgs, main)
