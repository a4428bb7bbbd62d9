"""Arguments of the client that are of the wrong kind, and server addresses that cannot work."""

from __future__ import annotations

import asyncio
import io
import os
import pickle
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.client import AsyncClient, Client, ClientConfig, Retry, SecretHeaders, Tls, classify, photos
from serving.client.channel import encode_headers
from serving.client.grpc_errors import is_local, split_target
from serving.client.photos import PhotoLoader
from serving.contract import PhotoRejection, Status
from serving.errors import InputError
from serving.storage.regular import read_regular


class NoChannel:
    """A channel that makes no calls."""

    def close(self) -> None:
        """Do nothing."""


def open_client() -> Client:
    return Client("localhost:1", model="food", convert=False, channel=NoChannel())  # type: ignore[arg-type]


class OnAnotherDevice:
    """An array that cannot be read in this process's memory, like a tensor of PyTorch on a GPU."""

    def __array__(self) -> None:
        raise TypeError("can't convert a tensor on another device to numpy")

    def __repr__(self) -> str:
        return "OnAnotherDevice"


async def arrive() -> AsyncIterator[bytes]:
    yield b"photo"


PIXELS = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    "photos",
    [
        "a.jpg",
        Path("a.jpg"),
        b"photo",
        bytearray(b"photo"),
        memoryview(b"photo"),
        io.BytesIO(b"photo"),
        PIXELS,
        PIXELS[0],
        np.float32(1),
        None,
        3,
        {"a.jpg": b"photo"},
        np.bytes_(b"photo"),
        np.str_("a.jpg"),
        np.array("a.jpg"),
        np.array(b"photo"),
        np.array(None, object),
    ],
    ids=lambda photos: type(photos).__name__,
)
def test_one_photo_in_place_of_a_list_is_an_error(photos: Any) -> None:
    client = open_client()
    uses: tuple[Callable[[Any], Any], ...] = (
        client.classify,
        client.embed,
        client.iclassify,
        client.iembed,
        lambda photos: client.imap("x", photos),
        lambda photos: classify(photos, lambda images: []),
    )
    for use in uses:
        with pytest.raises(InputError, match="Give a list, also for a single one"):
            use(photos)

    async def use_async() -> None:
        other = AsyncClient("localhost:1", model="food", convert=False)
        for one in (other.classify, other.embed):
            with pytest.raises(InputError, match="Give a list"):
                await one(photos)
        for many in (other.iclassify, other.iembed, lambda photos: other.imap("x", photos)):
            with pytest.raises(InputError, match="Give a list"):
                many(photos)

    asyncio.run(use_async())


def test_photos_that_arrive_over_time_are_an_error_for_the_blocking_client() -> None:
    with pytest.raises(InputError, match="not a list"):
        open_client().classify(arrive())  # type: ignore[arg-type]


@pytest.mark.parametrize("top_k", [0, -1, 1.5, "3", True, [1]])
def test_top_k_is_a_whole_number(top_k: Any) -> None:
    for use in (open_client().classify, open_client().iclassify):
        with pytest.raises(InputError, match="top_k"):
            use([], top_k)
    with pytest.raises(InputError, match="top_k"):
        classify([], lambda images: [], top_k=top_k)


def test_numbers_of_numpy_are_numbers() -> None:
    assert open_client().classify([], np.int64(3)) == []
    config = ClientConfig("a:1", version=np.int64(3), timeout=np.float32(2), max_photos=np.int16(4))  # type: ignore[arg-type]
    assert [type(value) for value in (config.version, config.timeout, config.max_photos)] == [int, float, int]


@pytest.mark.parametrize("user", [3, "\ud800"], ids=ascii)
def test_user_is_a_text(user: Any) -> None:
    with pytest.raises(InputError, match="user"):
        open_client().classify([], user=user)


