"""Can this machine run several processes the way an accelerate config says? Asked before they are started.

reads   the config (configs/accelerate/*.yaml)
writes  nothing

Sharded training falls back without a word where it is not possible: on a CPU, FSDP and DeepSpeed configs train as plain data
parallel copies. That is refused here, and so is a package that is not installed. Exit code 0 or that of the error.

python -m configs.parallel --config_file configs/accelerate/zero2.yaml
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import program
from configs.program import InputError
from configs.sharded import SHARDED, require_possible


@dataclass
class ParallelArgs:
    """Several processes."""

    config_file: str
    """accelerate config that they would be started with"""


def read_config(path: Path) -> dict[str, Any]:
    """An accelerate config; InputError where it is none."""
    import yaml

    if not path.is_file():
        raise InputError(
            f"there is no {path} -> ACCELERATE_CONFIG is a file such as configs/accelerate/ddp.yaml"
        )
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())[:120]} -> correct it") from error
    if not isinstance(config, dict) or "distributed_type" not in config:
        raise InputError(f"{path} has no distributed_type -> take one of configs/accelerate/")
    return config


def main(args: ParallelArgs) -> None:
    path = Path(args.config_file)
    config = read_config(path)
    kind = str(config["distributed_type"])
    if kind not in SHARDED:
        return
    import torch

    version = (config.get("fsdp_config") or {}).get("fsdp_version", 1)
    usable = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true"
    require_possible(kind, cuda=usable, where=str(path), version=int(version))


if __name__ == "__main__":
    program.run(ParallelArgs, main)
