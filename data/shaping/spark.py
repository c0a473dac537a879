"""The k-core of an interaction table that is too large for one machine, on Spark: what stage 01 reads is then its survivors.

    with survivors(raw, interactions="interactions.parquet", user="user_id", item="item_id", ...) as reduced: read(reduced)

The k-core of all rows holds every k-core of fewer rows, so what comes after it (a time window, k-core again, order, split,
windows) gives the tables of the whole file, bit for bit. Rows stay in the order of the files, which is what first appearance
means. Interactions are one parquet file. Needs pyspark and Java 17
(requirements-cluster.txt); the master is that of SPARK_MASTER, else this machine (`local[*]`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from configs.program import EnvironmentFault, InputError, say

ROUNDS = 1000
BATCH_ROWS = 1 << 20


@contextmanager
def survivors(
    raw: str | Path, *, interactions: str, others: list[str], user: str, item: str, user_k: int, item_k: int
) -> Iterator[Path]:
    """A folder like `raw` whose interactions are those in the k-core; gone when the block ends.

    others: further files of the folder, which come along as links. InputError for interactions that are no parquet, null ids, or
    nothing left; EnvironmentFault without pyspark or Java.
    """
    source = Path(raw) / interactions
    if source.suffix != ".parquet":
        raise InputError(f"{source}: engine spark reads parquet -> convert it first")
    if find_spec("pyspark") is None:
        raise EnvironmentFault(
            "engine spark needs pyspark, which is not installed -> pip install -r requirements-cluster.txt"
        )
    with tempfile.TemporaryDirectory(dir=os.environ.get("SPARK_SCRATCH")) as place:
        folder = Path(place, "raw")
        for name in others:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to((Path(raw) / name).resolve())
        target = folder / interactions
        target.parent.mkdir(parents=True, exist_ok=True)
        parts = Path(place, "parts")
        session = _session()
        try:
            _write_core(session, source.resolve(), parts, user=user, item=item, user_k=user_k, item_k=item_k)
        finally:
            session.stop()
        _join(parts, target)
        yield folder


def _session() -> Any:
    from pyspark.errors import PySparkRuntimeError
    from pyspark.sql import SparkSession

    options = {
        "spark.sql.session.timeZone": "UTC", "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
        "spark.ui.enabled": "false", "spark.sql.adaptive.enabled": "true", "spark.log.level": "ERROR",
    }  # fmt: skip
    master = os.environ.get("SPARK_MASTER", "local[*]")
    if master.startswith("local"):  # Spark's 200 parts are for many machines
        options["spark.sql.shuffle.partitions"] = str(2 * (os.cpu_count() or 1))
    builder = SparkSession.builder.appName("k-core").master(master)
    for name, value in options.items():
        builder = builder.config(name, value)
    try:
        return builder.getOrCreate()
    except PySparkRuntimeError as error:
        text = " ".join(str(error).split())[:120]
        raise EnvironmentFault(
            f"Spark does not start ({text}) -> is Java 17 there? JAVA_HOME names it"
        ) from error


def _write_core(
    session: Any, source: Path, parts: Path, *, user: str, item: str, user_k: int, item_k: int
) -> None:
    """Rounds of two semi-joins until nothing drops; the rows in the order of the files, as part files in that order."""
    from pyspark.sql import functions as F

    read = session.read.parquet(str(source))
    missing = {user, item} - set(read.columns)
    if missing:
        raise InputError(
            f"{source} has no column {min(missing)} -> tables.interactions.columns says what it is called"
        )
    if "order" in read.columns:
        raise InputError(
            f"{source} has a column order, which must have no gaps -> leave it out to go by time, or engine own"
        )
    place = ["__file", "__row"]
    rows = read.select(
        "*", F.col("_metadata.file_path").alias(place[0]), F.col("_metadata.row_index").alias(place[1])
    )
    if rows.filter(F.col(user).isNull() | F.col(item).isNull()).limit(1).count():
        raise InputError(f"{source}: null ids -> python -m data.validate names them")
    left = before = rows.select(user, item, *place).localCheckpoint()
    count, sizes = before.count(), []
    for _ in range(ROUNDS):
        sizes.append(count)
        for name, least in ((user, user_k), (item, item_k)):
            if least > 1:
                enough = left.groupBy(name).count().filter(F.col("count") >= least).select(name)
                left = left.join(enough, name, "left_semi")
        left = left.localCheckpoint()
        count = left.count()
        if count == sizes[-1]:
            break
    say(
        f"prepare: spark: k-core user_k={user_k} item_k={item_k}: {' -> '.join(f'{size:,}' for size in [*sizes[:4], count])} rows"
    )
    if not count:
        raise InputError(f"{source}: the k-core user_k={user_k} item_k={item_k} leaves nothing -> lower them")
    kept = rows.join(left.select(*place), place, "left_semi").orderBy(*place).drop(*place)
    kept.write.parquet(str(parts))


def _join(parts: Path, target: Path) -> None:
    """One parquet file of Spark's part files, in their order, piece by piece."""
    import pyarrow.parquet as pq

    from data.store.parquet import PARQUET, read_batches

    writer = None
    for part in sorted(parts.glob("part-*.parquet")):
        for batch in read_batches(part, rows=BATCH_ROWS):
            writer = writer or pq.ParquetWriter(target, batch.schema, **PARQUET)
            writer.write_batch(batch)
    if writer is not None:
        writer.close()
