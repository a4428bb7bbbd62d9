"""Photo listing and file access on remote storage: object stores, web servers, and what is not supported."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.inputs import listing
from batch.inputs.listing import Photo
from batch.inputs.sources import Source
from serving.errors import InputError, OutputError, StorageError
from serving.storage import files, remote
from tests.support import object_stores
from tests.support.repository import REPO

pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning"),
]


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        yield {
            "s3": stack.enter_context(object_stores.serve_s3()),
            "gs": stack.enter_context(object_stores.serve_gs()),
        }


@pytest.fixture(params=object_stores.KINDS)
def top(request: pytest.FixtureRequest, servers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """New directory on each kind of object store."""
    return object_stores.new_base_path(request.param, monkeypatch, servers)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> str:
    return object_stores.new_base_path("memory", monkeypatch, {})


@pytest.fixture(scope="module")
def website(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    directory = tmp_path_factory.mktemp("website")
    with object_stores.serve_http(directory) as address:
        yield directory, address


def test_remote_photos_are_listed_and_read(top: str) -> None:
    files.write(f"{top}/a/1.jpg", b"one")
    files.write(f"{top}/a/2.jpg.gz", b"\x1f\x8bnot unpacked")
    files.write(f"{top}/a/.hidden", b"")
    files.write(f"{top}-other/3.jpg", b"three")
    if top.startswith("s3"):  # consoles mark a directory by an empty object whose name ends in a slash
        key = top.removeprefix("s3://bucket/")
        fsspec.filesystem("s3").call_s3("put_object", Bucket="bucket", Key=f"{key}/a/", Body=b"")
    for pattern in (
        f"{top}/a",
        f"{top}/a/",
        f"{top}/**",
        f"{top}/*/*",
        f"{top}/**/*.jp*",
        f"{top}/a/[12].j*",
    ):
        found = listing.find_photos(pattern)
        assert [photo.uri for photo in found] == [f"{top}/a/1.jpg", f"{top}/a/2.jpg.gz"]
    assert listing.find_photos(f"{top}/a/1.jpg") == found[:1]
    assert found[0].size == 3
    assert found[0].modified > 1.6e18
    assert [listing.read_photo(photo) for photo in found] == [b"one", b"\x1f\x8bnot unpacked"]
    with pytest.raises(InputError, match="No photos"):
        listing.find_photos(f"{top}/b")


def test_remote_photo_whose_name_or_directory_is_in_another_unicode_form_is_found(top: str) -> None:
    (composed, decomposed), (_, other) = (
        [unicodedata.normalize(form, name) for form in ("NFC", "NFD")] for name in ("crème", "Käse")
    )
    stored = [
        f"{top}/{composed}/a/{other}.jpg", f"{top}/{decomposed}/a/{other} 2.jpg", f"{top}/{composed}/a/b.jpg",
    ]  # fmt: skip
    for uri in stored:
        files.write(uri, uri[-9:].encode())
    directory = f"{top}/{composed}/a"
    wanted = [
        f"{directory}/Käse.jpg",
        f"{directory}/Käse 2.jpg",
        f"{directory}/b.jpg",
        f"{directory}/gone é.jpg",
    ]
    found = listing.list_directory(directory, wanted)
    assert [found[uri].uri for uri in wanted[:3]] == stored
    assert wanted[3] not in found
    assert [listing.read_photo(photo) for photo in map(found.__getitem__, wanted[:3])] == [
        uri[-9:].encode() for uri in stored
    ]
    files.write(wanted[0], b"composed")  # the name as it is asked for comes first
    assert listing.list_directory(directory, wanted)[wanted[0]].uri == wanted[0]


def test_two_asterisks_match_any_number_of_directories(memory: str) -> None:
    for name in ("1.jpg", "a/2.jpg", "a/b/3.jpg", "a/b/4.png"):
        files.write(f"{memory}/{name}", b"x")

    def names(pattern: str) -> list[str]:
        return [photo.uri.removeprefix(f"{memory}/") for photo in listing.find_photos(f"{memory}/{pattern}")]

    assert names("**/*.jpg") == ["1.jpg", "a/2.jpg", "a/b/3.jpg"]
    assert names("*/**/*.jpg") == ["a/2.jpg", "a/b/3.jpg"]
    assert names("**/b/*") == ["a/b/3.jpg", "a/b/4.png"]
    assert names("a/*") == ["a/2.jpg"]
    assert names("a/**") == ["a/2.jpg", "a/b/3.jpg", "a/b/4.png"]
    assert names("?/?.jpg") == ["a/2.jpg"]


def test_directories_are_listed_one_by_one_and_only_if_they_can_match(memory: str) -> None:
    for label in "abc":
        for number in range(3):
            files.write(f"{memory}/photos/{label}/{number}.jpg", b"x")
    files.write(f"{memory}/photos/a/deep/4.jpg", b"x")
    with object_stores.count_listings() as listed:
        photos = listing.iter_photos(f"{memory}/photos/**")
        next(photos)
        assert len(listed) == 2, "the top and its first directory"
        assert len(list(photos)) == 9
    with object_stores.count_listings() as listed:
        assert len(listing.find_photos(f"{memory}/photos/[ab]/*.jpg")) == 6
    assert len(listed) == 3, "the top, a and b"


def test_remote_files_are_written_listed_and_removed(top: str) -> None:
    files.check_writable(top)
    assert files.list_names(top) == []
    files.write(f"{top}/a.json", b"{}")
    files.write(f"{top}/deep/er/b", b"bb")
    assert files.list_names(top) == ["a.json", "deep"]
    assert dict(files.walk_files(top)) == {"a.json": 2, "deep/er/b": 2}
    assert files.read(f"{top}/a.json") == b"{}"
    with pytest.raises(FileNotFoundError):
        files.read(f"{top}/none")
    with files.create_file(f"{top}/a.json") as file:
        file.write(b"replaced")
    assert files.read(f"{top}/a.json") == b"replaced"
    with pytest.raises(ZeroDivisionError), files.create_file(f"{top}/a.json") as file:
        file.write(b"half" + bytes(1 // 0))
    assert files.read(f"{top}/a.json") == b"replaced"
    files.remove_directory(top)
    files.remove(f"{top}/a.json")
    assert files.list_names(top) == []


@pytest.mark.parametrize("kind", ["local", "memory", "s3"])  # the emulator of gs:// ignores preconditions
def test_only_one_process_creates_a_file(
    kind: str, servers: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    where = str(tmp_path) if kind == "local" else object_stores.new_base_path(kind, monkeypatch, servers)
    assert files.create_if_absent(f"{where}/lease/1", b"mine")
    assert files.create_if_absent(f"{where}/lease/1", b"mine"), "a repeated request finds its own file"
    assert not files.create_if_absent(f"{where}/lease/1", b"theirs")
    assert files.read(f"{where}/lease/1") == b"mine"
    assert files.list_names(f"{where}/lease") == ["1"]


def test_a_file_system_without_links_creates_exclusively_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert files.create_if_absent(f"{tmp_path}/1", b"mine")
    assert not files.create_if_absent(f"{tmp_path}/1", b"theirs")
    assert files.read(f"{tmp_path}/1") == b"mine"


def test_ranges_of_remote_files_are_read(top: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"n": list(range(50_000))})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=1000)
    content = sink.getvalue()
    files.write(f"{top}/t.parquet", content)
    monkeypatch.setattr(remote, "READ_BYTES", 1 << 12)
    with files.open_file(f"{top}/t.parquet") as file:
        assert pq.ParquetFile(file).read_row_group(7)["n"][0].as_py() == 7000
        assert file.seek(-4, os.SEEK_END) == len(content) - 4
        assert (file.read(), file.read()) == (b"PAR1", b"")
        file.seek(0)
        assert file.read() == content


# --- Web servers -----------------------------------------------------------------------------------------


def test_photos_and_manifests_are_read_from_a_web_server(website: tuple[Path, str]) -> None:
    directory, address = website
    photos = directory / "photos"
    photos.mkdir()
    for number in range(3):
        (photos / f"{number}.jpg").write_bytes(b"x" * (number + 1))
    (directory / "m.csv").write_text("uri\nphotos/0.jpg\nphotos/nowhere.jpg\n")
    (directory / "m.jsonl").write_text(f'{{"uri": "{address}/photos/2.jpg"}}\n')
    modified = [(photos / f"{number}.jpg").stat().st_mtime_ns // 10**9 * 10**9 for number in range(3)]
    assert listing.find_photos(f"{address}/photos") == [
        Photo(f"{address}/photos/{number}.jpg", number + 1, modified[number]) for number in range(3)
    ]
    assert len(listing.find_photos(f"{address}/photos/*.jpg")) == 3
    assert listing.read_photo(listing.find_photos(f"{address}/photos/1.jpg")[0]) == b"xx"
    lines = [photo for photo, _ in Source(manifest=f"{address}/m.csv").iter_lines()]
    assert lines == [
        Photo(f"{address}/photos/0.jpg", 1, modified[0]),
        Photo(f"{address}/photos/nowhere.jpg", 0, 0),
    ]
    [(photo, _)] = Source(manifest=f"{address}/m.jsonl").iter_lines()
    assert (photo.uri, photo.size) == (f"{address}/photos/2.jpg", 3)
    with pytest.raises(InputError, match="Cannot read the manifest"):
        list(Source(manifest=f"{address}/none.csv").iter_lines())
    with pytest.raises(OutputError, match="http:// is read-only"):
        files.write(f"{address}/new", b"")


# --- Missing packages, credentials and storages ----------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "package", "extra"),
    [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gs"), ("az", "adlfs", "az"), ("https", "aiohttp", "http")],
)
def test_a_missing_extra_is_named(
    scheme: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.registry import _registry

    monkeypatch.setitem(sys.modules, package, None)
    if package == "aiohttp":
        monkeypatch.setitem(sys.modules, "fsspec.implementations.http", None)
    monkeypatch.delitem(_registry, scheme, raising=False)  # drop the class imported before
    for use in (listing.find_photos, files.read, lambda uri: files.write(uri, b"")):
        with pytest.raises((InputError, OutputError)) as caught:
            use(f"{scheme}://bucket/photos")
        if not (extra == "http" and "read-only" in caught.value.what):
            assert caught.value.remedy == f"Install it with: pip install 'hubhead[{extra}]'"


def test_azure_without_credentials_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("AZURE_"):
            monkeypatch.delenv(name)
    with pytest.raises(InputError, match="Cannot list az://container/photos") as caught:
        listing.find_photos("az://container/photos")
    assert "AZURE_STORAGE_CONNECTION_STRING" in caught.value.remedy


def test_errors_of_a_client_become_errors_of_the_storage(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ClientError(Exception):
        """As the clients of the stores have classes of their own."""

    attempts: list[str] = []

    def refuse(_: object, path: str, *__: object, **___: object) -> None:
        attempts.append(path)
        raise ClientError("503 Service Unavailable.")

    storage = type(fsspec.filesystem("memory"))
    for name in ("pipe_file", "put_file", "cat_file"):
        monkeypatch.setattr(storage, name, refuse)
    monkeypatch.setattr(files, "INITIAL_PAUSE", 0.0)
    message = rf"Cannot write {memory}/x: 503 Service Unavailable\."
    with pytest.raises(OutputError, match=message):
        files.write(f"{memory}/x", b"content")
    assert len(attempts) == files.ATTEMPTS
    with pytest.raises(OutputError, match=message), files.create_file(f"{memory}/x") as file:
        file.write(b"content")
    assert len(attempts) == 2 * files.ATTEMPTS
    with pytest.raises(OutputError, match="503"):
        files.check_writable(memory)
    assert len(attempts) == 2 * files.ATTEMPTS + 1, "one attempt, since the user waits for it"
    with pytest.raises(OSError, match=f"Cannot read {memory}/x: 503") as caught:
        listing.read_photo(Photo(f"{memory}/x", 1, 1))
    assert isinstance(caught.value, StorageError)
    assert len(attempts) == 3 * files.ATTEMPTS + 1


@pytest.mark.parametrize("address", ["ftp://", "ftp:///x", "ftp://user@/x", "sftp:///x", "smb:///x"])
def test_address_without_a_server_is_an_error(address: str) -> None:
    # What Python prints of a failed destructor is an error in the tests.
    with pytest.raises(StorageError, match="the address has no host"):
        list(remote.match_files(address))
    with pytest.raises(StorageError, match="the address has no host"):
        remote.read(address)


def test_a_package_without_an_extra_of_ours_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paramiko", None)
    with pytest.raises(InputError, match=r"paramiko.*Install it with pip\."):
        files.read("sftp://host/photo.jpg")


def test_local_paths_do_not_import_fsspec(tmp_path: Path) -> None:
    program = """
import sys
from batch.inputs import listing
from serving.storage import files
top = sys.argv[1]
files.check_writable(top)
files.write(f"{top}/a/1.jpg", b"x")
assert files.create_if_absent(f"{top}/a/2.jpg", b"x")
assert len(listing.find_photos(f"{top}/**/*.jpg")) == 2
assert listing.read_photo(listing.find_photos(top)[0]) == b"x"
files.remove_directory(f"{top}/a")
assert "fsspec" not in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, timeout=60, check=True)
