"""How large the small models of a new data set are, and how long they train: from its counts alone, and a forecast of the time.

    plan = plan_of(Counts(items=10_000, users=20_000, rows=120_000, titled=1.0), minutes=30, speed=1.0)

The rules, each from what was measured on Amazon 2018 Industrial (3,686 items, 30,882 train rows; configs/minionerec/README.md), where
they give its own recipes; they are no more than a start elsewhere:

  choice     by all valid rows, of the generator by 40,000 of them where there are more: to rank 26,000 items for that many took
             91 s of a busy core after every epoch of 217 s, and there are 87,000 (Amazon 2018 Office, all years)
  codes      64 below 1,000 items, 256 to 50,000, 512 to 200,000, 1,024 above: three levels of them; below 256 items one for every four
  hidden     64 below 10,000 train rows, 128 above
  positions  ten history items are read; where more than half of the train rows have more, as many as the longest has, 50 at most, and a user's
             rows are one pass that is cut at another place in every epoch (`windows: cut`; MovieLens-100K, SASRec with texts, valid NDCG@10
             .1028 -> .1207, seed 0, in about half of the seconds beside other programs). Where few are longer it is as good (.1122, .1123 on Musical_Instruments, 16 % of the rows)
  sequential with texts where at least half of the items have a title, else without (`companions`: SASRec beside counts); the
             generator's text kernel likewise; 128 companions of every item in both (train/README.md: what they are worth)
  epochs     14 of the sequential model, 13 of the generator, up to three times as many below 10,000 train rows; fewer where the time is
             short, in the same proportion, down to a third, of the generator to 7
  teachers   two seeds of the sequential model; one where two leave the generator less than that
  answers    16 drawn from the teacher for a row and epoch above 8,000 items, its whole distribution below: on Industrial draws cost .001 to
             .004 of valid NDCG@10, on 12,101 items they make a step twice as fast and its scores 38 times smaller on disk (20 epochs).
             With them 30 % of an answer is the teacher's, dropout is .4, and no histories are made (train/README.md: .0701 -> .0767 on Toys after
             four epochs, .1082 -> .1115 on Musical_Instruments after two, valid NDCG@10; whole distributions on Industrial: 70 %, .25 and
             made ones are better)

Seconds are CPU seconds of one thread. They give what was measured on Industrial (95 to 103 for a sequential model, 250 for 20 epochs
of the generator before it had companions; with them two epochs took about 32, validation apart, of a quiet machine .78
times as fast, for which they say 30,
about 110 for the teacher's scores and its fit) and, for drawn answers, on Amazon 2014 Beauty (606 for the answers of one sequential model with its
mixture, .46 ms a step's row, by a machine .7 times as fast; without texts, on Amazon 2018 Musical_Instruments, about 460 for those of two sequential models,
by one .76 times as fast; the mixture counted again for a fold 5.2 there, .4 on Industrial, .2 without texts). How they are divided between the two parts below is a guess. A row costs a part that does not depend on the catalogue and a part per item (the softmax over all
items); the probe of `configs.sizes` says how fast this machine is beside the one that the parts were measured on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

SEQUENTIAL_EPOCHS, GENERATOR_EPOCHS = 14, 13
FEW_ROWS = 10_000  # train rows
LEAST, LEAST_GENERATOR = 1 / 3, 7  # of the epochs; epochs of the generator
DRAWS, DRAWN_ABOVE = 16, 8_000  # items
DRAWN_SHARE, DRAWN_DROPOUT = 0.3, 0.4
TITLED = 0.5
ITEMS_PER_CODE = 4  # fewer than this per code and most codes stand for single items
LEAST_CODES = 4  # that every item of a handful finds a place of its own
CHOOSE = 40_000  # valid rows that choose a generator's state
READ, READ_AT_MOST = 10, 50  # history items that a recipe reads, that any plan does
LONG = 0.5  # of the train rows: where more have a longer history than READ, more of it is read
COMPANIONS = 128
# Seconds of a training row: (whatever the catalogue, per 1,000 items).
SEQUENTIAL_ROW = (1.0e-4, 3.5e-5)
GENERATOR_ROW = (1.2e-4, 7.0e-5)
DRAWN_ROW = (3.0e-4, 1.5e-5)  # of the generator, with drawn answers
# The answers of a teacher of one sequential model to it and to the histories made of it, once.
TAUGHT_ROW, TAUGHT_ROW_WITHOUT_TEXTS = (8.0e-4, 2.0e-4), (5.0e-4, 1.25e-4)
# Counting a mixture again for a fold of train rows, of those and of made histories, per 1,000 items times 1,000 items, with and without texts.
RECOUNTS, RECOUNTED, RECOUNTED_WITHOUT_TEXTS = 16, 0.036, 0.002
# Of the answers' time; .28, .34 and .40 were measured on Toys, Beauty and Musical_Instruments, one other program beside.
WITHOUT_MADE = 1 / 3
SCORED_ROW = (4.0e-4, 1.0e-4)  # ranking of a valid or test row by all members
WEIGHT_PASSES, WEIGHT_ROWS = 5, 5_000  # over so many valid rows at most; three to five passes were seen
PREPARED_ROW = (2.5e-4, 0.0)  # stages 01 to 07 and the baselines
FIXED = 30.0  # seconds to start some twenty programs
# What a history item above READ adds to the answers' time and the generator's, in parts of it. MovieLens-100K with 50 items, beside two programs
# on two cores, so roughly: 2.1 and 1.4 times what the rows above say of it; the sequential models took what they say.
READ_ANSWERED, READ_LEARNED = 0.027, 0.01


@dataclass(frozen=True)
class Counts:
    """A prepared data set. rows: train rows; scored: valid and test rows; titled: share of the items that have a title;
    timed: whether any train row may have a time; long: share of the train rows with more than READ history items; longest: what the
    longest has."""

    items: int
    users: int
    rows: int
    titled: float
    scored: int = 0
    timed: bool = True
    long: float = 0.0
    longest: int = 0


@dataclass(frozen=True)
class SmallPlan:
    """What the recipe is given, whether the teacher has recent popularity for a member (`timed`), the answers drawn from it (None: all it
    says), whether any item has a title, valid rows that choose the generator's state (None: all), history items that are read where these are
    more than a recipe's, and the seconds it is forecast to take, by part."""

    codes: int
    hidden: int
    text: bool
    sequential_epochs: int
    generator_epochs: int
    teachers: int
    seconds: dict[str, float]
    timed: bool = True
    draws: int | None = None
    titles: bool = True
    valid_rows: int | None = None
    positions: int | None = None

    @property
    def total(self) -> float:
        """Seconds of everything."""
        return sum(self.seconds.values())

    @property
    def sequential(self) -> str:
        """Which sequential model; `sasrec` is left to be the baseline that it is elsewhere."""
        return "text" if self.text else "companions"

    def overlays(self) -> dict[str, dict[str, Any]]:
        """{config: what it changes in the recipe of that name}: `$PLAN/<config>.yaml` of scripts/env.sh."""
        kernel = {} if self.text else {"text": {"kernel": False}}
        choose = {} if self.valid_rows is None else {"valid_rows": self.valid_rows}
        read = {} if self.positions is None else {"positions": self.positions}
        cut = {} if self.positions is None else {"windows": "cut"}
        model = {"hidden": self.hidden, **read}
        generator = {"model": model, **kernel, **cut}
        found: dict[str, dict[str, Any]] = {
            "quantizer": {"rqkmeans": {"sizes": [self.codes] * 3}},
            "quantizer_balanced": {"balanced": {"sizes": [self.codes] * 3}},
            f"sequential_{self.sequential}": {
                "scorer": {"hidden": self.hidden, "companions": COMPANIONS, **read},
                "loop": {"epochs": self.sequential_epochs},
                **cut,
            },
            "compact": {**generator, **({"loop": choose} if choose else {})},
            "compact_distilled": {**generator, "loop": {"epochs": self.generator_epochs, **choose}},
        }
        if self.draws is not None:
            found["compact_distilled"] |= {
                "model": {**model, "dropout": DRAWN_DROPOUT},
                "soft_targets": {"share": DRAWN_SHARE},
                "augment": {"ratio": 0.0},
                "soft_draws": self.draws,
            }
        if not self.text:
            found["embed"] = {"parts": [{"method": "cooccurrence", "dim": 64}]}
        if not self.titles:
            found["examples"] = {"tasks": ["history_to_sid"]}  # the others have no example
        return found

    def variables(self) -> dict[str, str]:
        """What the scripts are told besides: which sequential model and its seeds, and the member that needs times."""
        seeds = " ".join(map(str, range(self.teachers)))
        return {"SEQUENTIAL": self.sequential, "TEACHER_SEEDS": seeds, "TREND": "trend" if self.timed else ""}


