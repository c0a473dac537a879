"""The licences of the packages that this repository is built on, as their own metadata states them.

    python -m configs.licences > LICENCES.md

One row per exact pin of the requirements files. The first of these that a package has: a licence expression, a classifier, the first
line of its licence field. What an optional package says that is not installed here comes from its repository.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

from configs import program
from configs.pins import read_pins
from configs.program import ROOT, InputError, say

FILES = sorted(ROOT.glob("requirements*.txt"), key=lambda file: (file.stem != "requirements", file.name))
FROM_REPOSITORY = {
    "vllm": "Apache-2.0", "deepspeed": "Apache-2.0", "bitsandbytes": "MIT", "liger-kernel": "BSD-2-Clause", "wandb": "MIT",
    "ray": "Apache-2.0", "pyspark": "Apache-2.0",
}  # fmt: skip
HEAD = """# Licences of dependencies

Written by `python -m configs.licences > LICENCES.md`; a test compares it with the requirements files. Nothing of these packages is part
of this repository: pip installs them. Models and data sets have licences of their own, which their publishers state.

| package | version | licence | file |
|---|---|---|---|
"""


@dataclass
class LicencesArgs:
    """Print the table."""


def licence_of(package: str) -> str:
    """The licence that an installed package states; of one that is not installed, its repository's."""
    try:
        about = metadata.metadata(package)
    except metadata.PackageNotFoundError:
        if package not in FROM_REPOSITORY:
            raise InputError(
                f"{package} is not installed and its licence is not known here -> install it, or add it to "
                "configs/licences.py"
            ) from None
        return FROM_REPOSITORY[package]
    classified = [
        line.split(" :: ")[-1] for line in about.get_all("Classifier", []) if line.startswith("License")
    ]
    field = (about.get("License") or "").strip().split("\n")[0]
    return about.get("License-Expression") or ", ".join(classified) or field or "not stated"


def licence_table() -> str:
    """The document: a row per pinned package, in the order of the files."""
    rows = [
        f"| {package} | {version} | {licence_of(package)} | {file.name} |"
        for file in FILES
        for package, version in read_pins(file.read_text()).items()
    ]
    return HEAD + "\n".join(rows)


def main(args: LicencesArgs) -> None:
    say(licence_table())


if __name__ == "__main__":
    program.run(LicencesArgs, main)
