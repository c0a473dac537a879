"""How a model of a size is trained on a card: every combination, or the flags of one; estimates, none of them was run.

reads   nothing
writes  nothing

SIZE and CARD of sft.sh ask here: SIZE=1.7B CARD=24 MODEL=outputs/qwen3/vocab STAGE=pretrained EXAMPLES=sentence bash sft.sh

python -m configs.sizes
python -m configs.sizes --size 1.7B --card 24 --processes 1 --flags true
"""

from __future__ import annotations

from dataclasses import dataclass

from configs import program
from configs.program import InputError
from configs.recipes import CARDS, SIZES, recipe


@dataclass
class SizesArgs:
    """Which size, which card."""

    size: str | None = None
    """0.5B, 0.6B, 1.5B, 1.7B, 3B or 4B; null = all of them"""
    card: float | None = None
    """memory of one GPU in GB; null = 12, 24, 48 and 80"""
    processes: int | None = None
    """GPUs; null = one, and 8"""
    flags: bool = False
    """print what the launcher and train.sft are told instead: the accelerate config, then the flags of the program"""


def told(args: SizesArgs) -> list[str]:
    """The lines of the table."""
    sizes = [args.size] if args.size else list(SIZES)
    cards = [(card, 1) for card in CARDS] + [(card, 8) for card in CARDS]
    if args.card or args.processes:
        cards = [(card, args.processes or 1) for card in ([args.card] if args.card else CARDS)]
    lines = []
    for size in sizes:
        for card, processes in cards:
            found = recipe(size, card, processes=processes)
            lines.append(f"{size:<5} {processes} x {card:g} GB   {found or 'does not fit'}")
    return lines


def flags(args: SizesArgs) -> list[str]:
    """Accelerate config and program flags of one recipe; InputError where nothing fits."""
    if args.size is None or args.card is None:
        raise InputError("flags are those of one size on one card -> --size and --card")
    processes = args.processes or 1
    found = recipe(args.size, args.card, processes=processes)
    if found is None:
        raise InputError(
            f"{args.size} does not fit {processes} x {args.card:g} GB by any recipe -> a larger card, or more of them"
        )
    return [f"configs/accelerate/{found.plan.sharding}.yaml", *found.flags()]


def main(args: SizesArgs) -> None:
    if args.flags:
        print(*flags(args))
        return
    print(*told(args), sep="\n")
    print("train_what, windows a GPU x accumulation, memory of a GPU: estimates, not run")


if __name__ == "__main__":
    program.run(SizesArgs, main)
