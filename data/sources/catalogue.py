"""Where publishers keep the raw files that stage 01 reads, by the name of the data set.

A file has the publisher's checksum where there is one: written here, or fetched from beside the file (`digest_url`). Of a file
without one, the first download's own is kept (SHA256SUMS) and checked from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from configs.program import InputError


@dataclass(frozen=True)
class RemoteFile:
    """One file of a publisher. digest: `md5:...` or `sha256:...`; members: file names to take out of an archive (patterns)."""

    url: str
    digest: str = ""
    digest_url: str = ""
    members: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class RemoteSet:
    """A data set: its files, the config that reads them, the publisher's terms; by_hand: why nothing is fetched."""

    files: tuple[RemoteFile, ...]
    config: str
    terms: str
    by_hand: str = ""


GROUPLENS = "https://files.grouplens.org/datasets/movielens"
P5 = "https://drive.google.com/file/d/1qGxgmx7G_WB7JE4Cn_bEcZ_o_NAJLE3G"  # P5_data.zip
ZENODO = "https://zenodo.org/records"
AMAZON14 = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
UCSD = "https://mcauleylab.ucsd.edu/public_datasets/data"
MOVIELENS_TERMS = "GroupLens: research use, no redistribution for profit; cite Harper and Konstan 2015"
AMAZON_TERMS = "research use; cite He and McAuley 2016 (2014), Ni et al. 2019 (2018), Hou et al. 2024 (2023)"
KUAIRAND_TERMS = "CC BY-SA 4.0; cite Gao et al. 2022"
SUPPLEMENT = {
    "kuairand_video_captions.csv": "md5:9fd4e7587ffd0c8dc289d013858fb229",
    "kuairand_video_categories.csv": "md5:8a4c772d3d8f8cf65fa1e1eb896f4177",
}


def _movielens(release: str, members: tuple[str, ...], config: str, *, md5: bool = True) -> RemoteSet:
    url = f"{GROUPLENS}/{release}.zip"
    file = RemoteFile(url, digest_url=f"{url}.md5" if md5 else "", members=members)
    return RemoteSet((file,), config, MOVIELENS_TERMS)


def _kuairand(size: str, archive_md5: str) -> RemoteSet:
    archive = RemoteFile(
        f"{ZENODO}/10439422/files/KuaiRand-{size}.tar.gz",
        f"md5:{archive_md5}",
        members=("log_*.csv", "*_features_*.csv"),
    )
    texts = tuple(RemoteFile(f"{ZENODO}/18159199/files/{name}", md5) for name, md5 in SUPPLEMENT.items())
    return RemoteSet((archive, *texts), "hidvae/kuairand1k", KUAIRAND_TERMS)


def _amazon14(category: str, config: str = "template_amazon") -> RemoteSet:
    names = (f"reviews_{category}_5.json.gz", f"meta_{category}.json.gz")
    return RemoteSet(tuple(RemoteFile(f"{AMAZON14}/{name}") for name in names), config, AMAZON_TERMS)


def _p5(folder: str) -> RemoteSet:
    archive = RemoteFile(P5, members=("sequential_data.txt", "datamaps.json", "meta.json.gz"))
    by_hand = f"Google Drive asks before it gives P5_data.zip, of which the folder {folder} is meant"
    return RemoteSet((archive,), f"hidvae/{folder}14_p5", AMAZON_TERMS, by_hand)


def _amazon18(category: str) -> RemoteSet:
    names = (f"categoryFilesSmall/{category}_5.json.gz", f"metaFiles2/meta_{category}.json.gz")
    return RemoteSet(
        tuple(RemoteFile(f"{UCSD}/amazon_v2/{name}") for name in names), "template_amazon", AMAZON_TERMS
    )


