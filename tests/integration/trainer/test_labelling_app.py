"""The server of the labelling page: routes, token, Host and Origin, headers, photos without EXIF, errors."""

from __future__ import annotations

import http.client
import io
import json
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from click.testing import CliRunner
from PIL import Image

from serving.errors import InputError, OutputError
from tests.support.fake_labelling import FakeSession
from tests.support.html_assertions import Page
from trainer.commands import label as command
from trainer.labelling.access import PageSettings
from trainer.labelling.app import LabellingServer

pytestmark = pytest.mark.server

BROWSER = "0123456789abcdef"
LABELS = ["apple", "pear"]


@pytest.fixture
def session(tmp_path: Path) -> FakeSession:
    photos = []
    for number in range(6):
        path = tmp_path / LABELS[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        exif = Image.Exif()
        exif[0x010E] = "taken at home"
        exif[0x0112] = 6  # rotated by 90 degrees
        Image.new("RGB", (64, 48), (40 * number, 90, 40)).save(path, exif=exif)
        photos.append(path)
    (tmp_path / "pear" / "notes.jpg").write_text("no photo")
    (tmp_path / "pear" / "cut.jpg").write_bytes(photos[0].read_bytes()[:400])
    (tmp_path / "pear" / "secret.txt").write_text("secret")
    return FakeSession(
        [*photos, *(tmp_path / "pear" / name for name in ("notes.jpg", "cut.jpg", "gone.jpg"))], LABELS
    )


@pytest.fixture
def server(session: FakeSession) -> Iterator[LabellingServer]:
    with LabellingServer(session) as server:
        yield server


def ask(
    server: LabellingServer, path: str = "", body: Any = None, method: str = "", **headers: str
) -> tuple[int, Any, dict[str, str]]:
    """Send a request; a path that begins with / is not below the token."""
    url = urlsplit(server.url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=30)
    if body is not None:
        headers = {"Content-Type": "application/json"} | headers
    content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    target = path if path.startswith("/") else f"{url.path}{path}"
    connection.request(
        method or ("GET" if body is None else "POST"),
        target,
        content,
        {name.replace("_", "-"): value for name, value in headers.items()},
    )
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    found = {name.lower(): value for name, value in response.getheaders()}
    if found["content-type"].startswith("application/json"):
        return response.status, json.loads(answer), found
    return response.status, answer, found


def test_page_has_a_strict_policy_and_loads_its_own_files_alone(server: LabellingServer) -> None:
    status, content, headers = ask(server)
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    page = Page(content.decode())
    assert not {tag for tag, _ in page.tags} & {"style", "iframe", "object", "embed", "base", "img"}
    for tag, attributes in page.tags:
        assert "style" not in attributes, tag
        assert not any(name.startswith("on") for name in attributes), tag
    files = [script["src"] for script in page.all("script")] + [link["href"] for link in page.all("link")]
    assert sorted(map(str, files)) == ["icon.svg", "main.js", "style.css"]
    for file in files:
        assert ask(server, str(file))[0] == 200


def test_scripts_are_sent_with_their_type_and_import_only_each_other(server: LabellingServer) -> None:
    seen, pending = set(), ["main.js"]
    while pending:
        name = pending.pop()
        status, content, headers = ask(server, name)
        assert status == 200, name
        assert headers["content-type"] == "text/javascript; charset=utf-8"
        seen.add(name)
        for line in content.decode().splitlines():
            if line.startswith("import "):
                found = line.rpartition("./")[2].strip('";')
                pending += [found] if found not in seen else []
    assert len(seen) > 5


def test_controls_have_names(server: LabellingServer) -> None:
    page = Page(ask(server)[1].decode())
    named = {label.get("for") for label in page.all("label")}
    for control in [*page.all("input"), *page.all("select")]:
        assert control["id"] in named or control.get("aria-label"), control
    assert any(attributes.get("aria-live") == "polite" for attributes in page.all("p"))
    assert any(attributes.get("role") == "alert" for attributes in page.all("div"))


@pytest.mark.parametrize(
    "path", ["/", "/wrong/", "/wrong/state", "/wrong/photo/0/small", "/state", "//state"]
)
def test_nothing_is_found_without_the_token(server: LabellingServer, path: str) -> None:
    status, answer, headers = ask(server, path)
    assert status == 404
    assert set(answer) == {"error"}
    assert headers["x-content-type-options"] == "nosniff"


def test_foreign_host_and_origin_are_rejected(server: LabellingServer, session: FakeSession) -> None:
    body = {"browser": BROWSER, "answers": [{"photo": 0, "label": "apple"}]}
    assert ask(server, "state", Host="attacker.example")[0] == 403
    assert ask(server, "answer", body, Origin="http://attacker.example")[0] == 403
    assert ask(server, "answer", body, Sec_Fetch_Site="cross-site")[0] == 403
    assert ask(server, "photo/0/small", Sec_Fetch_Site="cross-site")[0] == 403
    assert ask(server, "answer", body, Content_Type="text/plain")[0] == 415
    assert session.answers == {}
    assert ask(server, "", Sec_Fetch_Site="cross-site")[0] == 200  # a link to the page


def test_answer_and_undo(server: LabellingServer, session: FakeSession) -> None:
    status, answer, _ = ask(server, "next", {"browser": BROWSER, "count": 3})
    assert status == 200
    assert [photo["id"] for photo in answer["batch"]["photos"]] == [0, 1, 2]
    assert answer["state"]["remaining"] == 9
    body = {"browser": BROWSER, "answers": [{"photo": 0, "label": "apple", "seconds": 1.5}]}
    status, state, _ = ask(server, "answer", body)
    assert (status, state["labelled"]) == (200, 1)
    assert session.answers == {0: "apple"}
    assert session.seconds == {0: 1.5}
    status, answer, _ = ask(server, "undo", {"browser": BROWSER})
    assert (status, answer["photos"]) == (200, [0])
    assert session.answers == {}
    assert ask(server, "label", {"browser": BROWSER, "name": "plum"})[1] == {"labels": [*LABELS, "plum"]}
    assert ask(server, "skip", {"browser": BROWSER, "photos": [1]})[1]["skipped"] == 1
    assert ask(server, "release", {"browser": BROWSER})[1] == {}
    assert session.released[-1] == BROWSER


def test_full_disk_conflict_and_unknown_photo_have_their_own_status(
    server: LabellingServer, session: FakeSession
) -> None:
    body = {"browser": BROWSER, "answers": [{"photo": 0, "label": "apple"}]}
    ask(server, "next", {"browser": "another browser", "count": 1})
    assert ask(server, "answer", body)[0] == 409
    body["answers"] = [{"photo": 1, "label": "plum"}]
    assert ask(server, "answer", body)[0] == 400
    body["answers"] = [{"photo": 99, "label": "apple"}]
    assert ask(server, "answer", body)[0] == 404
    session.fill_disk()
    body["answers"] = [{"photo": 1, "label": "apple"}]
    status, answer, _ = ask(server, "answer", body)
    assert status == 507
    assert "no space left" in answer["error"]
    assert session.answers == {}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"\xff"',
        {},
        {"browser": "short"},
        {"browser": BROWSER, "answers": [{"photo": "0", "label": "apple"}]},
        {"browser": BROWSER, "answers": [{"photo": 0, "label": 1}]},
        {"browser": BROWSER, "answers": [], "path": "/etc/passwd"},
        {"browser": BROWSER, "answers": [{"photo": 0, "label": "apple"}] * 1001},
    ],
)
def test_malformed_body_is_a_bad_request(server: LabellingServer, session: FakeSession, body: Any) -> None:
    status, answer, _ = ask(server, "answer", body)
    assert status == 400
    assert set(answer) == {"error"}
    assert session.answers == {}


