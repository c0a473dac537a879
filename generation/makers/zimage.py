"""Z-Image by diffusers: prompts become pictures in batches, every picture from a noise of its own.

Recipes: `turbo` is the distilled model, 8 steps without guidance (diffusers 0.39 and later take 8 effective steps for 8); `base`
the undistilled one with guidance, which is what takes a negative prompt. Differs from NaviGen, which drives Turbo with 20 steps at
guidance 3.5, one prompt at a time, from the sum of a user name's letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from configs.program import InputError
from data.store.configuration import pace
from generation.makers import pipelines
from generation.pictures import Facts, check_picture
from generation.requests import MediaRequest

CLASSES = ("ZImagePipeline",)
RECIPES = {"turbo": (8, 0.0), "base": (50, 5.0)}  # steps, guidance


@dataclass
class ZImageSettings:
    """How Z-Image draws."""

    recipe: Literal["turbo", "base"] = "turbo"
    """which model it is: turbo takes 8 steps at guidance 0, base 50 at guidance 5"""
    steps: int | None = None
    """denoising steps; null = the recipe's"""
    guidance: float | None = None
    """classifier-free guidance, on above 0: the model runs twice per step; null = the recipe's"""
    negative_prompt: str | None = None
    """what a picture should not show; only with guidance"""
    width: int = 512
    """pixels, a multiple of 16 with the real autoencoder"""
    height: int = 512
    """pixels, likewise"""
    max_tokens: int = 512
    """longest prompt in tokens of the text encoder, its template among them; a longer one is refused, not cut"""
    adapter: str | None = None
    """LoRA to merge into the transformer: a directory of PEFT or diffusers, or a safetensors file"""
    adapter_scale: float = 1.0
    """how strongly"""
    dtype: Literal["auto", "float32", "bfloat16", "fp8"] = "auto"
    """auto = bfloat16 on a GPU, float32 on a CPU; fp8 = the transformer quantised by torchao, on Ada and Hopper GPUs"""
    offload: bool = pace(False)
    """keep components in memory and move each to the GPU when it is used: less GPU memory, slower"""
    batch: int = pace(4)
    """pictures drawn together"""

    def __post_init__(self) -> None:
        if min(self.width, self.height, self.max_tokens, self.batch, self.num_steps) < 1 or self.scale < 0:
            raise InputError(
                "zimage: width, height, max_tokens, batch and steps must be at least 1, guidance at least 0"
            )
        if self.negative_prompt is not None and self.scale == 0:
            raise InputError(
                "zimage: negative_prompt does nothing at guidance 0 -> recipe base, or a guidance"
            )

    @property
    def num_steps(self) -> int:
        return RECIPES[self.recipe][0] if self.steps is None else self.steps

    @property
    def scale(self) -> float:
        return RECIPES[self.recipe][1] if self.guidance is None else self.guidance


class ZImage:
    """Draws with a local Z-Image pipeline."""

    suffix, per_seed, outside = ".png", 1, False

    def __init__(self, model: str, settings: ZImageSettings, *, device: str | None) -> None:
        self.settings, self.device = settings, pipelines.chosen_device(device)
        self.batch = settings.batch
        dtype = "bfloat16" if settings.dtype == "fp8" else settings.dtype
        from diffusers import ZImagePipeline

        pipeline = pipelines.load_pipeline(model, ZImagePipeline, dtype=dtype, device=self.device)
        step = pipeline.vae_scale_factor * 2
        if settings.width % step or settings.height % step:
            raise InputError(f"zimage: {settings.width}x{settings.height} -> width and height in multiples of {step} for this model")  # fmt: skip
        if settings.adapter is not None:
            pipelines.merge_adapter_into(pipeline.transformer, settings.adapter, scale=settings.adapter_scale)
        if settings.dtype == "fp8":
            pipelines.quantize_fp8(pipeline.transformer, device=self.device)
        self.pipeline = pipelines.place(pipeline, device=self.device, offload=settings.offload)

    def refusal(self, prompt: str) -> str | None:
        ids = self.pipeline.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            enable_thinking=True,
            return_dict=True,
        )["input_ids"]
        longest = self.settings.max_tokens
        return f"the prompt has {len(ids)} tokens, more than {longest}" if len(ids) > longest else None

    def make(
        self, requests: Sequence[MediaRequest], seeds: Sequence[int], files: Sequence[Path]
    ) -> list[str | None]:
        for picture, file in zip(
            self.draw([request.prompt for request in requests], seeds), files, strict=True
        ):
            picture.save(file, "PNG")
        return [None] * len(files)

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:
        """A PIL picture per prompt; a generator each, so that a picture does not depend on its batch."""
        import torch

        settings = self.settings
        negative = settings.negative_prompt
        return self.pipeline(
            prompt=list(prompts),  # the pipeline writes its template back into the list that it is given
            negative_prompt=None if negative is None else [negative] * len(prompts),
            width=settings.width,
            height=settings.height,
            num_inference_steps=settings.num_steps,
            guidance_scale=settings.scale,
            max_sequence_length=settings.max_tokens,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        ).images

    def check(self, file: Path) -> Facts:
        return check_picture(file, size=(self.settings.width, self.settings.height))
