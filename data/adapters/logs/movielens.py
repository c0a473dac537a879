"""Adapter movielens: the releases 100k, 1M, 10M, and 20M, 25M, 32M and latest, told apart by their files.

  100k        u.data (tabs)        u.item (`|`, Latin-1, genres as 0 and 1)     u.user
  1M, 10M     ratings.dat (`::`)   movies.dat (Latin-1)                         users.dat (1M)
  later ones  ratings.csv          movies.csv

Items keep the order of the movie file, those without a rating too, as long as nothing is filtered. A title's year becomes a
column; `categories` are the genres, `genre_flags` the 18 of HiD-VAE as 0 and 1 in the order of GENRES.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.program import InputError
from data.adapters.contract import Loaded, RawLines, first_of_each
from data.adapters.item_text import clean_text
from data.adapters.logs.delimited import Layout, Log, cells, cells_with, lines_with
from data.adapters.logs.options import MovieLensOptions
from data.shaping.assemble import Coded, Funnel
from data.shaping.coding import dense_by_first_appearance
from data.shaping.findings import Finding

GENRES = (
    "Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "Film-Noir",
    "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
NONE = "(no genres listed)"
_YEAR = re.compile(r"^(.*\S)\s*\((\d{4})\)$", re.DOTALL)
_FLAGS = ("unknown", *GENRES)


@dataclass(frozen=True)
class Release:
    """The files of one kind of release, and what their columns are called."""

    ratings: str
    items: str
    users: str
    layouts: tuple[Layout, Layout, Layout]
    columns: dict[str, str]
    item: str = "movieId"


_RATING = {"user": "userId", "item": "movieId", "rating": "rating", "time": "timestamp"}
_NAMED = tuple(_RATING.values())
RELEASES = (
    Release(
        "u.data", "u.item", "u.user",
        (
            Layout("\t", _NAMED),
            Layout("|", ("movieId", "title", "released", "video", "url", *_FLAGS)),
            Layout("|", ("userId", "age", "gender", "occupation", "zip")),
        ),
        _RATING,
    ),
    Release(
        "ratings.dat", "movies.dat", "users.dat",
        (
            Layout("::", _NAMED), Layout("::", ("movieId", "title", "genres")),
            Layout("::", ("userId", "gender", "age", "occupation", "zip")),
        ),
        _RATING,
    ),
    Release(
        "ratings.csv", "movies.csv", "",
        (Layout(",", quoted=True), Layout(",", quoted=True), Layout(",", quoted=True)), _RATING,
    ),
)  # fmt: skip


def _found(raw: str | Path, name: str) -> Path | None:
    """A file of the folder, plain or gzipped."""
    places = [Path(raw) / name, Path(raw) / f"{name}.gz"] if name else []
    return next((path for path in places if path.is_file()), None)


def release_of(raw: str | Path) -> tuple[Release, Path, Path, Path | None]:
    """(the release in a folder, its ratings, movies and users); InputError when there is none, or half of one."""
    for release in RELEASES:
        if ratings := _found(raw, release.ratings):
            items = _found(raw, release.items)
            if items is None:
                raise InputError(
                    f"missing file: {Path(raw) / release.items} beside {ratings.name} -> it has the titles"
                )
            return release, ratings, items, _found(raw, release.users)
    names = ", ".join(release.ratings for release in RELEASES)
    raise InputError(
        f"no MovieLens ratings in {raw}: none of {names} (or .gz) -> set RAW to the unpacked folder"
    )


def files(raw: str | Path, options: MovieLensOptions) -> list[Path]:
    """Ratings, movies, users where there are any."""
    return [path for path in release_of(raw)[1:] if path is not None]


def read(raw: str | Path, options: MovieLensOptions, funnel: Funnel) -> tuple[Loaded | None, list[Finding]]:
    """The folder as the contract wants it."""
    release, ratings, movies, people = release_of(raw)
    log = Log(
        options.time_unit, "movielens.time_unit", (options.scale[0], options.scale[1]), "movielens.scale"
    )
    findings = log.read(ratings, release.layouts[0], release.columns) + log.findings()
    if findings:
        return None, findings
    rows, user_ids, item_ids = log.finish()
    funnel.count("ratings read", rows)
    table = _movies(movies, release, funnel)
    if options.doubled:
        rows = dataclasses.replace(rows, rating=np.rint(rows.rating * 2).astype(np.float32))
    rows, codes = _numbered(rows, item_ids, table["raw_id"].combine_chunks(), funnel)
    users = _people(people, release, user_ids.take(pa.array(codes)))
    return Loaded(
        rows, lambda codes: table.take(pa.array(codes)), users, table.num_rows, keeps_codes=True
    ), []


def _numbered(rows: Coded, item_ids: pa.Array, listed: pa.Array, funnel: Funnel) -> tuple[Coded, np.ndarray]:
    """(rows whose item codes are rows of the movie file, the old code of every user who is left).

    Ratings of movies that it does not have are left out and counted.
    """
    place = pc.index_in(item_ids, value_set=listed).fill_null(-1).to_numpy().astype(np.int32)
    rows = dataclasses.replace(rows, item=place[rows.item])
    users = np.arange(int(rows.user.max(initial=-1)) + 1)
    if lost := int((rows.item < 0).sum()):
        funnel.note(f"{lost} ratings are of movies that the movie file does not list: left out")
        funnel.facts["ratings_of_unknown_movies"] = lost
        rows = rows.take(np.flatnonzero(rows.item >= 0))
        user, users = dense_by_first_appearance(rows.user, len(users))
        rows = dataclasses.replace(rows, user=user)
        funnel.count("movies with a title", rows)
    return rows, users


def _movies(path: Path, release: Release, funnel: Funnel) -> pa.Table:
    """items.parquet without item_id, in the file's order; of several lines of a movie the first counts."""
    listed, latin = cells(path, release.layouts[1])
    if latin:
        funnel.facts["latin_1_files"] = [path.name]
    wanted = {"movieId", "title"} - set(listed[0] if listed else ())
    if wanted:
        raise InputError(f"{path}: no column {sorted(wanted)[0]} -> is it a movie file of MovieLens?")
    movies = {row["movieId"]: row for row in reversed(listed)}
    movies = {key: movies[key] for key in dict.fromkeys(row["movieId"] for row in listed)}
    if len(listed) > len(movies):
        funnel.facts["repeated_movie_lines"] = len(listed) - len(movies)
    titles = [title_and_year(row["title"]) for row in movies.values()]
    genres = [_genres(row) for row in movies.values()]
    return pa.table(
        {
            "raw_id": pa.array(list(movies), pa.string()),
            "title": pa.array([title for title, _ in titles], pa.string()),
            "description": pa.array([""] * len(movies), pa.string()),
            "categories": pa.array(genres, pa.list_(pa.string())),
            "brand": pa.array([""] * len(movies), pa.string()),
            "year": pa.array([year for _, year in titles], pa.int16()),
            "genre_flags": pa.array([genre_flags(row) for row in genres], pa.list_(pa.int8())),
        }
    )


