"""Downloads from a server of our own: checked, continued, refused; what to place where when there is no network."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch

import pytest

from configs.program import EnvironmentFault, InputError
from data.sources.catalogue import BY_CATEGORY, SETS, RemoteFile, RemoteSet, remote_set
from data.sources.fetch import HostDown, Persistence, fetch, published_digest
from data.sources.unpack import unpack
from tests import publishers
from tests.handmade import call, run

QUICK = Persistence(timeout=5.0, attempts=3, pause=0.0)
ANY = bytes(range(256)) * 5000


@dataclass
class Server:
    """Files by path; stop_after: bytes after which the connection of that many requests breaks."""

    files: dict[str, bytes] = field(default_factory=dict)
    stop_after: list[int] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    ranges: bool = True
    weak: bool = False
    shift: int | None = (
        0  # bytes that a piece begins later than it was asked for; None: it does not say where
    )
    address: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data, begin = state.files.get(self.path), 0
            asked = self.headers.get("Range", "")
            state.asked.append((self.path, asked))
            if data is None:
                return self.send_error(404)
            tag = f'"{hashlib.md5(data).hexdigest()}"'
            if state.weak:  # the date is the version
                tag = f"Sun, 01 Nov 2026 00:00:{data[0] % 60:02d} GMT"
            if asked and state.ranges and self.headers.get("If-Range", tag) == tag:
                begin = int(asked.removeprefix("bytes=").rstrip("-"))
                if begin >= len(data):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(data)}")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                begin += state.shift or 0
            self.send_response(206 if begin else 200)
            if begin and state.shift is not None:
                self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - begin))
            self.send_header("ETag", 'W/"1"' if state.weak else tag)
            if state.weak:
                self.send_header("Last-Modified", tag)
            self.end_headers()
            stop = state.stop_after.pop(0) if state.stop_after else len(data)
            self.wfile.write(data[begin : begin + stop])

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    state.address = f"http://127.0.0.1:{http.server_port}"
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


def md5(data: bytes) -> str:
    return f"md5:{hashlib.md5(data).hexdigest()}"


def test_a_file_comes_whole_and_a_connection_that_breaks_is_taken_up_again(server, tmp_path):
    server.files["/a.bin"], server.stop_after = ANY, [70_000, 300_000]
    assert not fetch(f"{server.address}/a.bin", tmp_path / "a.bin", digest=md5(ANY), patience=QUICK)
    assert (tmp_path / "a.bin").read_bytes() == ANY
    assert [asked for _, asked in server.asked] == ["", "bytes=70000-", "bytes=370000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_half_download_goes_on_in_the_next_run(server, tmp_path, ranges):
    server.files["/a.bin"], server.stop_after = ANY, [100_000, 0, 0]
    with pytest.raises(HostDown, match="ended early 3 times -> run it again"):
        fetch(f"{server.address}/a.bin", tmp_path / "a.bin", digest=md5(ANY), patience=QUICK)
    assert (tmp_path / "a.bin.part").stat().st_size == 100_000 and not (tmp_path / "a.bin").exists()
    server.asked.clear()
    server.ranges = ranges
    assert fetch(f"{server.address}/a.bin", tmp_path / "a.bin", digest=md5(ANY), patience=QUICK)
    assert (tmp_path / "a.bin").read_bytes() == ANY and server.asked == [("/a.bin", "bytes=100000-")]


@pytest.mark.parametrize("shift", [-100, 4096, None])
def test_a_piece_that_begins_elsewhere_is_not_taken(server, tmp_path, shift):
    """There is no checksum that would notice."""
    server.files["/a.bin"], server.stop_after, server.shift = ANY, [100_000], shift
    assert not fetch(f"{server.address}/a.bin", tmp_path / "a.bin", digest="", patience=QUICK)
    assert (tmp_path / "a.bin").read_bytes() == ANY
    assert [asked for _, asked in server.asked] == ["", "bytes=100000-", ""]


@pytest.mark.parametrize("weak", [False, True])
def test_half_of_an_older_version_is_not_continued(server, tmp_path, weak):
    server.weak = weak
    server.files["/a.bin"], server.stop_after = ANY[::-1], [100_000, 0, 0]
    with pytest.raises(HostDown):
        fetch(f"{server.address}/a.bin", tmp_path / "a.bin", digest="", patience=QUICK)
    server.files["/a.bin"] = ANY
    fetch(f"{server.address}/a.bin", tmp_path / "a.bin", digest="", patience=QUICK)
    assert (tmp_path / "a.bin").read_bytes() == ANY


def test_a_half_that_is_damaged_is_fetched_whole_once_more(server, tmp_path):
    server.files["/a.bin"] = ANY
    for rubbish in (b"x" * 1000, b"x" * len(ANY), b"x" * (len(ANY) + 9)):
        (tmp_path / "a.bin").unlink(missing_ok=True)
        (tmp_path / "a.bin.part").write_bytes(rubbish)
        fetch(f"{server.address}/a.bin", tmp_path / "a.bin", digest=md5(ANY), patience=QUICK)
        assert (tmp_path / "a.bin").read_bytes() == ANY


def test_another_checksum_is_refused_and_nothing_stays(server, tmp_path):
    server.files["/a.bin"] = ANY
    with pytest.raises(EnvironmentFault, match=r"a\.bin: md5:\w+, but the publisher says md5:0+ -> removed"):
        fetch(f"{server.address}/a.bin", tmp_path / "a.bin", digest=f"md5:{'0' * 32}", patience=QUICK)
    assert list(tmp_path.iterdir()) == []


def test_hosts_that_are_down_and_files_that_moved(server, tmp_path):
    with pytest.raises(HostDown, match="answers 404"):
        fetch(f"{server.address}/none", tmp_path / "a", digest="", patience=QUICK)
    with pytest.raises(HostDown, match=r"cannot be reached \(.*refused.*place the file by hand"):
        fetch("http://127.0.0.1:9/a", tmp_path / "a", digest="", patience=QUICK)


def test_checksums_beside_the_data(server):
    for text in (f"MD5 (ml.zip) = {'ab' * 16}", f"{'ab' * 16}  ml.zip\n", f"{'AB' * 16} *ml.zip"):
        server.files["/ml.zip.md5"] = text.encode()
        assert published_digest(f"{server.address}/ml.zip.md5", QUICK) == f"md5:{'ab' * 16}"
    server.files["/ml.zip.md5"] = b"<html>moved</html>"
    with pytest.raises(EnvironmentFault, match="names no checksum"):
        published_digest(f"{server.address}/ml.zip.md5", QUICK)


def zipped(names: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(names: dict[str, bytes], *, link: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return out.getvalue()


@pytest.mark.parametrize("make", [zipped, tarred])
def test_archives_are_unpacked_by_name_and_never_outside(tmp_path, make):
    path = tmp_path / ("a.zip" if make is zipped else "a.tar.gz")
    good = {
        "ml-1m/ratings.dat": b"1",
        "ml-1m/movies.dat": b"2",
        "__MACOSX/._movies.dat": b"3",
        "ml-1m/README": b"4",
    }
    path.write_bytes(make(good))
    made = unpack(path, tmp_path, ("ratings.dat", "movies.dat"))
    assert [(file.name, file.read_bytes()) for file in made] == [("ratings.dat", b"1"), ("movies.dat", b"2")]
    for evil in ("../ratings.dat", "/tmp/ratings.dat", "a/../../ratings.dat", "..\\ratings.dat"):
        path.write_bytes(make(good | {evil: b"evil"}))
        with pytest.raises(InputError, match="leads out of it"):
            unpack(path, tmp_path / "none", ("ratings.dat",))
    path.write_bytes(make({"a/ratings.dat": b"1", "b/ratings.dat": b"2"}))
    with pytest.raises(InputError, match="has a file twice"):
        unpack(path, tmp_path, ("ratings.dat",))
    path.write_bytes(make(good))
    with pytest.raises(InputError, match="has no users.dat"):
        unpack(path, tmp_path, ("users.dat",))
    path.write_bytes(make(good)[:60])
    with pytest.raises(InputError, match="is damaged"):
        unpack(path, tmp_path, ("ratings.dat",))


def test_links_in_an_archive_are_not_taken(tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(tarred({"x/README": b"1"}, link="x/ratings.dat"))
    with pytest.raises(InputError, match="has no ratings.dat"):
        unpack(path, tmp_path, ("ratings.dat",))


def test_a_data_set_is_fetched_checked_prepared_and_kept(server, tmp_path, capsys):
    """As a user: an archive with its checksum beside it; a second run finds all in place; a changed file is refused."""
    source = publishers.movielens(tmp_path / "source", "1m", publishers.ratings())
    archive = zipped({f"ml-1m/{path.name}": path.read_bytes() for path in sorted(source.iterdir())})
    server.files |= {"/ml-1m.zip": archive, "/ml-1m.zip.md5": md5(archive).removeprefix("md5:").encode()}
    known = SETS["ml1m"]
    near = replace(known, files=(replace(known.files[0], digest_url=f"{server.address}/ml-1m.zip.md5"),))
    raw = tmp_path / "raw"
    with patch.dict(SETS, ml1m=near):
        call("data.download", "--name", "ml1m", "--output_dir", raw, "--mirror", server.address)
        said = capsys.readouterr().out
        assert "md5 is the publisher's" in said and "is complete (3 files" in said
        assert {path.name for path in raw.iterdir()} == {
            "ratings.dat",
            "movies.dat",
            "users.dat",
            "SHA256SUMS",
        }
        server.asked.clear()
        call("data.download", "--name", "ml1m", "--output_dir", raw, "--mirror", server.address)
        assert server.asked == [], "nothing is fetched twice"
        (raw / "ratings.dat").write_bytes(b"1::1::5::978300760\n")
        with pytest.raises(InputError, match=r"ratings\.dat is not the file that was downloaded"):
            call("data.download", "--name", "ml1m", "--output_dir", raw, "--mirror", server.address)


def test_files_placed_by_hand_are_taken_and_missing_ones_named(tmp_path, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    down = ["--mirror", "http://127.0.0.1:9"]
    with pytest.raises(EnvironmentFault, match="cannot be reached"):
        call("data.download", "--name", "amazon18", "--category", "Games", "--output_dir", raw, *down)
    said = capsys.readouterr().out
    assert (
        f"amazon_v2/categoryFilesSmall/Games_5.json.gz  ->  {raw}/" in said and "meta_Games.json.gz" in said
    )
    for name in ("Games_5.json", "meta_Games.json.gz"):  # one of them unpacked by hand
        (raw / name).write_text(name)
    call("data.download", "--name", "amazon18", "--category", "Games", "--output_dir", raw, *down)
    assert len((raw / "SHA256SUMS").read_text().splitlines()) == 2


def test_an_archive_that_is_there_is_checked_and_unpacked_to_its_end(tmp_path):
    """Placed by hand, or left by a run that was killed between two of its files; no host is asked either way."""
    archive = zipped({"x/log_a.csv": b"1", "x/log_b.csv": b"2"})
    file = RemoteFile("https://127.0.0.1:9/x.zip", md5(archive), members=("log_*.csv",))
    beside = replace(file, digest="", digest_url="https://127.0.0.1:9/x.zip.md5")
    for known in (file, beside):
        raw = tmp_path / f"raw{bool(known.digest)}"
        raw.mkdir()
        (raw / "x.zip").write_bytes(archive)
        (raw / "log_a.csv").write_bytes(b"1")
        with patch.dict(SETS, x=RemoteSet((known,), "hidvae/ml1m", "none")):
            call("data.download", "--name", "x", "--output_dir", raw, "--timeout", 1, "--attempts", 1)
        assert {path.name for path in raw.iterdir()} == {"log_a.csv", "log_b.csv", "SHA256SUMS"}
    (tmp_path / "rawTrue" / "x.zip").write_bytes(archive + b"?")
    other = pytest.raises(InputError, match=r"x\.zip: md5:\w+, but the publisher says md5:")
    with patch.dict(SETS, x=RemoteSet((file,), "hidvae/ml1m", "none")), other:
        call("data.download", "--name", "x", "--output_dir", tmp_path / "rawTrue")


def test_exit_codes_and_consent(tmp_path):
    done = run("data.download", "--name", "yelp_raw", "--output_dir", tmp_path / "y")
    assert done.returncode == 3 and "asks for your consent" in done.stderr and "place by hand" in done.stdout
    done = run("data.download", "--name", "ml_latest", "--output_dir", tmp_path / "y", "--mirror", "near/me")
    assert done.returncode == 2 and "mirror 'near/me' is no address" in done.stderr
    done = run("data.download", "--name", "nothing", "--output_dir", tmp_path / "y")
    assert done.returncode == 2 and "ml1m, ml10m" in done.stderr


def test_the_catalogue_is_in_order():
    for name in [*SETS, *BY_CATEGORY]:
        known: RemoteSet = remote_set(name, "Video_Games" if name in BY_CATEGORY else "")
        assert known.terms and Path("configs", known.config, "prepare.yaml").is_file(), name
        for file in known.files:
            assert file.url.startswith("https://") and isinstance(file, RemoteFile)
            assert known.by_hand or bool(file.members) == file.name.endswith((".zip", ".tar.gz"))
            assert not file.digest or file.digest.split(":")[0] in ("md5", "sha256")
    for name, category in (("amazon18", ""), ("amazon18", "../x"), ("amazon18", "Vidéo"), ("ml1m", "Games")):
        with pytest.raises(InputError):
            remote_set(name, category)
