"""Videos as files: written from frames, read back frame by frame, checked.

`mp4` is written and read by the program ffmpeg (H.264), `webp` is an animated picture that Pillow writes and reads: it needs
nothing else and every browser shows it, but no player of videos does.

Legend: T frames, H height, W width.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from configs.program import EnvironmentFault
from generation.pictures import Facts, Faulty, contrast_of, require_contrast

READ = ("-v", "error", "-i")
AS_PICTURES = ("-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-")
ENCODED = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "18", "-movflags", "+faststart", "-f", "mp4")


def require_ffmpeg() -> str:
    """The path of ffmpeg; EnvironmentFault that says how to do without."""
    found = shutil.which("ffmpeg")
    if found is None:
        raise EnvironmentFault(
            "mp4 files are written and checked by ffmpeg, which is not installed -> apt-get install ffmpeg (or conda install "
            "ffmpeg); the in-process maker also writes --video.container webp without it"
        )
    return found


def write_video(frames_THWC: np.ndarray, file: Path, *, fps: int, container: str) -> None:
    """frames uint8 [T, H, W, 3] as a file of `container`."""
    if container == "webp":
        from PIL import Image

        first, *others = (Image.fromarray(frame) for frame in frames_THWC)
        first.save(
            file,
            "WEBP",
            save_all=True,
            append_images=others,
            duration=round(1000 / fps),
            loop=0,
            quality=90,
            method=2,
        )
        return
    _, height, width, _ = frames_THWC.shape
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-")
    command = [require_ffmpeg(), "-v", "error", "-y", *raw, *ENCODED, str(file)]
    done = subprocess.run(command, input=np.ascontiguousarray(frames_THWC).tobytes(), capture_output=True)
    if done.returncode:
        raise RuntimeError(f"ffmpeg: {done.stderr.decode(errors='replace').strip()[-200:]}")


def read_video(file: Path) -> Iterator[np.ndarray]:
    """Its frames, uint8 [H, W, 3] each; Faulty where it cannot be decoded to its end."""
    with open(file, "rb") as opened:
        webp = opened.read(4) == b"RIFF"
    yield from (_read_webp if webp else _read_mp4)(file)


def _read_webp(file: Path) -> Iterator[np.ndarray]:
    from PIL import Image, ImageSequence

    try:
        with Image.open(file) as picture:
            for frame in ImageSequence.Iterator(picture):
                yield np.asarray(frame.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise Faulty(f"not decodable ({str(error)[:80]})") from None


def _read_mp4(file: Path) -> Iterator[np.ndarray]:
    command = [require_ffmpeg(), *READ, str(file), *AS_PICTURES]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reading:
        while reading.stdout.readline() == b"P6\n":
            width, height = map(int, reading.stdout.readline().split())
            reading.stdout.readline()  # the largest level: 255
            pixels = reading.stdout.read(width * height * 3)
            if len(pixels) == width * height * 3:
                yield np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
        said = reading.stderr.read().decode(errors="replace").strip()
    if reading.returncode or said:
        raise Faulty(
            f"not decodable ({said.splitlines()[-1][-100:] if said else f'ffmpeg left with {reading.returncode}'})"
        )


def check_video(file: Path, *, frames: int, size: tuple[int, int] | None) -> Facts:
    """Facts of a video of exactly `frames` frames and, where it is known, `size` (width, height); its middle frame goes beside
    it as a poster. Faulty where it cannot be decoded, has another length or size, or shows nothing."""
    from PIL import Image

    shape, count, best, poster = None, 0, 0.0, None
    for frame in read_video(file):
        shape = shape or frame.shape
        best = max(best, contrast_of(Image.fromarray(frame)))
        if count == frames // 2:
            poster = frame
        count += 1
    if shape is None or count != frames:
        raise Faulty(f"{count} frames in place of {frames}")
    if size is not None and (shape[1], shape[0]) != size:
        raise Faulty(f"{shape[1]}x{shape[0]} pixels in place of {size[0]}x{size[1]}")
    contrast = require_contrast(best)
    beside = file.with_name(f"{file.name}.poster.tmp")
    Image.fromarray(poster).save(beside, "JPEG", quality=90)
    return Facts(shape[1], shape[0], contrast, count, str(beside))