def test_large_body_is_rejected(server: LabellingServer) -> None:
    assert ask(server, "answer", b" " * (300 << 10))[0] == 413


def test_failure_of_the_session_is_an_internal_error(
    server: LabellingServer, session: FakeSession, caplog: pytest.LogCaptureFixture
) -> None:
    session.error = ZeroDivisionError("secret detail")
    status, answer, _ = ask(server, "undo", {"browser": BROWSER})
    assert status == 500
    assert "secret detail" not in answer["error"]
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("size", ["small", "medium", "full"])
def test_photos_are_upright_jpegs_without_exif(server: LabellingServer, size: str) -> None:
    status, content, headers = ask(server, f"photo/0/{size}")
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    assert headers["cache-control"] == "no-store"
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.size) == ("JPEG", (48, 64))
        assert not dict(image.getexif())
    assert b"taken at home" not in content


@pytest.mark.parametrize(
    ("photo", "reason"),
    [(6, "not in a known image format"), (7, "truncated"), (8, "No such file")],
)
def test_photo_that_cannot_be_shown_has_its_reason(server: LabellingServer, photo: int, reason: str) -> None:
    status, answer, _ = ask(server, f"photo/{photo}/medium")
    assert status == 422
    assert reason.lower() in answer["error"].lower()
    assert "/" not in answer["error"]  # no path


