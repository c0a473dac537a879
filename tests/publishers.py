"""Miniatures of what publishers ship: MovieLens in three forms, KuaiRand, Yelp, P5, with the dirt of the real files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

Rating = tuple[int, int, float, int]
GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
MOVIES = [  # id, title, genres
    (1, "Toy Story (1995)", ["Animation", "Children's", "Comedy"]),
    (3, "Cité des enfants perdus, La (1995)", ["Adventure", "Sci-Fi"]),
    (4, "Star Wars: Episode IV (1977)", ["Sci-Fi", "War"]),
    (7, "unknown", []),
    (9, 'Léon, "The Professional" (1994)', ["Crime"]),
    (12, "Never Rated (2001)", ["Drama"]),
]


def ratings(*, users: int = 30, seed: int = 5) -> list[Rating]:
    """Whole stars, users out of order in time, ties in time, and one user with a single rating."""
    rng = random.Random(seed)
    rows = []
    for user in range(1, users + 1):
        begin = 900_000_000 + rng.randrange(10**7)
        for movie in rng.choices([1, 3, 4, 7, 9], k=1 if user == 2 else rng.randrange(3, 25)):
            rows.append(
                (user, movie, float(rng.randrange(1, 6)), begin + rng.choice([0, 0, 60, 86400, 10**6]))
            )
    return rows


def movielens(folder: Path, form: str, rows: Iterable[Rating]) -> Path:
    """A release as `100k`, `1m` (Latin-1) or `csv` (UTF-8, gzip)."""
    folder.mkdir(parents=True)
    if form == "100k":
        write(folder / "u.data", "".join(f"{u}\t{m}\t{int(r)}\t{t}\n" for u, m, r, t in rows))
        lines = [
            f"{m}|{title}|01-Jan-1995||http://x|{'|'.join(str(int(g in genres)) for g in GENRES_100K)}\n"
            for m, title, genres in MOVIES
        ]
        (folder / "u.item").write_bytes("".join(lines).encode("latin-1"))
        write(folder / "u.user", "1|24|M|technician|85711\n2|53|F|other|94043\n")
    elif form == "1m":
        write(folder / "ratings.dat", "".join(f"{u}::{m}::{int(r)}::{t}\n" for u, m, r, t in rows))
        lines = [f"{m}::{title}::{'|'.join(genres)}\n" for m, title, genres in MOVIES]
        (folder / "movies.dat").write_bytes("".join(lines).encode("latin-1"))
        write(folder / "users.dat", "1::F::1::10::48067\n")
    else:
        table(folder / "ratings.csv.gz", ["userId", "movieId", "rating", "timestamp"], rows)
        listed = [(m, title, "|".join(genres) or "(no genres listed)") for m, title, genres in MOVIES]
        table(folder / "movies.csv.gz", ["movieId", "title", "genres"], listed)
    return folder


Click = tuple[int, int, int, int]


def kuairand(folder: Path, *, users: int = 12, videos: int = 40, seed: int = 7) -> list[Click]:
    """Three logs with their parts out of order, captions and categories with gaps; returns (user, video, ms, is_click)."""
    rng = random.Random(seed)
    rows = [
        (
            user,
            rng.randrange(videos),
            1_649_347_200_000 + rng.randrange(10**6) * 1000 + rng.randrange(1000),
            int(rng.random() < 0.7),
        )
        for user in range(users)
        for _ in range(rng.randrange(2, 60))
    ]
    rng.shuffle(rows)
    columns = ["user_id", "video_id", "date", "hourmin", "time_ms", "is_click", "is_like"]
    names = [
        "log_standard_4_08_to_4_21_1k.csv",
        "log_standard_4_22_to_5_08_1k.csv",
        "log_random_4_22_to_5_08_1k.csv",
    ]
    for part, name in enumerate(names):
        told = [(u, v, 20220408, 1200, t, c, 0) for u, v, t, c in rows[part::3]]
        table(folder / "data" / name, columns, told)
    captions = [(v, "" if v % 9 == 0 else f'视频, {v} "quoted"\nsecond line') for v in range(videos)]
    table(folder / "kuairand_video_captions.csv", ["final_video_id", "caption"], captions)
    levels = ["first", "second", "third"]
    columns = [
        "final_video_id",
        *(f"{level}_level_category_{kind}" for level in levels for kind in ("id", "name")),
    ]
    told = [
        (
            v,
            v % 3,
            f"top{v % 3}",
            5,
            "UNKNOWN" if v % 5 == 0 else f"middle{v % 4}",
            9,
            "UNKNOWN" if v % 2 else f"leaf{v}",
        )
        for v in range(videos)
    ]
    table(folder / "kuairand_video_categories.csv", columns, told)
    ordered = [row for part in (0, 1, 2) for row in rows[part::3]]
    return ordered


def yelp(folder: Path, *, users: int = 20, seed: int = 9) -> list[tuple[str, str, float, int]]:
    """Reviews and businesses with a duplicate business, one unlisted, a broken line; returns (user, business, stars, second)."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    rows = [
        (
            f"u{user}",
            f"b{rng.randrange(8)}",
            float(rng.randrange(1, 6)),
            1_546_300_800 + rng.randrange(365) * 86400 + rng.randrange(86400),
        )
        for user in range(users)
        for _ in range(rng.randrange(1, 12))
    ]
    lines = [
        json.dumps({"review_id": "r", "user_id": u, "business_id": b, "stars": s, "text": "good\nfood",
                    "date": datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M:%S")})
        for u, b, s, t in rows
    ]  # fmt: skip
    broken = ['{"user_id": "u1", "business_id": "b1", "stars": 3.0, "date": "last summer"}']
    write(folder / "yelp_academic_dataset_review.json", "\n".join(lines + broken) + "\n")
    shops = [
        {"business_id": f"b{n}", "name": f"Shop &amp; Co {n}", "address": f"{n} Main St", "city": "Reno", "state": "NV",
         "categories": None if n == 3 else "Bars, Nightlife"}
        for n in range(7)
    ]  # fmt: skip
    shops.append(shops[2] | {"name": "Another name"})
    write(folder / "yelp_academic_dataset_business.json.gz", "\n".join(map(json.dumps, shops)) + "\n")
    return rows


def p5(folder: Path, *, users: int = 12, items: int = 15, seed: int = 3) -> dict[str, list[str]]:
    """P5's archive of Amazon 2014: numbers from 1, Python literals, an item without metadata, one twice; {reviewer: ASINs}."""
    rng = random.Random(seed)
    asins = {str(n): f"B{n:05d}" for n in range(1, items + 1)}
    people = {str(n): f"A{n}" for n in range(1, users + 1)}
    walks = {user: [str(rng.randrange(1, items)) for _ in range(rng.randrange(2, 9))] for user in people}
    text = "".join(f"{user} {' '.join(walk)}\n" for user, walk in walks.items())
    write(folder / "sequential_data.txt", text)
    maps = {
        "user2id": {name: n for n, name in people.items()},
        "item2id": {name: n for n, name in asins.items()},
    }
    write(folder / "datamaps.json", json.dumps(maps | {"id2user": people, "id2item": asins}))
    shown = [
        {"asin": asin, "title": f"Mom\'s lamp &amp; {n}", "brand": "Acme", "price": 3.5,
         "categories": [["Beauty", f"Level {int(n) % 3}"]], "salesRank": {"Beauty": int(n)}}
        for n, asin in asins.items() if n != "4"
    ]  # fmt: skip
    shown += [shown[0] | {"title": "Another name"}, {"asin": "B99999", "title": "Nobody's"}]
    write(folder / "meta.json.gz", "\n".join(map(repr, shown)) + "\n")
    write(folder / "item2attributes.json", json.dumps({n: [int(n), 7] for n in asins if n != "5"}))
    return {people[user]: [asins[item] for item in walk] for user, walk in walks.items()}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def table(path: Path, columns: list[str], rows: Iterable[Iterable[object]]) -> None:
    """A csv file with quotes where needed, as publishers write them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write(path, text.getvalue())


def goodreads(folder: Path, *, users: int = 15, seed: int = 4) -> list[tuple[str, str, int, int, bool]]:
    """Interactions, books and authors of the UCSD Book Graph with a broken line and a book that is listed nowhere; returns (user, book,
    rating, second, read)."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    rows, lines = [], []
    for user in range(users):
        for _ in range(rng.randrange(1, 9)):
            second = 1_300_000_000 + rng.randrange(10**8)
            row = (f"user{user}", str(100 + rng.randrange(7)), rng.randrange(6), second, rng.random() < 0.7)
            rows.append(row)
            zone = rng.choice((-7, 0, 2))
            local = datetime.fromtimestamp(second, timezone(timedelta(hours=zone)))
            date = local.strftime("%a %b %d %H:%M:%S %z %Y")
            lines.append(json.dumps({"user_id": row[0], "book_id": row[1], "is_read": row[4], "rating": row[2], "date_added": date,
                                     "read_at": ""}))  # fmt: skip
    broken = [
        '{"user_id": "user1", "book_id": "101", "is_read": true, "rating": 3, "date_added": "last summer"}'
    ]
    write(folder / "goodreads_interactions_poetry.json.gz", "\n".join(lines + broken) + "\n")
    books = [
        {"book_id": str(100 + n), "title": f"Poems &amp; Prose {n}", "description": "Verses", "authors": [{"author_id": "9", "role": ""}],
         "popular_shelves": [{"count": "90", "name": "to-read"}, {"count": "5", "name": "verse"}, {"count": "40", "name": "poetry"}]}
        for n in range(6)
    ]  # fmt: skip
    write(folder / "goodreads_books_poetry.json", "\n".join(map(json.dumps, books)) + "\n")
    write(folder / "goodreads_book_authors.json", json.dumps({"author_id": "9", "name": "A. Poet"}) + "\n")
    return rows


def mind(folder: Path) -> dict[str, list[str]]:
    """Two parts of MIND whose impressions are out of order; returns every user's articles in order (N9 is not in news.tsv)."""
    parts = {
        "MINDsmall_dev": ["1\tU1\t11/15/2019 8:00:00 AM\tN1 N2\tN3-0 N4-1", "2\tU3\t11/15/2019 9:00:00 AM\t\tN1-1 N2-1"],
        "MINDsmall_train": ["1\tU1\t11/14/2019 1:00:00 PM\tN1 N2\tN5-1 N3-0", "2\tU1\t11/14/2019 1:00:00 AM\tN1 N2\tN6-1",
                            "3\tU2\t11/12/2019 12:30:00 AM\tN2 N9\tN3-0 N1-0"],
    }  # fmt: skip
    for name, lines in parts.items():
        (folder / name).mkdir(parents=True)
        write(folder / name / "behaviors.tsv", "\n".join(lines) + "\n")
        told = [f'N{n}\tnews\tnewsworld\tTitle "{n}\tAbstract\thttps://x\t[]\t[]' for n in range(1, 7)]
        write(folder / name / "news.tsv", "\n".join(told) + "\n")
    return {"U1": ["N1", "N2", "N6", "N5", "N4"], "U2": ["N2"], "U3": ["N1", "N2"]}