def codes_per_level(items: int) -> int:
    """Codes of each of three levels.

    >>> [codes_per_level(items) for items in (5, 85, 256, 3_686, 60_000, 500_000)]
    [4, 21, 64, 256, 512, 1024]
    """
    codes = next(
        (codes for codes, most in ((64, 1_000), (256, 50_000), (512, 200_000)) if items <= most), 1_024
    )
    return min(codes, max(LEAST_CODES, items // ITEMS_PER_CODE))


def longer(rows: int) -> float:
    """How many times the recipe's epochs a small set is given, whose epochs have few steps.

    >>> [longer(rows) for rows in (2_000, 5_000, 30_882)]
    [3.0, 2.0, 1.0]
    """
    return min(3.0, max(1.0, FEW_ROWS / max(rows, 1)))


def row_seconds(cost: tuple[float, float], items: int) -> float:
    """Seconds of one row of a part.

    >>> round(row_seconds((1e-4, 2e-5), 3_000), 6)
    0.00016
    """
    return cost[0] + cost[1] * items / 1_000


def plan_of(counts: Counts, *, minutes: float, speed: float) -> SmallPlan:
    """The largest recipe that is forecast to end in `minutes`, or the least one there is. speed: 2.0 is twice as fast as where
    the seconds were measured."""
    hidden = 64 if counts.rows < FEW_ROWS else 128
    text = counts.titled >= TITLED
    sequential, generator = (
        round(epochs * longer(counts.rows)) for epochs in (SEQUENTIAL_EPOCHS, GENERATOR_EPOCHS)
    )
    full = SmallPlan(
        codes_per_level(counts.items), hidden, text, sequential, generator, 2, {}, counts.timed,
        DRAWS if counts.items > DRAWN_ABOVE else None, counts.titled > 0, CHOOSE if counts.scored > 2 * CHOOSE else None,
        min(counts.longest, READ_AT_MOST) if counts.long > LONG else None,
    )  # fmt: skip
    choices = [(teachers, share) for teachers in (2, 1) for share in (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, LEAST)]
    for teachers, share in choices:
        plan = replace(
            full,
            teachers=teachers,
            sequential_epochs=round(sequential * share),
            generator_epochs=max(round(generator * share), LEAST_GENERATOR),
        )
        plan = replace(plan, seconds=seconds_of(plan, counts, speed=speed))
        if plan.total <= 60 * minutes:
            break
    return plan


def seconds_of(plan: SmallPlan, counts: Counts, *, speed: float) -> dict[str, float]:
    """Forecast seconds by part, in the order in which the parts run."""

    def part(cost: tuple[float, float], rows: float) -> float:
        return rows * row_seconds(cost, counts.items) / speed

    width, generator = plan.hidden / 128, GENERATOR_ROW if plan.draws is None else DRAWN_ROW
    taught = TAUGHT_ROW if plan.text else TAUGHT_ROW_WITHOUT_TEXTS
    recounted = RECOUNTED if plan.text else RECOUNTED_WITHOUT_TEXTS
    answered, folds = (1.0, RECOUNTS) if plan.draws is None else (WITHOUT_MADE, RECOUNTS / 2)
    recounts = folds * recounted * (counts.items / 1_000) ** 2 / speed
    more = (plan.positions or READ) - READ
    answered *= 1 + READ_ANSWERED * more
    return {
        "data, semantic IDs, baselines": FIXED / speed + part(PREPARED_ROW, counts.rows + counts.scored),
        "sequential models": width
        * plan.teachers
        * part(SEQUENTIAL_ROW, counts.rows * plan.sequential_epochs),
        "what the teacher says": answered * (1 + plan.teachers) / 2 * part(taught, counts.rows) + recounts,
        "generator": width * (1 + READ_LEARNED * more) * part(generator, counts.rows * plan.generator_epochs),
        "weights of the ensembles": 2 * WEIGHT_PASSES * part(SCORED_ROW, min(counts.scored / 2, WEIGHT_ROWS)),
        "predictions and metrics": part(SCORED_ROW, counts.scored),
    }
