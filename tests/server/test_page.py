"""The dashboard in a real browser, against real daemons."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.server.conftest import Daemon, until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# No sandbox: CI runs as root. The rest keeps the browser from asking anybody else.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CUE = "ERROR payments: provider answered 502, 3 orders are held"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no chromium here: apt-get install chromium, or the like"
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all pages of this module."""
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        running.close()


class Seen:
    """A page, and whatever it complained of or asked elsewhere."""

    def __init__(self, browser: Browser, daemon: Daemon, **options: object) -> None:
        self.context = browser.new_context(**options)  # type: ignore[arg-type]
        self.page: Page = self.context.new_page()
        self.origin = f"http://127.0.0.1:{daemon.port}"
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", lambda message: self._hear(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.goto(self.origin)

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def _asked(self, url: str) -> None:
        if not url.startswith((self.origin, "data:")):
            self.elsewhere.append(url)

    def lives(self) -> None:
        """Wait until it shows a daemon that learns."""
        expect(self.page.locator("#state")).to_have_text("learning", timeout=60_000)


@pytest.fixture
def seen(browser: Browser, daemon: Daemon) -> Iterator[Seen]:
    """The module's daemon in a fresh page, which must not complain, nor ask anybody else."""
    shown = Seen(browser, daemon)
    shown.lives()
    yield shown
    assert shown.complaints == []
    assert shown.elsewhere == []
    shown.context.close()


def test_it_can_be_fed(seen: Seen, daemon: Daemon) -> None:
    """What is typed is learned; the receipt says so, and the offset moves."""
    before = int(str(daemon.status()["offset"]))
    seen.page.get_by_label("Text to be learned").fill("one line\nanother line")
    seen.page.get_by_role("button", name="Learn").click()
    expect(seen.page.locator("#feed-answer")).to_contain_text("learned 2 chunks")
    assert daemon.status()["offset"] == before + len("one line\nanother line\n")
    expect(seen.page.locator("#offset")).to_have_text(f"{daemon.status()['offset']:,}")


def test_it_can_be_asked(seen: Seen, daemon: Daemon) -> None:
    """The match is shown, and of both cue and match the parts that they share, whole characters."""
    daemon.ingest("überall: ERROR 4711 \U0001f41b here\n".encode())
    seen.page.get_by_label("Cue").fill("überall: ERROR 42 \U0001f41b here")
    seen.page.get_by_label("Cue").press("Enter")
    answer = seen.page.locator("#ask-answer")
    expect(answer.locator("tbody tr").first).to_contain_text("überall: ERROR 4711 \U0001f41b here")
    marks = answer.locator("tbody tr").first.locator("mark").all_text_contents()
    assert "überall: ERROR 4" in marks
    assert any("\U0001f41b here" in mark for mark in marks)
    assert "\ufffd" not in answer.text_content()  # type: ignore[operator]
    expect(answer.locator("code").first).to_have_text("überall: ERROR 42 \U0001f41b here")
    assert answer.locator("p").nth(1).locator("mark").count() >= 2
    reply = daemon.recall("überall: ERROR 42 \U0001f41b here".encode()).json()
    expect(answer.locator(".figure")).to_have_text(f"{reply['familiarity']:.3f}")


def test_a_refusal_is_told(seen: Seen, daemon: Daemon) -> None:
    """In the problem's own words, where the answer would have been."""
    seen.page.get_by_label("Cue").fill("x" * 4097)
    seen.page.get_by_role("button", name="Recall").click()
    expect(seen.page.locator("#ask-answer")).to_contain_text("more than 4096 bytes")
    expect(seen.page.locator("#ask-answer")).to_have_class("answer refused")
    # The browser itself notes a reply of 413; nothing else may have been wrong.
    assert all("413" in complaint for complaint in seen.complaints)
    seen.complaints.clear()


def test_what_others_send_is_shown_live(seen: Seen, daemon: Daemon) -> None:
    """Numbers, traces and the novel chunks move without a reload; markup in a chunk is text."""
    evil = "<img src=x onerror=alert(1)> never seen before"
    daemon.ingest(evil.encode() + b"\n")
    expect(seen.page.locator("#offset")).to_have_text(f"{daemon.status()['offset']:,}")
    expect(seen.page.locator("#steps")).to_have_text(f"{daemon.status()['steps']:,}")
    row = seen.page.locator("#novel tbody tr", has_text="never seen before")
    expect(row.locator("td").last).to_have_text(evil)
    assert seen.page.locator("#novel img").count() == 0
    for trace in seen.page.locator(".trace").all():
        expect(trace).to_have_attribute("d", re.compile("M"))


def test_the_rule_is_drawn_and_named(seen: Seen, daemon: Daemon) -> None:
    """A picture for each weight, in many colours; its leading terms, as the daemon says."""
    rule = daemon.client.get("/genome/rule").json()
    expect(seen.page.locator("#maps canvas")).to_have_count(len(rule["w"]))
    colours = seen.page.locator("#maps canvas").first.evaluate(
        "c => new Set(new Uint32Array(c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data.buffer)).size"
    )
    assert colours > 20
    first = rule["terms"][0]
    row = seen.page.locator("#terms tbody tr").first
    expect(row).to_contain_text(first["name"])
    expect(row).to_contain_text(f"{first['coefficient']:+.3f}")


