"""Container images of the end-to-end test, built without a registry into the cache directory.

k8s/Dockerfile is built as it is, by buildah. In place of python:3.11-slim it gets a Debian of debootstrap
with the same version of Python, and pip takes the packages of the lock from a directory of downloads.
`python -m tests.support.kubernetes.images` builds them and prints progress.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from serving.storage.files import cache_directory
from tests.support.repository import REPO

SUITE, PYTHON = "bookworm", (3, 11)
"""Release of Debian, and the version of its Python."""

PACKAGES = "python3,python3-venv,python-is-python3,busybox-static"

BASE = f"localhost/debian-python:{PYTHON[0]}.{PYTHON[1]}"

BUSYBOX = "docker.io/library/busybox:1.37"
"""Name of the image of k8s/loader.yaml; the program is Debian's."""

HUBHEAD = "docker.io/library/hubhead:0.1.0"
"""Name of the image in k8s/base/kustomization.yaml, as containerd completes it."""

PIP_CONFIG = "[global]\nno-index = true\nfind-links = /wheels\n"


def find_obstacles() -> list[str]:
    """Return why the images cannot be built here; an empty list if they can."""
    if sys.version_info[:2] == PYTHON:
        return []
    found, wanted = sys.version.split()[0], ".".join(map(str, PYTHON))
    return [f"pip downloads the packages of its own Python, {found}, and the image has {wanted}"]


def archives() -> list[Path]:
    """Return the archives that `build` writes."""
    return [_directory() / "busybox.tar", _directory() / "hubhead.tar"]


def build() -> None:
    """Build the images that are not up to date, and write archives of them.

    Raises:
        subprocess.CalledProcessError: a step failed.
    """
    top = _directory()
    top.mkdir(parents=True, exist_ok=True)
    if not _image_id(BASE):
        _build_base(top)
    previous = _image_id(HUBHEAD)
    _build_hubhead(_download_packages(top), top)
    if previous not in ("", _image_id(HUBHEAD)):
        _buildah("rmi", previous)  # with its steps, 3 GB; those of the packages remain for the next build
    for image, archive in zip((BUSYBOX, HUBHEAD), archives(), strict=True):
        _write_archive(image, archive)


def _directory() -> Path:
    return cache_directory() / "tests" / "images"


def _build_base(top: Path) -> None:
    """Make an image of a Debian with Python, and one of its busybox alone."""
    _say(f"debootstrap of {SUITE} with {PACKAGES}")
    with tempfile.TemporaryDirectory(dir=top) as temporary:
        root, busybox = Path(temporary) / "debian", Path(temporary) / "busybox"
        _run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, root)
        shutil.rmtree(root / "var" / "cache" / "apt")
        (busybox / "bin").mkdir(parents=True)
        shutil.copy(root / "bin" / "busybox", busybox / "bin" / "busybox")
        listed = subprocess.run([busybox / "bin" / "busybox", "--list"], stdout=subprocess.PIPE, check=True)
        for name in set(listed.stdout.decode().split()) - {"busybox"}:
            (busybox / "bin" / name).symlink_to("busybox")
        # containerd runs it as the process that holds the namespaces of each pod, too.
        _commit(busybox, BUSYBOX, "--cmd", "sleep 2147483647")
        _commit(root, BASE)


def _commit(root: Path, image: str, *settings: str) -> None:
    """Make an image with one layer of a directory."""
    container = _buildah("from", "scratch")
    _buildah("add", "--quiet", container, root, "/")
    _buildah("config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", *settings, container)
    _buildah("commit", "--quiet", "--rm", container, image)


def _download_packages(top: Path) -> Path:
    """Download the locked packages, and return their directory."""
    lock = REPO / "requirements.txt"
    wheels = top / f"wheels-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
    if not wheels.exists():
        _say("downloading the packages of requirements.txt")
        partial = top / ".wheels"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--no-deps"]
        _run(*pip, "--requirement", lock, "--dest", partial)
        for old in top.glob("wheels-*"):
            shutil.rmtree(old)
        partial.rename(wheels)
    return wheels


def _build_hubhead(wheels: Path, top: Path) -> None:
    """Build k8s/Dockerfile; steps whose inputs are unchanged are taken from earlier builds."""
    _say("k8s/Dockerfile")
    config = top / "pip.conf"
    config.write_text(PIP_CONFIG)
    # Without a container runtime of its own: the steps are run in a chroot.
    flags = ["--isolation=chroot", "--layers", "--pull=never", f"--build-arg=PYTHON={BASE}"]
    mounts = [f"--volume={config}:/etc/pip.conf:ro", f"--volume={wheels}:/wheels:ro"]
    _buildah("build", *flags, *mounts, "--file", REPO / "k8s" / "Dockerfile", "--tag", HUBHEAD, REPO)


def _write_archive(image: str, archive: Path) -> None:
    """Write an image to an archive, unless it is that of the last time."""
    written, current = archive.with_suffix(".id"), _image_id(image)
    if written.exists() and written.read_text() == current:
        return
    written.unlink(missing_ok=True)
    archive.unlink(missing_ok=True)
    _buildah("push", "--quiet", image, f"docker-archive:{archive}:{image}")
    written.write_text(current)
    _say(f"{archive.name}: {archive.stat().st_size / 2**20:.0f} MiB")


def _image_id(name: str) -> str:
    """Return the id of an image; "" if there is none."""
    return _buildah("images", "--quiet", "--no-trunc", "--filter", f"reference={name}")


def _buildah(*arguments: str | Path) -> str:
    """Run buildah with storage of its own, and return what it prints."""
    storage = (f"--root={_directory() / 'storage'}", f"--runroot={_directory() / 'run'}")
    return _run("buildah", *storage, *arguments).strip()


def _run(*command: str | Path) -> str:
    started = time.monotonic()
    done = subprocess.run(
        [os.fspath(word) for word in command], stdout=subprocess.PIPE, text=True, check=True
    )
    if (seconds := time.monotonic() - started) > 5:
        _say(f"{Path(command[0]).name}: {seconds:.0f} s")
    return done.stdout


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    build()
