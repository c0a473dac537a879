"""How a model of a size is trained on a card: every combination, or the flags of one; estimates, none of them was run. And how
large the small models of a data set are, with a forecast of the time (configs/plans.py).

reads   nothing; with --data its manifest.json (stage 01)
writes  nothing; with --output_dir the plan of that data set: <config>.yaml overlays (PLAN of the scripts), choices.sh, plan.json

SIZE and CARD of sft.sh ask here: SIZE=1.7B CARD=24 MODEL=outputs/qwen3/vocab STAGE=pretrained EXAMPLES=sentence bash sft.sh

python -m configs.sizes
python -m configs.sizes --size 1.7B --card 24 --processes 1 --flags true
python -m configs.sizes --data data/shop --output_dir outputs/best-shop/plan
python -m configs.sizes --data data/beauty14 --minutes 30 --speed 1.1
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs import program
from configs.needs import Need, require_needs
from configs.plans import LONG, READ, READ_AT_MOST, Counts, SmallPlan, plan_of
from configs.program import InputError
from configs.recipes import CARDS, SIZES, recipe

# Of the probe on the machine that the seconds of configs/plans.py were measured on: .3 with numpy, which takes 1 / 1.1 of torch's.
PROBE_SECONDS = 0.33
PROBES = 3


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
    data: str | None = None
    """a prepared data set: the plan of its small models"""
    output_dir: str | None = None
    """with data: where the plan is written; one that is there is kept, so that what it made stays its own"""
    minutes: float = 30.0
    """with data: how long all of it may take, by forecast"""
    speed: float | None = None
    """with data: how fast the machine is beside the one that the seconds were measured on, 2.0 is twice as fast; null = a probe says it"""

    def __post_init__(self) -> None:
        require_needs(self)
        if self.minutes <= 0:
            raise InputError(f"minutes {self.minutes} -> above 0")
        if self.speed is not None and self.speed <= 0:
            raise InputError(f"speed {self.speed} -> above 0, or leave it out: a probe says it")

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        return [
            Need(("output_dir", "minutes", "speed"), self.data is not None, "data"),
            Need(("size", "card", "processes", "flags"), self.data is None, "without data"),
        ]


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


def counts_of(data: str | Path) -> Counts:
    """The counts in the manifest of a prepared data set, and how long its histories are; InputError where there is none."""
    try:
        manifest = _manifest(data)
        counts, untitled = (
            manifest["counts"],
            manifest["facts"].get("funnel", {}).get("items_without_title", 0),
        )
        items, scored = counts["items"], counts["valid"] + counts["test"]
        timed = manifest["facts"].get("funnel", {}).get("share_with_time", 1.0) > 0
        titled = 1 - untitled / max(items, 1)
        sizes_R = _histories(data)
        long = round(float((sizes_R > READ).mean()), 4) if len(sizes_R) else 0.0
        return Counts(
            items, counts["users"], counts["train"], titled, scored, timed, long, int(sizes_R.max(initial=0))
        )
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise InputError(
            f"{data} is no prepared data set ({error!r}) -> scripts/01_prepare_data.sh"
        ) from None


def cut_short(data: str | Path) -> str:
    """What to say where most train histories were cut by stage 01, and a plan would read more of them; else nothing."""
    split, sizes_R = _manifest(data).get("config", {}).get("split", {}), _histories(data)
    most = split.get("max_history", 0)
    made_here = split.get("kind") != "published" and not split.get("stride")
    full = float((sizes_R == most).mean()) if len(sizes_R) else 0.0
    if not made_here or full <= LONG or not READ <= most < READ_AT_MOST:
        return ""
    return (
        f"{full:.0%} of the train histories end at split.max_history {most} -> {READ_AT_MOST} in prepare.yaml, and up to {READ_AT_MOST} items of "
        "each are read"
    )


def _manifest(data: str | Path) -> dict[str, Any]:
    return json.loads((Path(data) / "manifest.json").read_text(encoding="utf-8"))


def _histories(data: str | Path) -> Any:
    """Items of every train row's history, int [R]."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    train = [("split", "=", "train")]
    rows = pq.read_table(Path(data) / "sequences.parquet", columns=["history"], filters=train)
    return pc.list_value_length(rows["history"]).to_numpy()