@pytest.mark.parametrize("name", ["model", "label", "target", "server_name", "signature", "input"])
def test_text_that_is_not_unicode_is_an_error(name: str) -> None:
    text = "food\udcff"  # as an argument of a command that is not UTF-8
    uses: dict[str, Callable[[], object]] = {
        "model": lambda: ClientConfig("a:1", model=text),
        "label": lambda: ClientConfig("a:1", label=text),
        "target": lambda: ClientConfig(text),
        "server_name": lambda: Tls(server_name=text),
        "signature": lambda: open_client().run(text, {"x": np.zeros(1)}),
        "input": lambda: open_client().run("double", {text: np.zeros(1)}),
    }
    with pytest.raises(InputError, match=f"{name}.* is not valid Unicode"):
        uses[name]()
    assert Tls(ca="\udcff.pem").ca == "\udcff.pem", "a path may have any bytes"


def test_path_of_bytes_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"photo")
    with os.scandir(os.fsencode(tmp_path)) as entries:
        assert [PhotoLoader()(entry) for entry in entries] == [b"photo"]  # type: ignore[arg-type]


def test_file_that_is_read_asynchronously_is_an_error_that_says_what_to_give() -> None:
    class Upload:
        async def read(self) -> bytes:
            return b"photo"

    with pytest.raises(InputError, match=r"gave coroutine.*give what its read\(\) returns"):
        PhotoLoader()(Upload())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": 3},
        {"x": 3.0},
        {"x": True},
        {"x": None},
        {"x": "a"},
        {"x": b"a"},
        {"x": np.bytes_(b"a")},
        {"x": bytearray(b"a")},
        {"x": [1.0, 2.0]},
        {"x": ["a"]},
        {"x": [[b"a"]]},
        {"x": {"a": b"a"}},
        {"x": np.array(["a"])},
        {"x": np.array(["2020-01-01"], "M8[D]")},
        {"x": []},
        {},
        [np.zeros(1)],
        np.zeros(1),
        {3: np.zeros(1)},
        {3: np.zeros(1), "x": np.zeros(2)},
        {"x": OnAnotherDevice()},
        None,
    ],
    ids=repr,
)
def test_inputs_of_run_without_dtype_or_rows_are_errors(inputs: Any) -> None:
    with pytest.raises(InputError):
        open_client().run("double", inputs)
    with pytest.raises(InputError):
        list(open_client().imap("double", [inputs]))


def test_signature_timeout_and_configuration_of_the_wrong_kind_are_errors() -> None:
    client = open_client()
    for use in (
        lambda: client.run(None, {"x": np.zeros(1)}),  # type: ignore[arg-type]
        lambda: client.wait_until_ready("3"),  # type: ignore[arg-type]
        lambda: client.wait_until_ready(float("nan")),
        lambda: client.reload("model.config"),
    ):
        with pytest.raises(InputError):
            use()


