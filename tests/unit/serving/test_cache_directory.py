"""The cache directory of users without a home directory, such as unknown user ids of containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import OutputError
from serving.storage import files
from serving.storage.files import CACHE_VARIABLE


@pytest.fixture(autouse=True)
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: object) -> None:
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_CACHE_HOME", CACHE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)


@pytest.mark.parametrize("chosen", ["", "~/cache"])
def test_without_a_home_directory_the_error_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, chosen)
    with pytest.raises(OutputError, match=r"no home directory\. Set HUBHEAD_CACHE_DIR"):
        files.cache_directory()


def test_no_home_directory_is_needed_with_a_chosen_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert files.cache_directory() == Path("/caches/hubhead")
    monkeypatch.setenv(CACHE_VARIABLE, "/mine")
    assert files.cache_directory() == Path("/mine")


@pytest.mark.parametrize("address", ["gs://bucket/cache", "s3://key:hunter2@bucket/cache"])
def test_address_of_a_bucket_as_the_cache_is_an_error(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, address)
    with pytest.raises(OutputError, match="has to be on a local disk") as caught:
        files.cache_directory()
    assert "hunter2" not in str(caught.value)