def _amazon23(category: str) -> RemoteSet:
    names = (f"review_categories/{category}.jsonl.gz", f"meta_categories/meta_{category}.jsonl.gz")
    return RemoteSet(
        tuple(RemoteFile(f"{UCSD}/amazon_2023/raw/{name}") for name in names), "template_amazon", AMAZON_TERMS
    )


def _amazon23_5core(category: str) -> RemoteSet:
    splits = (f"{category}.{split}.csv.gz" for split in ("train", "valid", "test"))
    files = [RemoteFile(f"{UCSD}/amazon_2023/benchmark/5core/last_out/{name}") for name in splits]
    files.append(RemoteFile(f"{UCSD}/amazon_2023/raw/meta_categories/meta_{category}.jsonl.gz"))
    return RemoteSet(tuple(files), "template_amazon_csv", AMAZON_TERMS)


_CSV, _DAT = ("ratings.csv", "movies.csv"), ("ratings.dat", "movies.dat", "users.dat")
SETS: dict[str, RemoteSet] = {
    "ml100k_raw": _movielens("ml-100k", ("u.data", "u.item", "u.user"), "hidvae/ml1m"),
    "ml1m": _movielens("ml-1m", _DAT, "hidvae/ml1m"),
    "ml10m": _movielens("ml-10m", _DAT[:2], "hidvae/ml1m"),
    "ml20m": _movielens("ml-20m", _CSV, "hidvae/ml32m"),
    "ml25m": _movielens("ml-25m", _CSV, "hidvae/ml32m"),
    "ml32m": _movielens("ml-32m", _CSV, "hidvae/ml32m"),
    # It changes from time to time, and has no checksum.
    "ml_latest": _movielens("ml-latest-small", _CSV, "hidvae/ml_latest", md5=False),
    "kuairand1k": _kuairand("1K", "6b0b9c8222d67fcd4c676218edca3f1f"),
    "kuairand27k": _kuairand("27K", "3e3c799a24e2d23a4d2c757fbf9adf59"),
    "beauty14_raw": _amazon14("Beauty", "hidvae/beauty14_raw"),
    "sports14": _amazon14("Sports_and_Outdoors", "hidvae/sports14"),
    "toys14_raw": _amazon14("Toys_and_Games", "hidvae/toys14_raw"),
    "beauty14_p5": _p5("beauty"),
    "sports14_p5": _p5("sports"),
    "toys14_p5": _p5("toys"),
    "toys18_raw": replace(_amazon18("Toys_and_Games"), config="mimigenrec/toys18_raw"),
    "yelp_raw": RemoteSet(
        tuple(
            RemoteFile(
                f"https://business.yelp.com/data/resources/open-dataset/yelp_academic_dataset_{name}.json"
            )
            for name in ("review", "business")
        ),
        "minionerec/yelp_raw",
        "Yelp data set terms, academic use",
        by_hand="the publisher asks for your consent on https://business.yelp.com/data/resources/open-dataset/",
    ),
}
BY_CATEGORY: dict[str, Callable[[str], RemoteSet]] = {
    "amazon14": _amazon14, "amazon18": _amazon18, "amazon23": _amazon23, "amazon23_5core": _amazon23_5core
}  # fmt: skip


def remote_set(name: str, category: str = "") -> RemoteSet:
    """The data set of a name; InputError for another name, or a category that is missing or too much.

    >>> [file.name for file in remote_set("amazon18", "Video_Games").files]
    ['Video_Games_5.json.gz', 'meta_Video_Games.json.gz']
    """
    if name in BY_CATEGORY:
        if not (category.isascii() and category.replace("_", "").isalnum()):
            raise InputError(
                f"{name} is a set of categories, not {category!r} -> name one: --category Video_Games"
            )
        return BY_CATEGORY[name](category)
    if name not in SETS:
        raise InputError(f"no download is known for {name!r} -> one of {', '.join([*SETS, *BY_CATEGORY])}")
    if category:
        raise InputError(f"{name} has no categories -> leave --category {category} out")
    return SETS[name]
