"""Raw files of a known data set, fetched from their publisher and checked, ready for stage 01.

reads   the publisher's server, or the files that you placed by hand
writes  <output_dir>/: the files that the adapter reads, and SHA256SUMS (`sha256sum -c` reads it)

Archives are unpacked by file name and removed. A half download goes on where it stopped; a file that is there already is checked
against SHA256SUMS, and one that you placed by hand is taken as it is (an archive of known checksum is checked). Without a network the program ends with exit code 3 and
says what to place where; so it does for data that ask for consent. Nothing else here uses the network.

python -m data.download --name ml1m --output_dir data/ml1m/raw
python -m data.download --name amazon18 --category Video_Games --output_dir data/games/raw
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path

from configs import program
from configs.integrity import sha256
from configs.program import EnvironmentFault, InputError, say
from data.sources.catalogue import RemoteFile, RemoteSet, remote_set
from data.sources.fetch import HostDown, Persistence, digest_of, fetch, published_digest
from data.sources.unpack import unpack

SUMS = "SHA256SUMS"


@dataclass(frozen=True, kw_only=True)
class DownloadArgs:
    """Arguments of data.download."""

    name: str
    """which data set; an unknown name lists all"""
    output_dir: str
    """raw folder that is filled"""
    category: str = ""
    """amazon14, amazon18, amazon23, amazon23_5core: the category as in the publisher's file names, e.g. Video_Games"""
    mirror: str = ""
    """address of a folder that has the same files by name, in place of the publisher's; checksums stay the publisher's"""
    timeout: float = 30.0
    """seconds without a byte after which a connection counts as broken"""
    attempts: int = 5
    """how often a broken connection is taken up again"""

    def __post_init__(self) -> None:
        if self.mirror and not self.mirror.startswith(("http://", "https://")):
            raise InputError(f"mirror {self.mirror!r} is no address -> http://... or https://...")
        if self.timeout <= 0 or self.attempts < 1:
            raise InputError(f"timeout {self.timeout}, attempts {self.attempts} -> above 0")

    @property
    def patience(self) -> Persistence:
        return Persistence(self.timeout, self.attempts)


def read_sums(folder: Path) -> dict[str, str]:
    """{file name: sha256} of SHA256SUMS, {} without one."""
    path = folder / SUMS
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def write_sums(folder: Path, sums: dict[str, str]) -> None:
    temporary = folder / f"{SUMS}.part"
    temporary.write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))
    temporary.replace(folder / SUMS)


def present(folder: Path, file: RemoteFile, sums: dict[str, str]) -> list[Path]:
    """The files in the folder that a remote file gives, when all are there; InputError when one is not what it was.

    An archive that is still there was not unpacked to its end.
    """
    if file.members and (folder / file.name).exists():
        return []
    patterns = file.members or (file.name,)
    found = {
        pattern: [
            path
            for path in sorted(folder.iterdir())
            if path.is_file()
            and fnmatch.fnmatchcase(path.name.removesuffix(".gz"), pattern.removesuffix(".gz"))
        ]
        for pattern in patterns
    }
    if not all(found.values()):
        return []
    paths = [path for group in found.values() for path in group]
    for path in paths:
        if path.name in sums and sha256(path) != sums[path.name]:
            raise InputError(
                f"{path} is not the file that was downloaded ({SUMS} differs) -> remove it, or its line there"
            )
    return paths


def obtain(folder: Path, file: RemoteFile, args: DownloadArgs) -> list[Path]:
    """Fetch one file, unpack it where it is an archive; one that was placed by hand is checked where its checksum is known here."""
    url = f"{args.mirror.rstrip('/')}/{file.name}" if args.mirror else file.url
    target = folder / file.name
    if target.exists():
        require_digest(target, file.digest)
    else:
        digest = file.digest or (published_digest(file.digest_url, args.patience) if file.digest_url else "")
        resumed = fetch(url, target, digest=digest, patience=args.patience)
        checked = f"{digest.split(':')[0]} is the publisher's" if digest else "the publisher has no checksum"
        say(f"download: {url}{' (continued)' if resumed else ''}: {target.stat().st_size:,} bytes, {checked}")
    if not file.members:
        return [target]
    made = unpack(target, folder, file.members)
    target.unlink()
    return made


def require_digest(path: Path, digest: str) -> None:
    """InputError for a file that is not what its publisher says; "" says nothing."""
    if digest and (found := digest_of(path, digest.split(":")[0])) != digest:
        raise InputError(f"{path}: {found}, but the publisher says {digest} -> get the file again")


def placement(known: RemoteSet, folder: Path) -> str:
    """What to place where, one line per file."""
    lines = []
    for file in known.files:
        what = f"{', '.join(file.members)} of {file.url}" if file.members else file.url
        lines.append(f"  {what}  ->  {folder}/")
    return "\n".join(lines)


def main(args: DownloadArgs) -> None:
    """Fetch what is not there, check what is, say how it is prepared."""
    known, folder = remote_set(args.name, args.category), Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    sums = read_sums(folder)
    for file in known.files:
        paths = present(folder, file, sums)
        if not paths and known.by_hand:
            say(f"download: {args.name}: {known.by_hand}; place by hand:\n{placement(known, folder)}")
            raise EnvironmentFault(
                f"{args.name}: {known.by_hand} -> place the files in {folder}, then run this again to check them"
            )
        if not paths:
            try:
                paths = obtain(folder, file, args)
            except HostDown as error:
                say(f"download: what to place by hand where there is no network:\n{placement(known, folder)}")
                raise EnvironmentFault(str(error)) from None
        sums |= {path.name: sha256(path) for path in paths if path.name not in sums}
        write_sums(folder, sums)
    say(f"download: {folder} is complete ({len(sums)} files in {SUMS}). Terms: {known.terms}")
    say(
        f"download: next: python -m data.prepare --config configs/{known.config}/prepare.yaml --raw {folder} --output_dir ..."
    )


if __name__ == "__main__":
    program.run(DownloadArgs, main)
