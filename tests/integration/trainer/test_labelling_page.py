"""The labelling page in a browser: keyboard, undo, grid, suspects, errors, enlarging, names, layout."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.support.browser import PROGRAMS, Browser
from tests.support.fake_labelling import FakeSession
from trainer.labelling.app import LabellingServer
from trainer.labelling.types import Strategy

pytestmark = [pytest.mark.server, pytest.mark.needs(PROGRAMS)]

HOSTILE = "<img src=x onerror=alert(1)>"
LABELS = ["apple", "banana", "cherry pie", "pear", "plum", HOSTILE]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Thirty apples, four pears, and a file that is no photo."""
    top = tmp_path_factory.mktemp("photos")
    paths = [*(top / "apple" / f"{n}.jpg" for n in range(30)), *(top / "pear" / f"{n}.jpg" for n in range(4))]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (320, 240), (7 * number, 200 - 5 * number, 60)).save(path)
    (top / "pear" / "notes.jpg").write_text("no photo")
    return [*paths, top / "pear" / "notes.jpg"]


@pytest.fixture
def session(photos: list[Path]) -> FakeSession:
    return FakeSession(photos, LABELS)


@pytest.fixture
def server(session: FakeSession) -> Iterator[LabellingServer]:
    with LabellingServer(session) as server:
        yield server


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser, server: LabellingServer) -> Browser:
    """A browser with the open page."""
    chromium.open("about:blank#left")  # so that the page of an earlier test reports nothing more
    chromium.messages.clear()
    chromium.requested_urls.clear()
    chromium.set_screen(1280, 800)
    chromium.open(server.url)
    wait_for_photo(chromium, 0)
    return chromium


def wait_for_photo(browser: Browser, photo: int) -> None:
    browser.wait_for(f"document.getElementById('stage').dataset.photo === '{photo}'")


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.02)


def text(browser: Browser, name: str) -> str:
    return str(browser.evaluate(f"document.getElementById({name!r}).innerText"))


def is_hidden(browser: Browser, name: str) -> bool:
    return bool(browser.evaluate(f"document.getElementById({name!r}).checkVisibility() === false"))


def check_quiet(browser: Browser, server: LabellingServer) -> None:
    """Assert that no script failed, nothing was blocked, and nothing was asked of another address."""
    assert browser.messages == []
    assert {url for url in browser.requested_urls if not url.startswith(server.url)} == set()


def test_answers_by_keyboard(browser: Browser, session: FakeSession, server: LabellingServer) -> None:
    browser.press("1")  # the best label
    wait_for_photo(browser, 1)
    browser.press("Enter")  # the selected one, which is the best one too
    wait_for_photo(browser, 2)
    browser.press("ArrowDown", "Enter")  # the second best
    wait_for_photo(browser, 3)
    browser.press("x")  # none of these
    wait_for_photo(browser, 4)
    browser.press("Enter")  # a test photo has no suggestion, and nothing is selected
    assert browser.evaluate("document.querySelector('#choices [aria-current]')") is None
    browser.press("/", "p", "i", "e", "Enter")  # type-ahead, by a later word of the name
    wait_for_photo(browser, 5)
    browser.press("n", *"Red fig", "Enter")  # a new label
    wait_for_photo(browser, 6)
    browser.press("/", *"r", "e", "d", "Enter")  # which can be found from now on
    wait_for_photo(browser, 7)
    eventually(lambda: len(session.answers) == 7)
    assert session.answers == {
        0: "apple",
        1: "apple",
        2: "banana",
        3: "",
        4: "cherry pie",
        5: "Red fig",
        6: "Red fig",
    }
    assert all(0 < seconds < 60 for seconds in session.seconds.values())
    browser.wait_for("document.getElementById('labelled').textContent === '6'")
    assert text(browser, "nothing") == "1"
    check_quiet(browser, server)