def title_and_year(text: str) -> tuple[str, int | None]:
    """The cleaned title without its year, and the year.

    >>> title_and_year("City of Lost Children, The (1995)"), title_and_year("unknown")
    (('City of Lost Children, The', 1995), ('unknown', None))
    """
    text = clean_text(text)
    match = _YEAR.match(text)
    return (match[1], int(match[2])) if match else (text, None)


def _genres(row: dict[str, str]) -> list[str]:
    if "genres" in row:
        return [clean_text(name) for name in row["genres"].split("|") if name and name != NONE]
    return [name for name in GENRES if row.get(name) == "1"]


def genre_flags(genres: Sequence[str]) -> list[int]:
    """18 values 0 or 1 in the order of GENRES; 1M's "Children's" is Children, other names have no flag.

    >>> genre_flags(["Children's", "War", "IMAX"])
    [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    """
    present = {name.removesuffix("'s") for name in genres}
    return [int(name in present) for name in GENRES]


def _people(path: Path | None, release: Release, ids: pa.Array) -> pa.Table:
    """users.parquet without user_id: the raw id, and what the release says of users."""
    if path is None:
        return pa.table({"raw_id": ids})
    known = {row["userId"]: row for row in cells(path, release.layouts[2])[0]}
    names = release.layouts[2].names[1:]
    told = [known.get(key, {}) for key in ids.to_pylist()]
    return pa.table({"raw_id": ids} | {name: [row.get(name) for row in told] for name in names})


def find_lines(
    raw: str | Path, options: MovieLensOptions, *, user: str | None, items: Sequence[str]
) -> RawLines:
    """The user's ratings and the first line of every movie."""
    release, ratings, movies, _ = release_of(raw)
    event = ("movieId", "timestamp", 1000 if options.time_unit == "ms" else 1)
    users = [] if user is None else [user]
    return RawLines(
        list(lines_with(ratings, release.layouts[0], "userId", users, event=event)),
        first_of_each(cells_with(movies, release.layouts[1], "movieId", items)),
    )
