"""Text to video by a diffusers pipeline in this process: Wan or LTX, from a local directory.

A prompt becomes frames with a noise of its own, then a file (see frames). Lengths and sizes are the model's: 4k + 1 frames and
multiples of 16 pixels for Wan, 8k + 1 and 32 for LTX; others are refused, not rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from configs.program import InputError
from data.store.configuration import pace
from generation.makers import frames, pipelines
from generation.pictures import Facts
from generation.requests import MediaRequest

# class: (frames in steps of + 1, pixels in multiples of)
CLASSES = {"WanPipeline": (4, 16), "LTXPipeline": (8, 32)}


@dataclass
class VideoSettings:
    """How a diffusers pipeline makes videos."""

    width: int = 832
    """pixels"""
    height: int = 480
    """pixels"""
    num_frames: int = 81
    """frames"""
    steps: int = 50
    """denoising steps"""
    guidance: float = 5.0
    """classifier-free guidance, on above 1"""
    negative_prompt: str | None = None
    """what a video should not show; only with guidance"""
    fps: int = 16
    """frames per second of the file"""
    container: Literal["mp4", "webp"] = "mp4"
    """mp4 needs ffmpeg; webp is an animated picture, for browsers"""
    max_tokens: int = 512
    """longest prompt in tokens; a longer one is refused, not cut"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto = bfloat16 on a GPU, float32 on a CPU"""
    offload: bool = pace(False)
    """keep components in memory and move each to the GPU when it is used"""

    def __post_init__(self) -> None:
        numbers = (self.width, self.height, self.num_frames, self.steps, self.fps, self.max_tokens)
        if min(numbers) < 1 or self.guidance < 0:
            raise InputError(
                "video: sizes, num_frames, steps, fps and max_tokens must be at least 1, guidance at least 0"
            )
        if self.negative_prompt is not None and self.guidance <= 1:
            raise InputError("video: negative_prompt does nothing at guidance 1 or less -> a larger guidance")


class VideoDiffusers:
    """Makes videos with a local pipeline, one at a time."""

    batch, per_seed, outside = 1, 1, False

    def __init__(self, model: str, settings: VideoSettings, *, device: str | None) -> None:
        kind = pipelines.require_pipeline(model, tuple(CLASSES))
        length, step = CLASSES[kind]
        if settings.num_frames % length != 1 or settings.width % step or settings.height % step:
            raise InputError(
                f"video: {settings.num_frames} frames of {settings.width}x{settings.height} -> {length}k + 1 frames, width and "
                f"height in multiples of {step} for {kind}"
            )
        if settings.container == "mp4":
            frames.require_ffmpeg()
        self.settings, self.suffix = settings, f".{settings.container}"
        device = pipelines.chosen_device(device)
        import diffusers

        pipeline = pipelines.load_pipeline(
            model, getattr(diffusers, kind), dtype=settings.dtype, device=device
        )
        self.pipeline = pipelines.place(pipeline, device=device, offload=settings.offload)

    def refusal(self, prompt: str) -> str | None:
        count, longest = len(self.pipeline.tokenizer(prompt)["input_ids"]), self.settings.max_tokens
        return f"the prompt has {count} tokens, more than {longest}" if count > longest else None

    def make(
        self, requests: Sequence[MediaRequest], seeds: Sequence[int], files: Sequence[Path]
    ) -> list[str | None]:
        settings = self.settings
        for request, seed, file in zip(requests, seeds, files, strict=True):
            made = self.draw(request.prompt, seed)
            frames.write_video(made, file, fps=settings.fps, container=settings.container)
        return [None] * len(files)

    def draw(self, prompt: str, seed: int) -> np.ndarray:
        """uint8 [T, H, W, 3]; NaN becomes black, which the check of the file refuses."""
        import torch

        settings = self.settings
        options: dict[str, Any] = (
            {} if settings.negative_prompt is None else {"negative_prompt": settings.negative_prompt}
        )
        (video_THWC,) = self.pipeline(
            prompt=prompt,
            width=settings.width,
            height=settings.height,
            num_frames=settings.num_frames,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            max_sequence_length=settings.max_tokens,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="np",
            **options,
        ).frames
        return (np.nan_to_num(video_THWC) * 255).round().clip(0, 255).astype(np.uint8)

    def check(self, file: Path) -> Facts:
        settings = self.settings
        return frames.check_video(file, frames=settings.num_frames, size=(settings.width, settings.height))
