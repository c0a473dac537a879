"""How good pictures or videos are, and a gallery of them: history -> recommended item -> terms -> instruction -> picture.

reads   an output of stage 13 or 14, its data set, a local CLIP or SigLIP directory, item pictures where there are any
writes  <output_dir>/metrics.json, rows.parquet (the measures of every row), index.html (one self-contained page), manifest.json

metrics.json holds means with 95 % intervals (bootstrap over users) of
  alignment/prompt.*           picture and its own prompt: `own`, the prompts of `others`, their `gap`, `win` (.5 is chance)
  alignment/item               picture and the titles of the items that its terms recommend; alignment/target of what was chosen next
  personalisation/titles.*     picture and the titles of the history: its own user's against those of other users
  personalisation/pictures.*   the same with pictures of the items (--item_images)
  all/*                        shares: made, refused, exact and near duplicates, blank (stages 13 and 14 keep none)
Of videos the middle frame is measured. Without --model only `all/*` is. NaviGen evaluates no picture at all. A judge of pictures is
not here: the chat models of this repository are sent text only.

Tiny random models make tiny random numbers; the page and metrics.json name the models and say so.

python -m generation.evaluate_media --media outputs/quickstart/images/sft_dual.test --data data/toystore \\
    --model /path/to/clip-vit-large-patch14 --output_dir outputs/quickstart/gallery/sft_dual.test
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from configs import program
from configs.needs import Need, require_needs
from configs.program import InputError, say, warn
from data import artifacts
from data.cards import shown_title
from data.sid import read_sids
from data.store.output import open_output, require_manifest
from data.tasks import row_key
from generation import alignment
from generation.gallery import Gallery, page, stories_of
from generation.pictures import BLANK, TINY, contrast_of, difference_hash, near_pairs, open_picture
from infer.metrics.measure import entry, means_of_known
from rq.vectors.encoders import image_processor
from rq.vectors.parts import images_of

STAGE, VERSION = "evaluate_media", 1


@dataclass
class EvaluateMediaArgs:
    """Measures and a gallery of pictures or videos."""

    media: str
    """output of generate_images or generate_videos"""
    data: str
    """data set of the histories and items"""
    output_dir: str
    """where metrics and page go, e.g. outputs/<run>/gallery/<name>"""
    model: str | None = None
    """local CLIP or SigLIP directory; null = no similarities"""
    item_images: str | None = None
    """folder of item pictures, <raw_id>.jpg; null = none, or the files that items name"""
    sids: str | None = None
    """semantic IDs to show beside items"""
    others: int = 20
    """rows of other users that every row is compared with"""
    history: int = 20
    """items of a history that count, the newest"""
    shown: int = 24
    """rows in the gallery, a seeded sample"""
    title: str | None = None
    """heading; null = the name of the media directory"""
    resamples: int = 1000
    """bootstrap resamples of users; 0 = no intervals"""
    seed: int = 0
    """of samples and resamples"""
    overwrite: bool = True
    """replace an older page (it is derived and holds nothing of its own)"""

    def __post_init__(self) -> None:
        if min(self.others, self.history, self.shown) < 1 or self.resamples < 0:
            raise InputError("others, history and shown must be at least 1, resamples not negative")
        require_needs(self)

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        measured = ("others", "history", "item_images")
        return [Need(measured, self.model is not None, "model, a local CLIP or SigLIP directory")]


@dataclass(frozen=True)
class Media:
    """Rows of an index with a picture, and what their users chose before. `users_R`: -1, -2, ... where unknown."""

    rows: list[dict[str, Any]]
    pictures: list[Path]
    histories: list[list[int]]
    users_R: np.ndarray


def main(args: EvaluateMediaArgs) -> None:
    if args.model is not None:
        image_processor(args.model)  # refuses what is neither CLIP nor SigLIP before anything is written
    inputs = {name: getattr(args, name) for name in ("media", "data", "model", "sids")}
    with open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        facts = require_manifest(args.media, written_by=artifacts.MEDIA.written_by)
        index = artifacts.read(args.media, artifacts.MEDIA).to_pylist()
        items = artifacts.read_items(args.data)
        media = gather(args, index, items.num_rows)
        columns = {} if args.model is None else similarities(args, media, items, out.path / ".shards.tmp")
        metrics = shares(index, media)
        metrics |= means_of_known(columns, media.users_R, resamples=args.resamples, seed=args.seed)
        protocol = described(args, index, facts)
        out.write_json("metrics.json", metrics | {"protocol": protocol})
        kept = {name: [row[name] for row in media.rows] for name in ("uid", "dataset", "example_id")}
        out.write_table(
            "rows.parquet", pa.table(kept | {name: pa.array(v, pa.float32()) for name, v in columns.items()})
        )
        sids = None if args.sids is None else read_sids(args.sids)
        told = stories_of(
            media.rows, media.pictures, media.histories, items, sids, count=args.shown, seed=args.seed
        )
        name = args.title or Path(args.media).resolve().name
        out.write_text(
            "index.html", page(Gallery(name, Path(args.data).resolve().name, protocol, metrics, told))
        )
        out.counts |= {"rows": len(index), "pictures": len(media.rows), "shown": len(told)}
    say(f"page: {Path(args.output_dir) / 'index.html'}")


def gather(args: EvaluateMediaArgs, index: list[dict[str, Any]], num_items: int) -> Media:
    """The rows with a picture; InputError where there is none, or their examples are of another data set."""
    rows = [row for row in index if row["status"] == "made"]
    if not rows:
        raise InputError(
            f"{args.media} has no picture: nothing can be measured -> look at the reasons in its index.parquet"
        )
    table = artifacts.read_sequences(args.data, num_items=num_items)
    histories = dict(zip(table["example_id"].to_pylist(), table["history"].to_pylist(), strict=True))
    keys = [None if row["example_id"] is None else row_key(row["example_id"]) for row in rows]
    for row, key in zip(rows, keys, strict=True):
        if key is not None and key not in histories:
            raise InputError(
                f"{args.data} has no row {key} of sequences -> pass the --data that the media was made for"
            )
        named = [*row["item_ids"], *([] if row["target_item"] is None else [row["target_item"]])]
        if far := [item for item in named if not 0 <= item < num_items]:
            raise InputError(
                f"{args.data} has no item {far[0]} -> pass the --data that the media was made for"
            )
    users = [-place - 1 if row["user_id"] is None else row["user_id"] for place, row in enumerate(rows)]
    pictures = [Path(args.media) / (row["poster"] or row["path"]) for row in rows]
    return Media(rows, pictures, [histories.get(key, []) for key in keys], np.array(users))


def similarities(
    args: EvaluateMediaArgs, media: Media, items: pa.Table, scratch: Path
) -> dict[str, np.ndarray]:
    """{name of a measure: float64 [R], NaN where it is unknown}."""
    histories = [history[-args.history :] for history in media.histories]
    targets = [[] if row["target_item"] is None else [row["target_item"]] for row in media.rows]
    shown = [row["item_ids"] for row in media.rows]
    used = sorted({item for group in (*histories, *targets, *shown) for item in group})
    titles = items["title"].to_pylist()
    texts = [row["prompt"] for row in media.rows] + [shown_title(titles[item], item) for item in used]
    vectors = alignment.encode_texts(texts, model=args.model)
    prompts_RD, titles_ND = vectors[: len(media.rows)], vectors[len(media.rows) :]
    pictures_RD = alignment.encode_pictures(media.pictures, model=args.model, scratch=scratch)
    place = {item: number for number, item in enumerate(used)}
    others_RK = alignment.other_rows(media.users_R, count=args.others, seed=args.seed)
    if not others_RK.shape[1]:
        warn(
            f"{args.media}: all pictures are of one user, nobody to compare with -> no `others`, `gap` and `win`"
        )

    def compared(name: str, what_RD: np.ndarray) -> dict[str, np.ndarray]:
        found = alignment.against_others(pictures_RD, what_RD, others_RK)
        return {f"{name}.{part}": values for part, values in found.items()}

    def profile(x_ND: np.ndarray, members: list[list[int]]) -> np.ndarray:
        return alignment.profiles(x_ND, [[place[item] for item in group] for group in members])

    columns = compared("alignment/prompt", prompts_RD)
    columns["alignment/item"] = (pictures_RD * profile(titles_ND, shown)).sum(axis=1)
    columns["alignment/target"] = (pictures_RD * profile(titles_ND, targets)).sum(axis=1)
    columns |= compared("personalisation/titles", profile(titles_ND, histories))
    if args.item_images is not None:
        files = images_of(items, folder=args.item_images)
        pictured_ND = alignment.encode_pictures(
            [files[item] for item in used], model=args.model, scratch=scratch
        )
        columns |= compared("personalisation/pictures", profile(pictured_ND, histories))
    return columns


def shares(index: list[dict[str, Any]], media: Media) -> dict[str, dict[str, float | None]]:
    """Shares of all rows that were made or refused; of what was made, shares that resemble another or show nothing."""
    statuses = Counter(row["status"] for row in index)
    digests = Counter(row["sha256"] for row in media.rows)
    exact = sum(count for count in digests.values() if count > 1)
    hashes, blank = [], 0
    for file in media.pictures:
        picture = open_picture(file)
        hashes.append(difference_hash(picture))
        blank += contrast_of(picture) <= BLANK
    made = len(media.rows)
    return {
        "all/made_share": entry(statuses["made"] / len(index)),
        "all/refused_share": entry(statuses["refused"] / len(index)),
        "all/exact_duplicate_share": entry(exact / made),
        "all/near_duplicate_share": entry(float(near_pairs(hashes).mean())),
        "all/blank_share": entry(blank / made),
    }


def described(
    args: EvaluateMediaArgs, index: list[dict[str, Any]], manifest: dict[str, Any]
) -> dict[str, Any]:
    """What the numbers are of."""
    drawn = index[0]["model"]
    judged = None if args.model is None else Path(args.model).name
    return {
        "media": Path(args.media).resolve().name,
        "type": index[0]["type"],
        "source": index[0]["source"],
        "rows": len(index),
        "drawn_by": drawn,
        "measured_by": judged,
        "random_weights": [name for name in (drawn, judged) if name and name.startswith(TINY)],
        "others": args.others,
        "history": args.history,
        "resamples": args.resamples,
        "seed": args.seed,
        "stage_config_hash": manifest["config_hash"],
    }


if __name__ == "__main__":
    program.run(EvaluateMediaArgs, main)