def test_live_recall_is_shown(browser: Browser, tmp_path: Path, genome_path: Path) -> None:
    """As soon as it is measured."""
    settings = {"ORGANISM_PROBE_INTERVAL_S": "0.05"}
    with Daemon(tmp_path / "state", genome_path, settings) as daemon:
        daemon.ingest(b"".join(b"line %d is lived through\n" % i for i in range(100)))
        seen = Seen(browser, daemon)
        for name in ("auroc", "top1", "error"):
            expect(seen.page.locator(f"#{name}")).to_contain_text(".", timeout=20_000)
        seen.context.close()


def test_it_comes_back_with_its_daemon(browser: Browser, tmp_path: Path, genome_path: Path) -> None:
    """A daemon that is gone is told; when it is there again, all goes on without a reload."""
    with Daemon(tmp_path / "state", genome_path) as daemon:
        seen = Seen(browser, daemon)
        seen.lives()
        daemon.kill()
        expect(seen.page.locator("#state")).to_contain_text("not connected", timeout=15_000)
        daemon.again()
        seen.lives()
        until(daemon.ready)
        daemon.ingest(b"after the restart\n")
        expect(seen.page.locator("#offset")).to_have_text("18", timeout=15_000)
        # A connection that is refused is the network's complaint, not the page's.
        assert all("ERR_" in complaint for complaint in seen.complaints), seen.complaints
        seen.context.close()


def test_it_asks_for_the_key(browser: Browser, tmp_path: Path, genome_path: Path) -> None:
    """A wrong one is told; the right one is kept for the tab, and lets all the rest work."""
    with Daemon(tmp_path / "state", genome_path, {"ORGANISM_API_KEY": "right"}) as daemon:
        seen = Seen(browser, daemon)
        field = seen.page.get_by_label("Key")
        field.fill("wrong")
        field.press("Enter")
        expect(seen.page.locator("#key-answer")).to_have_text("That key was refused.")
        field.fill("right")
        field.press("Enter")
        seen.lives()
        expect(seen.page.locator("#key-form")).to_be_hidden()
        seen.page.get_by_label("Text to be learned").fill("with a key")
        seen.page.get_by_role("button", name="Learn").click()
        expect(seen.page.locator("#feed-answer")).to_contain_text("learned 1 chunk")
        assert seen.page.evaluate("localStorage.length") == 0
        seen.page.reload()
        seen.lives()
        seen.context.close()


_CONTRASTS = """() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const [x, y, z] = [r, g, b].map((v) => linear(v / 255));
    return .2126 * x + .7152 * y + .0722 * z;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const texts = [...document.querySelectorAll("body *")].filter((e) =>
    e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()));
  return texts.map((e) => {
    const both = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    const [a, b] = both.sort((x, y) => y - x);
    return [(a + .05) / (b + .05), e.textContent.trim().slice(0, 30)];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read(browser: Browser, daemon: Daemon, scheme: str) -> None:
    """Every text has a contrast of at least 4.5 to 1 (WCAG 2.1, 1.4.3)."""
    daemon.ingest(CUE.encode() + b"\n")
    seen = Seen(browser, daemon, color_scheme=scheme)
    seen.lives()
    seen.page.get_by_label("Cue").fill(CUE[:40])
    seen.page.get_by_label("Cue").press("Enter")
    expect(seen.page.locator("#ask-answer mark").first).to_be_visible()
    found = seen.page.evaluate(_CONTRASTS)
    assert len(found) > 40
    assert [text for ratio, text in found if ratio < 4.5] == []
    background = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(246, 247, 249)") == (scheme == "light")
    seen.context.close()


def test_it_fits_a_phone(browser: Browser, daemon: Daemon) -> None:
    """At 360 pixels nothing runs out of the page, the longest chunk included."""
    daemon.ingest(b"x" * 600 + b"\n")
    seen = Seen(browser, daemon, viewport={"width": 360, "height": 740})
    seen.lives()
    expect(seen.page.locator("#novel tbody td").first).to_be_visible()
    assert seen.page.evaluate("document.documentElement.scrollWidth") == 360
    seen.context.close()


def test_it_can_be_used_without_a_mouse_or_eyes(seen: Seen) -> None:
    """Tab reaches every control, each has a name; headings, landmarks and pictures are named."""
    page = seen.page
    expect(page.locator("#maps canvas").first).to_be_visible()
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.id || document.activeElement.textContent")
        )
    assert reached >= {"feed", "Learn", "cue", "Recall", "Skip to the organism"}
    nameless = page.evaluate(
        "[...document.querySelectorAll('input, textarea')].filter((e) => !e.labels.length).length"
    )
    assert nameless == 0
    assert page.locator("h1").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"
    for landmark in ("banner", "main", "contentinfo"):
        expect(page.get_by_role(landmark)).to_have_count(1)
    pictures = page.get_by_role("img").all()
    assert len(pictures) >= 7
    assert all(picture.get_attribute("aria-label") for picture in pictures)
