"""The demo page in a browser: choosing a photo, class labels, abstention, errors."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from serving import contract
from serving.errors import BundleError
from serving.server import RunningServer, ServerSettings, start
from serving.server.config.settings import ModelSettings
from serving.server.rest import page
from tests.support.browser import PROGRAMS, Browser
from tests.support.colour_model import ColourModel, draw_photo, write_colour_model
from tests.support.docs.markdown import fences
from tests.support.docs.shell import command_lines
from tests.support.fake_model import FakeModelLoader, eventually, write_fake_model
from tests.support.html_assertions import Page

if TYPE_CHECKING:
    from tests.support.trained import Trained
    from trainer.dataset.samples import SampleSummary

pytestmark = pytest.mark.server

HOSTILE = "</script><script>alert(1)</script>"
DONE = "document.getElementById('result').getAttribute('aria-busy') === 'false'"


def load(path: Path) -> Any:
    if (path / "broken").exists():
        raise BundleError("broken on purpose")
    return FakeModelLoader()(path) if path.parent.name == "double" else ColourModel()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("models")
    write_fake_model(top / "double" / "3")
    write_colour_model(top / "colours" / "7")
    return top


def serve(models: Path, *named: tuple[str, str]) -> RunningServer:
    configured = tuple(ModelSettings(name, models / directory) for name, directory in named)
    settings = ServerSettings(models=configured, port=0, rest_api_port=0, file_system_poll_wait_seconds=0.05)
    return start(settings, loader=load)


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[RunningServer]:
    with serve(models, ("double", "double"), ("colours", "colours"), ("colours & more", "colours")) as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser


def open_page(browser: Browser, server: RunningServer) -> None:
    browser.messages.clear()
    browser.requested_urls.clear()
    browser.open(f"http://localhost:{server.rest_port}/")
    browser.wait_for("!document.getElementById('about').textContent.startsWith('Loading')")


def text(browser: Browser, name: str) -> str:
    return str(browser.evaluate(f"document.getElementById({name!r}).innerText"))


def classify(browser: Browser, photo: Path, selector: str = "#file") -> str:
    browser.evaluate("document.getElementById('result').removeAttribute('aria-busy')")
    browser.choose_file(selector, photo)
    browser.wait_for(DONE)
    return text(browser, "headline")


def check_quiet(browser: Browser, server: RunningServer) -> None:
    """Assert that no script failed, and that nothing was blocked or fetched from another origin."""
    assert browser.messages == []
    origins = {url.split("/")[2] for url in browser.requested_urls if url.startswith("http")}
    assert origins == {f"localhost:{server.rest_port}"}


def test_page_is_self_contained() -> None:
    sent = page.render(["food", HOSTILE]).decode()
    parsed = Page(sent)
    assert not {tag for tag, _ in parsed.tags} & {"iframe", "object", "embed", "base", "a", "img"}
    assert [link["href"] for link in parsed.all("link")] == ["data:,"]
    for tag, attributes in parsed.tags:
        for name in attributes:
            assert not name.startswith("on"), (tag, name)
            assert name not in {"src", "srcset", "style"}, (tag, name)
    assert not re.search(r"https?:|url\(|@import", sent)
    assert sent.count("<script") == 2
    page_data = json.loads(sent.split('id="page-data">')[1].split("</script>")[0])
    assert page_data["models"] == ["food", HOSTILE]
    assert set(page_data["statuses"]) == {str(status) for status in contract.Status}


def test_every_form_control_has_a_label() -> None:
    parsed = Page(page.render(["food"]).decode())
    named = {label["for"] for label in parsed.all("label")}
    controls = [*parsed.all("input"), *parsed.all("select")]
    assert {control["id"] for control in controls} == named == {"model", "file", "shot"}
    assert len(parsed.all("h1")) == 1
    assert any(attributes.get("aria-live") == "polite" for attributes in parsed.all("div"))


def test_page_has_a_content_security_policy_and_is_not_cached(server: RunningServer) -> None:
    with urllib.request.urlopen(f"http://localhost:{server.rest_port}/") as answer:
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.needs(PROGRAMS)
def test_chosen_photo_is_classified(server: RunningServer, browser: Browser, tmp_path: Path) -> None:
    open_page(browser, server)
    assert text(browser, "about") == "Model colours, version 7."
    assert classify(browser, draw_photo(tmp_path / "apple.jpg", (190, 20, 25))) == "red fruit"
    percentages = browser.evaluate(
        "[...document.querySelectorAll('.probability')].map((cell) => cell.textContent)"
    )
    widths = browser.evaluate("[...document.querySelectorAll('.bars i')].map((bar) => bar.style.width)")
    names = browser.evaluate("[...document.querySelectorAll('.bars bdi')].map((name) => name.textContent)")
    assert names == ["red fruit", "green leaf", "blue sky <b>"]
    assert sum(float(percentage.split()[0]) for percentage in percentages) == pytest.approx(100, abs=0.2)
    assert [float(width[:-1]) for width in widths] == pytest.approx(
        [float(percentage.split()[0]) for percentage in percentages], abs=0.06
    )
    assert re.fullmatch(r"colours, version 7: answered in \d+ ms, .*", text(browser, "cost"))
    size = browser.evaluate(
        "[document.getElementById('preview').width, document.getElementById('preview').height]"
    )
    assert size == [720, 540]
    check_quiet(browser, server)
    # The camera button; then another model, which classifies the same photo again.
    assert (
        classify(browser, draw_photo(tmp_path / "sky.png", (20, 30, 250), (300, 200)), "#shot")
        == "blue sky <b>"
    )
    browser.evaluate(
        "{const model = document.getElementById('model'); model.value = 'colours & more';"
        "model.dispatchEvent(new Event('change'));}"
    )
    browser.wait_for("document.getElementById('cost').textContent.startsWith('colours & more, version 7')")
    check_quiet(browser, server)


@pytest.mark.needs(PROGRAMS)
def test_dropped_photo_is_classified(server: RunningServer, browser: Browser, tmp_path: Path) -> None:
    open_page(browser, server)
    photo = draw_photo(tmp_path / "leaf.jpg", (20, 120, 30), (400, 300))
    data = {"items": [], "files": [str(photo)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        browser.call("Input.dispatchDragEvent", type=kind, x=200, y=200, data=data)
    browser.wait_for(DONE)
    assert text(browser, "headline") == "green leaf"
    check_quiet(browser, server)


@pytest.mark.needs(PROGRAMS)
def test_abstention_rejected_photo_and_failed_request_are_explained(
    server: RunningServer, browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_page(browser, server)
    Image.new("RGB", (64, 48), (128, 128, 128)).save(tmp_path / "fog.png")
    assert classify(browser, tmp_path / "fog.png") == "None of these"
    assert "confidence is too low" in text(browser, "detail")
    assert browser.evaluate("document.querySelectorAll('.bars li').length") == 3
    (tmp_path / "notes.txt").write_text("no photo")
    assert classify(browser, tmp_path / "notes.txt") == "Not scored"
    assert "not in a known image format" in text(browser, "detail")
    assert "cannot display it" in text(browser, "caption")
    assert browser.evaluate("document.querySelectorAll('.bars li').length") == 0
    monkeypatch.setattr(ColourModel, "run", lambda *_: 1 / 0)
    assert classify(browser, tmp_path / "fog.png") == "Request failed"
    assert "division by zero" in text(browser, "detail")


@pytest.mark.needs(PROGRAMS)
def test_server_without_photo_models_shows_a_rest_example(models: Path, browser: Browser) -> None:
    with serve(models, ("double", "double")) as server:
        open_page(browser, server)
        assert "No model on this server classifies photos" in text(browser, "about")
        assert browser.evaluate("document.getElementById('ask').hidden")
        command = text(browser, "curl")
        assert text(browser, "rows").split("\t") == ["double", "3 available", "serving_default: x float [?]"]
        found = re.fullmatch(r"curl -d '(.*)' \\\n  (http:\S+)", command)
        assert found, command
        with urllib.request.urlopen(found[2], found[1].encode()) as answer:
            assert json.load(answer) == {"predictions": [3.0]}
        check_quiet(browser, server)


@pytest.mark.needs(PROGRAMS)
def test_failed_versions_are_listed_with_their_error(models: Path, browser: Browser, tmp_path: Path) -> None:
    write_colour_model(tmp_path / "colours" / "1")
    with serve(tmp_path, (HOSTILE, "colours")) as server:
        staged = write_colour_model(tmp_path / "staged")
        (staged / "broken").touch()
        staged.rename(tmp_path / "colours" / "2")
        eventually(
            lambda: (
                2 in server.manager.models[HOSTILE].states() and not server.manager.models[HOSTILE].pending
            )
        )
        eventually(lambda: server.manager.models[HOSTILE].states()[2].error != "")
        open_page(browser, server)
        assert HOSTILE in text(browser, "rows")
        assert "2 end (broken on purpose), 1 available" in text(browser, "rows")
        check_quiet(browser, server)


@pytest.mark.needs(PROGRAMS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_layout_fits_phones_and_desktops(
    server: RunningServer, browser: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    browser.set_screen(width, 900, phone=width < 1000, dark=dark)
    try:
        open_page(browser, server)
        classify(browser, draw_photo(tmp_path / "apple.jpg", (190, 20, 25), (400, 300)))
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        camera = browser.evaluate("getComputedStyle(document.querySelector('.camera')).display")
        assert (camera == "none") == (width > 1000)
        paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(20, 23, 26)" if dark else "rgb(250, 249, 246)")
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.tf
@pytest.mark.needs(PROGRAMS)
def test_real_model_classifies_a_real_photo(
    trained: Trained, sample: SampleSummary, browser: Browser
) -> None:
    photo = min((sample.directory / "fruits").iterdir())
    with start(ServerSettings(trained.settings.saved_model_dir, port=0, rest_api_port=0)) as server:
        open_page(browser, server)
        classify(browser, photo)
        assert re.fullmatch(r"food, version \d+: answered in \d+ ms, .*", text(browser, "cost"))
        names = browser.evaluate(
            "[...document.querySelectorAll('.bars bdi')].map((name) => name.textContent)"
        )
        assert len(names) == 5
        assert "fruits" in names
        check_quiet(browser, server)


@pytest.mark.needs("curl")
def test_rest_commands_of_the_guide_work(server: RunningServer, tmp_path: Path) -> None:
    draw_photo(tmp_path / "photo.jpg", (190, 20, 25), (400, 300))
    page = "docs/how-to/serve.md"
    lines = [line for fence in fences(page, "sh", "console") for line in command_lines(fence)]
    commands = "\n".join(line for line in lines if "localhost:8501/v1/" in line)
    commands = commands.replace("localhost:8501", f"localhost:{server.rest_port}")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands.replace("food_images", "colours")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answers = []
    while done.stdout[sum(end for _, end in answers) :].strip():
        rest = done.stdout[sum(end for _, end in answers) :]
        answers.append(json.JSONDecoder().raw_decode(rest))
    assert [set(answer) for answer, _ in answers] == [
        {"predictions"},
        {"model_version_status"},
        {"model_spec", "metadata"},
    ]
    assert answers[0][0]["predictions"][0]["label"] == "red fruit"