@pytest.mark.parametrize(
    "settings",
    [
        {"version": "3"},
        {"version": 3.0},
        {"version": True},
        {"version": -1},
        {"version": 2**63},
        {"label": 3},
        {"canary": "0.5"},
        {"canary": float("nan")},
        {"timeout": "10"},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"timeout": True},
        {"retry": 3},
        {"tls": True},
        {"headers": "authorization=token"},
        {"headers": {"authorization": 3}},
        {"headers": {3: "token"}},
        {"max_photos": 2.5},
        {"max_photos": "8"},
        {"max_photos": 2**64},
        {"max_bytes": None},
        {"max_concurrency": "4"},
        {"convert": "no"},
        {"model": b"food"},
    ],
    ids=repr,
)
def test_settings_of_the_wrong_kind_are_errors_that_show_no_value(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        Client("localhost:1", **{"model": "food", **settings})
    assert "token" not in str(caught.value)


def test_secret_headers_are_read_where_they_are_used_and_never_pickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "headers"
    file.write_text("authorization=Bearer a=b\n\n x-one = 1\n")
    monkeypatch.setenv("SOME_HEADERS", "x-two=token-2\n")
    config = ClientConfig("host:1", headers=SecretHeaders((str(file),), "SOME_HEADERS", {"x-three": "3"}))
    assert encode_headers(config.headers) == (
        ("x-three", "3"), ("x-two", "token-2"), ("authorization", "Bearer a=b"), ("x-one", "1"),
    )  # fmt: skip
    pickled = pickle.dumps(config)
    assert b"Bearer" not in pickled
    assert b"token-2" not in pickled
    assert "x-three" not in repr(config.headers)
    file.write_text("authorization=Bearer new")
    assert ("authorization", "Bearer new") in encode_headers(pickle.loads(pickled).headers)


def test_headers_of_a_file_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    for encoding in ("utf-8-sig", "utf-16"):
        file.write_bytes("authorization=Bearer a\r\n".encode(encoding))
        assert encode_headers(SecretHeaders((str(file),), "")) == (("authorization", "Bearer a"),)


@pytest.mark.parametrize(
    ("content", "variable", "message"),
    [
        (None, "", "cannot be read"),
        ("a=b\ntoken", "", "Line 2 of .*headers is not NAME=VALUE"),
        ("a b=token", "", "'a b' is not a valid header name"),
        ("a=b", "NO_SUCH_HEADERS", "NO_SUCH_HEADERS with the headers is not set in this process"),
    ],
)
def test_secret_headers_that_cannot_be_read_are_errors_that_show_no_value(
    tmp_path: Path, content: str | None, variable: str, message: str
) -> None:
    file = tmp_path / "headers"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        encode_headers(SecretHeaders((str(file),), variable))
    assert "token" not in str(caught.value)


def test_fields_of_retry_and_tls_of_the_wrong_kind_are_errors() -> None:
    for make in (lambda: Retry(attempts="3"), lambda: Retry(first=float("nan")), lambda: Tls(ca=3)):  # type: ignore[arg-type]
        with pytest.raises(InputError):
            make()


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("http://localhost:8500", "is a URL"),
        ("https://food.example", "is a URL"),
        ("grpc://localhost:8500", "is a URL"),
        ("http://user:secret@localhost:8500", "is a URL"),
        ("localhost", "has no port"),
        ("dns:///food.serving", "has no port"),
        ("localhost:", "has the port ''"),
        ("localhost:grpc", "has the port 'grpc'"),
        ("localhost:8500/v1/models", "has the port"),
        ("localhost:0", "has the port '0'"),
        ("localhost:65536", "has the port '65536'"),
        ("localhost:99999", "has the port '99999'"),
        ("localhost:-1", "has the port '-1'"),
        ("[::1]:70000", "has the port '70000'"),
        ("", "has no host"),
        (":8500", "has no host"),
        ("my host:8500", "has no host"),
        (8500, "type int"),
        (None, "type NoneType"),
    ],
)
def test_address_that_cannot_be_that_of_a_grpc_server_is_an_error(target: Any, reason: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InputError) as caught:
            kind(target, model="food")
        assert reason in str(caught.value)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("food:8500", ("food", "8500")),
        ("[::1]:8500", ("::1", "8500")),
        ("::1", ("::1", None)),
        ("dns:///food:1", ("food", "1")),
        ("dns://8.8.8.8/food:1", ("food", "1")),
        ("ipv4:1.2.3.4:1,5.6.7.8:2", ("1.2.3.4", "1")),
        ("unix:/run/food.sock", ("", "")),
        ("xds:///food", ("", "")),
    ],
)
def test_hosts_and_ports_of_grpc_targets(target: str, expected: tuple[str, str | None]) -> None:
    assert split_target(target) == expected


def test_local_hosts() -> None:
    assert all(map(is_local, ("localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1", "0.0.0.0")))
    assert not any(map(is_local, ("food", "localhost.example", "10.0.0.1", "")))


def test_file_that_is_too_large_for_a_photo_is_not_read(tmp_path: Path) -> None:
    sparse = tmp_path / "a.jpg"
    with sparse.open("wb") as file:
        file.truncate(10 << 30)
    load = PhotoLoader()
    tracemalloc.start()
    try:
        for path in (sparse, str(sparse)):
            found = load(path)
            assert isinstance(found, PhotoRejection)
            assert found.status is Status.TOO_LARGE
        with pytest.raises(OSError, match="10737418240 bytes, more than"):
            read_regular(str(sparse))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_device_without_an_end_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "_MOST_BYTES", 1 << 20)
    found = PhotoLoader()("/dev/zero")
    assert isinstance(found, PhotoRejection)
    assert found.status is Status.TOO_LARGE
    assert PhotoLoader()("/dev/null") == b""