def test_skip_undo_and_arrows(browser: Browser, session: FakeSession) -> None:
    browser.press("s")
    wait_for_photo(browser, 1)
    browser.press("1")
    wait_for_photo(browser, 2)
    browser.press("u")  # takes back the answer
    wait_for_photo(browser, 1)
    assert session.answers == {}
    browser.press("u")  # and the skip
    wait_for_photo(browser, 0)
    browser.press("ArrowRight")
    wait_for_photo(browser, 1)
    browser.press("ArrowLeft")
    wait_for_photo(browser, 0)
    assert session.answers == {}
    browser.press("u")  # nothing is left to take back
    browser.wait_for("document.getElementById('live').textContent.startsWith('There is nothing')")


def test_next_photo_does_not_wait_for_the_journal(
    browser: Browser, session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_answer, answer = threading.Event(), session.answer

    def answer_late(*arguments: object, **options: object) -> object:
        assert may_answer.wait(30)
        return answer(*arguments, **options)

    monkeypatch.setattr(session, "answer", answer_late)
    browser.wait_for(
        "performance.getEntriesByType('resource').filter(({name}) => name.endsWith('/medium')).length === 5"
    )
    browser.press("1")
    wait_for_photo(browser, 1)
    assert browser.evaluate("document.querySelector('#stage img').naturalWidth") == 320  # loaded ahead
    browser.press("2")
    wait_for_photo(browser, 2)
    assert session.answers == {}
    may_answer.set()
    eventually(lambda: session.answers == {0: "apple", 1: "banana"})


def test_answers_that_are_not_kept_are_said_and_asked_for_again(
    browser: Browser, session: FakeSession
) -> None:
    browser.press("1")
    wait_for_photo(browser, 1)
    eventually(lambda: session.answers == {0: "apple"})
    session.fill_disk()
    browser.press("2")
    browser.wait_for("!document.getElementById('banner').hidden")
    wait_for_photo(browser, 1)
    assert "Not saved" in text(browser, "banner")
    assert "no space left" in text(browser, "banner")
    time.sleep(2.5)  # the page asks for the state meanwhile, and the message stays
    assert "no space left" in text(browser, "banner")
    assert text(browser, "labelled") == "1"
    session.error = None
    browser.press("3")
    wait_for_photo(browser, 2)
    browser.wait_for("document.getElementById('banner').hidden")
    assert session.answers == {0: "apple", 1: "cherry pie"}


def test_all_answers_behind_one_that_is_not_kept_come_back(
    browser: Browser, session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_fail = threading.Event()

    def fail(*_: object, **__: object) -> None:
        assert may_fail.wait(30)
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(session, "_write", fail)
        browser.press("1", "2", "x")
        wait_for_photo(browser, 3)
        may_fail.set()
        wait_for_photo(browser, 0)
    assert "3 photos have no answer yet" in text(browser, "banner")
    browser.press("1")
    wait_for_photo(browser, 1)
    eventually(lambda: session.answers == {0: "apple"})


def test_end_of_the_session_is_said(browser: Browser, server: LabellingServer, session: FakeSession) -> None:
    server.stop()
    browser.press("1")
    browser.wait_for("document.getElementById('banner').innerText.includes('does not answer')")
    wait_for_photo(browser, 0)
    assert session.answers == {}


def test_photo_that_another_browser_answered_is_left_out(browser: Browser, session: FakeSession) -> None:
    session._held[0] = "another browser"  # which took it after this one was suspended
    browser.press("1")
    browser.wait_for("document.getElementById('banner').innerText.includes('Another browser')")
    wait_for_photo(browser, 1)
    browser.press("1")
    eventually(lambda: session.answers == {1: "apple"})


def test_photos_of_another_browser_are_not_shown(chromium: Browser, session: FakeSession) -> None:
    session.next_photos("another browser", count=3)
    with LabellingServer(session) as server:
        chromium.open(server.url)
        wait_for_photo(chromium, 3)


def test_grid_accepts_all_but_those_taken_out(
    browser: Browser, session: FakeSession, server: LabellingServer
) -> None:
    browser.press("g")
    browser.wait_for("document.querySelectorAll('.tile').length === 24")
    assert text(browser, "question") == "Is every photo apple?"
    browser.click(".cell:nth-child(2) .tile")
    browser.press("ArrowRight", "x", "ArrowRight", " ")  # by keyboard: photos 2 and 3
    browser.press("ArrowRight", "x", "x")  # out and in again
    browser.wait_for("document.getElementById('accept').textContent.includes('21 photos')")
    browser.press("Enter")
    eventually(lambda: len(session.answers) == 21)
    assert set(session.answers) == {0, *range(4, 24)}
    assert set(session.answers.values()) == {"apple"}
    browser.wait_for("document.querySelectorAll('.tile').length === 6")  # the rest, without those taken out
    browser.press("u")
    browser.wait_for("document.querySelectorAll('.tile').length === 24")
    assert session.answers == {}
    check_quiet(browser, server)


def test_grid_keeps_the_choice_when_the_disk_is_full(browser: Browser, session: FakeSession) -> None:
    browser.press("g")
    browser.wait_for("document.querySelectorAll('.tile').length === 24")
    browser.click(".cell:nth-child(2) .tile")
    session.fill_disk()
    browser.press("Enter")
    browser.wait_for("document.getElementById('banner').innerText.includes('24 photos have no answer')")
    assert session.answers == {}
    session.error = None
    browser.press("Enter")
    eventually(lambda: len(session.answers) == 23)
    assert 1 not in session.answers


def test_grid_without_a_model_says_what_to_do(chromium: Browser, photos: list[Path]) -> None:
    with LabellingServer(FakeSession(photos, LABELS, hints=False)) as server:
        chromium.open(server.url)
        wait_for_photo(chromium, 0)
        assert text(chromium, "choices").split("\n")[:4] == ["1", "apple", "2", "banana"]
        chromium.press("g")
        chromium.wait_for("document.getElementById('question').innerText.includes('needs a model')")


def test_suspects_are_shown_beside_the_nearest_photos_of_both_labels(
    chromium: Browser, photos: list[Path]
) -> None:
    session = FakeSession(photos, LABELS)
    session.strategy = Strategy.SUSPECTS
    with LabellingServer(session) as server:
        chromium.open(server.url)
        wait_for_photo(chromium, 0)
        titles = "[...document.querySelectorAll('#compare h2')].map((title) => title.textContent)"
        assert chromium.evaluate(titles) == ["Nearest plumgiven", "Nearest applesuggested"]
        assert chromium.evaluate("document.querySelectorAll('#compare section:last-child img').length") == 6
        assert chromium.evaluate("document.getElementById('strategy').disabled")
        chromium.press("k")  # keep the given label
        wait_for_photo(chromium, 1)
        chromium.press("1")  # correct it
        wait_for_photo(chromium, 2)
        eventually(lambda: session.answers == {0: "plum", 1: "apple"})


def test_strategy_is_changed_on_the_page(browser: Browser, session: FakeSession) -> None:
    choose_strategy(browser, "uncertain")
    eventually(lambda: session.strategy is Strategy.UNCERTAIN)
    wait_for_photo(browser, 0)
    choose_strategy(browser, "suspects")  # which this session does not have
    browser.wait_for("document.getElementById('banner').innerText.includes('no strategy suspects')")
    wait_for_photo(browser, 0)
    assert browser.evaluate("document.getElementById('strategy').value") == "uncertain"
    browser.press("1")
    eventually(lambda: session.answers == {0: "apple"})


def choose_strategy(browser: Browser, strategy: str) -> None:
    browser.evaluate(
        f"{{const chooser = document.getElementById('strategy'); chooser.value = {strategy!r};"
        "chooser.dispatchEvent(new Event('change'));}"
    )


def test_photo_that_cannot_be_shown_has_its_reason_in_place(chromium: Browser, photos: list[Path]) -> None:
    with LabellingServer(FakeSession(photos[-1:], LABELS)) as server:
        chromium.open(server.url)
        chromium.wait_for(
            "document.getElementById('stage').innerText.includes('not in a known image format')"
        )
        chromium.press("x")
        chromium.wait_for("document.getElementById('stage').innerText === 'All photos are done.'")


def test_enlarged_photo(browser: Browser, session: FakeSession) -> None:
    browser.press("z")
    browser.wait_for("document.querySelector('#zoom img')?.naturalWidth === 320")
    browser.wait_for("document.querySelector('#zoom img').clientWidth >= 2 * 900")
    left = browser.evaluate("document.getElementById('zoom-frame').scrollLeft")
    browser.press("ArrowRight")
    assert browser.evaluate("document.getElementById('zoom-frame').scrollLeft") > left
    browser.press("z")
    assert not browser.evaluate("document.getElementById('zoom').open")
    browser.click("#stage")
    browser.wait_for("document.getElementById('zoom').open")
    browser.press("1")  # an answer closes it
    wait_for_photo(browser, 1)
    assert not browser.evaluate("document.getElementById('zoom').open")
    eventually(lambda: session.answers == {0: "apple"})


def test_hostile_names_are_shown_as_text(browser: Browser, server: LabellingServer) -> None:
    browser.press("/", *"onerror")
    browser.wait_for("document.querySelectorAll('#options li').length === 2")  # it, and a new label
    assert browser.evaluate("document.querySelector('#options li').textContent") == HOSTILE
    browser.press("Enter")
    wait_for_photo(browser, 1)
    browser.wait_for(f"document.getElementById('per-label').innerText.includes({HOSTILE!r})")
    assert browser.evaluate("document.querySelectorAll('img[src=x]').length") == 0
    check_quiet(browser, server)


def test_keys_in_the_search_field_are_no_commands(browser: Browser, session: FakeSession) -> None:
    browser.press("/", *"xsu1", "Escape")
    time.sleep(0.2)
    assert session.answers == {}
    browser.press("1")
    wait_for_photo(browser, 1)


def test_page_that_is_loaded_again_shows_the_same_photo(
    browser: Browser, server: LabellingServer, session: FakeSession
) -> None:
    browser.press("1")
    wait_for_photo(browser, 1)
    eventually(lambda: session.answers == {0: "apple"})
    browser.open("about:blank#left")
    browser.open(server.url)
    wait_for_photo(browser, 1)


@pytest.mark.parametrize("view", ["single", "grid"])
def test_controls_have_names_for_screen_readers(browser: Browser, view: str) -> None:
    if view == "grid":
        browser.press("g")
        browser.wait_for("document.querySelectorAll('.tile').length === 24")
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "combobox", "textbox", "image", "listbox", "progressbar", "option")
    found = [node for node in nodes if node.get("role", {}).get("value") in roles and not node["ignored"]]
    assert len(found) > 8
    assert [node for node in found if not node.get("name", {}).get("value")] == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("view", ["single", "grid"])
def test_page_fits_a_phone_with_large_targets(browser: Browser, view: str, dark: bool) -> None:
    browser.set_screen(390, 844, phone=True, dark=dark)
    if view == "grid":
        browser.click("#mode-grid")
        browser.wait_for("document.querySelectorAll('.tile').length === 24")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    small = browser.evaluate(
        "[...document.querySelectorAll('button:not(.enlarge), select, input')]"
        ".filter((one) => one.checkVisibility())"
        ".map((one) => [one.id, one.getBoundingClientRect()])"
        ".filter(([, box]) => box.width < 44 || box.height < 43.5).map(([id]) => id)"
    )
    assert small == []
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) is dark