@pytest.mark.parametrize(
    "path",
    [
        "photo/99/small",
        "photo/0/huge",
        "photo/-1/small",
        "photo/0/small/../../secret.txt",
        "photo/..%2f..%2fpear%2fsecret.txt/small",
        "photo//etc/passwd/small",
        "../app.py",
        "..%2fapp.py",
        "app.py",
        "photo/9999999999999999999999/small",
        "photo/0x1/small",
    ],
)
def test_only_listed_photos_and_files_can_be_asked_for(server: LabellingServer, path: str) -> None:
    status, answer, _ = ask(server, path)
    assert status == 404
    assert set(answer) == {"error"}


def test_get_changes_nothing(server: LabellingServer) -> None:
    for name in ("next", "answer", "skip", "undo", "label", "release"):
        assert ask(server, name)[0] == 405


def test_port_in_use_is_an_error(server: LabellingServer, session: FakeSession) -> None:
    with pytest.raises(OutputError, match=r"Port \d+ of 127.0.0.1 cannot be opened"):
        LabellingServer(session, PageSettings(port=urlsplit(server.url).port or 0))


def test_server_listens_on_the_loopback_interface_alone(server: LabellingServer) -> None:
    port = f":{urlsplit(server.url).port:04X}"
    listening = [
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()
        if f"{port} " in line and line.split()[3] == "0A"
    ]
    assert listening == [f"0100007F{port}"]


@pytest.mark.needs("openssl")
def test_page_over_tls(session: FakeSession, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    )
    subprocess.run(
        [*command.split(), "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    with pytest.raises(InputError, match="cannot be used for TLS"):
        LabellingServer(session, PageSettings("0.0.0.0", 0, key, certificate))
    with LabellingServer(session, PageSettings("0.0.0.0", 0, certificate, key)) as server:
        url = urlsplit(server.url)
        assert url.scheme == "https"
        context = ssl.create_default_context(cafile=certificate)
        context.check_hostname = False
        connection = http.client.HTTPSConnection("127.0.0.1", url.port, timeout=30, context=context)
        connection.request("GET", f"{url.path}state", headers={"Origin": f"https://127.0.0.1:{url.port}"})
        assert connection.getresponse().status == 200
        connection.close()


def test_browser_is_started_with_a_private_file_instead_of_the_token(
    session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def open_page(address: str) -> bool:
        opened.append((address, Path(url2pathname(urlsplit(address).path)).read_text(encoding="utf-8")))
        return True

    monkeypatch.setattr(command, "_open", lambda *_: session)
    monkeypatch.setattr(command, "_wait_until_signalled", lambda: None)
    monkeypatch.setattr(command.webbrowser, "open", open_page)
    monkeypatch.setenv("DISPLAY", ":0")
    done = CliRunner().invoke(command.label, ["--photos", "uploads"], catch_exceptions=False)
    assert done.exit_code == 0
    token = urlsplit(done.output[done.output.index("http://") :].split()[0]).path.strip("/")
    assert len(token) > 20
    ((address, content),) = opened
    assert token not in address
    assert f"/{token}/" in content