def probe() -> float:
    """CPU seconds of a fixed amount of the training's arithmetic on one thread: how fast this machine is, whatever else it does now.

    Several threads wait for one another busily, and their seconds would count as work: 1.2 times as many on two quiet cores, twice on busy ones.
    The first round is not counted (memory and libraries are new to it: 1.2 times the seconds of the others), of the rest the fastest is.
    """
    import torch

    def round_() -> float:
        begun = time.process_time()
        for _ in range(24):
            scores = (rows @ items).exp_()  # two of them at once, as in a training: new memory for each
            scores @ items.T
        return time.process_time() - begun

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows, items = torch.full((512, 128), 0.1), torch.full((128, 4096), 0.1)
        round_()
        return min(round_() for _ in range(PROBES))
    finally:
        torch.set_num_threads(threads)


def write_plan(plan: SmallPlan, counts: Counts, directory: Path) -> None:
    """Overlays as JSON, which is YAML; plan.json last, so that half a plan is none. Nothing of a plan that was there before is left.

    InputError for a folder with overlays that are no plan's: they are not ours to remove.
    """
    before = sorted(directory.glob("*.yaml"))
    if before and not (directory / "choices.sh").exists():
        raise InputError(
            f"{directory} has {before[0].name} and no whole plan -> remove that folder, or name another"
        )
    directory.mkdir(parents=True, exist_ok=True)
    for path in [directory / "plan.json", *before]:
        path.unlink(missing_ok=True)
    lines = [f'export {name}="{value}"' for name, value in plan.variables().items()]
    (directory / "choices.sh").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, overlay in plan.overlays().items():
        (directory / f"{name}.yaml").write_text(json.dumps(overlay) + "\n", encoding="utf-8")
    text = json.dumps({"counts": asdict(counts), "plan": asdict(plan)}, indent=1)
    (directory / "plan.json").write_text(text + "\n", encoding="utf-8")


def read_plan(path: Path) -> tuple[dict[str, Any], SmallPlan]:
    """(what it counted, the plan) of `write_plan`; InputError where it is damaged."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        Counts(**stored["counts"])  # all that a plan has always counted
        return stored["counts"], SmallPlan(**stored["plan"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no plan ({str(error)[:80]}) -> remove the folder {path.parent}"
        ) from None


def planned(args: SizesArgs) -> list[str]:
    """The plan in words, written where it is not there yet; InputError when the one there is of other data."""
    counts = counts_of(args.data)
    kept = Path(args.output_dir) / "plan.json" if args.output_dir else None
    found = kept is not None and kept.exists() and kept.with_name("choices.sh").exists()
    if found:
        of, plan = read_plan(kept)
        if not of.items() <= asdict(counts).items():  # an older plan counted less
            raise InputError(
                f"{kept} is the plan of other data than {args.data} -> remove the folder {kept.parent}, or another RUN"
            )
    else:
        speed = args.speed if args.speed is not None else PROBE_SECONDS / max(probe(), 1e-3)
        plan = plan_of(counts, minutes=args.minutes, speed=speed)
        if kept:
            write_plan(plan, counts, kept.parent)
    note = []
    if found:
        note.append(f"kept as {kept} has it: remove the folder {kept.parent} to plan again")
        if plan.positions is None and counts.long > LONG:
            note += [
                f"most histories have more than the {READ} items that it reads, an older plan: a new one reads up to {READ_AT_MOST}"
            ]
    if said := cut_short(args.data):
        note.append(said)
    with_text = "with texts" if plan.text else "without texts (fewer than half of the items have a title)"
    return [
        f"{counts.items:,} items, {counts.users:,} users, {counts.rows:,} train rows: 3 x {plan.codes} codes, hidden {plan.hidden}, "
        f"{plan.teachers} sequential models {with_text} of {plan.sequential_epochs} epochs, generator of {plan.generator_epochs} epochs, "
        f"{plan.positions or READ} history items",
        f"forecast {plan.total / 60:.0f} min on one thread that nothing else uses: "
        + ", ".join(f"{name} {value:.0f} s" for name, value in plan.seconds.items()),
        *note,
    ]


def main(args: SizesArgs) -> None:
    if args.data is not None:
        print(*planned(args), sep="\n", flush=True)
        return
    if args.flags:
        print(*flags(args))
        return
    print(*told(args), sep="\n")
    print("train_what, windows a GPU x accumulation, memory of a GPU: estimates, not run")


if __name__ == "__main__":
    program.run(SizesArgs, main)
