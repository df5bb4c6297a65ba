"""The page in a real browser: what it shows, in light and dark, on a wide screen and on a phone."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import chromium
import pytest
from chromium import Chromium

import support
from pydist import _progress

pytestmark = pytest.mark.skipif(
    chromium.path() is None, reason="no Chromium is installed (Debian, Ubuntu: apt-get install chromium)"
)

SCREENSHOTS = Path(__file__).parent / "screenshots"
WORKERS = "[...document.querySelectorAll('#workers tbody tr')]"
# The contrast of texts to the panel that they are on, as WCAG 2 defines it.
CONTRAST = """(() => {
  const linear = (x) => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  const luminance = (colour) => {
    const [r, g, b] = colour.match(/\\d+/g).map((n) => linear(n / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const ground = luminance(getComputedStyle(document.querySelector('.panel')).backgroundColor);
  return TEXTS.map((text) => {
    const own = luminance(getComputedStyle(document.querySelector(text)).color);
    return [text, Math.max(ground, own) / Math.min(ground, own)];
  });
})()"""
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def page(d: ModuleType, nothing_left: None) -> Iterator[Chromium]:
    """Give a browser that shows the dashboard; its pictures are kept."""
    SCREENSHOTS.mkdir(exist_ok=True)
    # Maps of other tests, which are remembered.
    _progress._ended.clear()
    with d.dashboard() as board, Chromium() as page:
        page.emulate(width=1280, height=800, scheme="light")
        page.show(board.url)
        page.wait_for("document.querySelector('#link').dataset.state === 'live'", 40)
        yield page
    print(f"\nscreenshots are in {SCREENSHOTS}")


def cell(pid: int, name: str) -> str:
    """Return the expression for the text of a cell of a worker."""
    place = ["id", "state", "host", "pid", "cpu", "memory", "calls", "in", "out", "runs"].index(name)
    return f"({WORKERS}.find(row => row.dataset.key === '{pid}')?.cells[{place}].innerText ?? '').trim()"


def fail(text: str) -> None:
    raise ValueError(text)


def shot(page: Chromium, name: str) -> None:
    path = SCREENSHOTS / f"{name}.png"
    page.screenshot(path)
    data = path.read_bytes()
    width, height = (int.from_bytes(data[at : at + 4]) for at in (16, 20))
    assert width * height > 300 * 600
    # One colour alone would be compressed to far less.
    assert len(data) > 10_000
    assert zlib.crc32(data)


def test_page_without_workers_says_how_to_get_some(d: ModuleType, page: Chromium) -> None:
    page.wait_for("!document.querySelector('#no-workers').hidden")
    assert "addprocs(4)" in page.evaluate("document.querySelector('#no-workers').innerText")
    assert not page.evaluate("document.querySelector('#no-maps').hidden")
    assert not page.evaluate("document.querySelector('#no-channels').hidden")
    assert page.evaluate(cell(1, "pid")) == str(os.getpid())
    shot(page, "empty")


def test_page_shows_workers_as_they_come(d: ModuleType, page: Chromium, workers: list[int]) -> None:
    for pid in workers:
        page.wait_for(f"{cell(pid, 'state')} === 'idle'")
        assert page.evaluate(cell(pid, "pid")) == str(d.remotecall_fetch(os.getpid, pid))
        assert re.fullmatch(r"\d+ MB", page.evaluate(cell(pid, "memory")))
    assert page.evaluate("document.querySelector('#no-workers').hidden")


def test_page_shows_the_progress_of_a_map(d: ModuleType, page: Chromium, workers: list[int]) -> None:
    values = d.pgenerate(support.nap, [0.03] * 100, batch_size=1)
    next(values)
    bar = "document.querySelector('#maps li.running progress')"
    first = page.wait_for(f"{bar}?.value")
    for _ in range(30):
        next(values)
    page.wait_for(f"{bar}?.value > {first}")
    assert page.evaluate(f"{bar}.max") == 100
    page.wait_for("/ left$/.test(document.querySelector('#maps li.running .left')?.innerText)")
    page.wait_for("[...document.querySelectorAll('#legend li')].some(li => li.innerText === 'nap [map]')")
    shot(page, "map")
    assert len(list(values)) == 69
    page.wait_for("document.querySelector('#maps li.done') !== null")
    assert page.evaluate("document.querySelector('#maps li.done .what').innerText") == "100 of 100"


def test_page_shows_channels_with_depth_and_waiters(
    d: ModuleType, page: Chromium, workers: list[int]
) -> None:
    channel = d.RemoteChannel(lambda: d.Channel(2), workers[0])
    puts = [d.remotecall(channel.put, workers[1], n) for n in range(5)]
    words = "row => row.innerText.split(/\\s+/).join(' ')"
    rows = f"[...document.querySelectorAll('#channels tbody tr')].map({words})"
    page.wait_for(f"{rows}.some(text => / {workers[0]} 2 of 2 3 0$/.test(text))", what="2 of 2, 3 putters")
    shot(page, "channels")
    assert sorted(channel.take() for _ in range(5)) == list(range(5))
    d.wait(puts)
    page.wait_for(f"{rows}.some(text => / {workers[0]} 0 of 2 0 0$/.test(text))")


def test_page_shows_a_worker_whose_python_is_stuck(
    d: ModuleType, page: Chromium, workers: list[int], tmp_path: Path
) -> None:
    future = d.remotecall(support.hold_gil, workers[1], 4.0, str(tmp_path / "started"))
    support.wait_until((tmp_path / "started").exists)
    page.wait_for(f"{cell(workers[1], 'runs')}.startsWith('hold_gil for')")
    assert page.evaluate(cell(workers[1], "state")) == "busy"
    assert not future.isready()
    shot(page, "stuck")
    future.fetch()
    page.wait_for(f"{cell(workers[1], 'state')} === 'idle'")


def test_page_shows_output_and_errors_as_text(d: ModuleType, page: Chromium, workers: list[int]) -> None:
    d.remotecall_fetch(print, workers[0], HOSTILE)
    with pytest.raises(ValueError, match="img"):
        d.remotecall_fetch(fail, workers[0], HOSTILE)
    log = "document.querySelector('#output').innerText"
    page.wait_for(f"{log}.includes('onerror')")
    page.wait_for(f"{log}.includes('fail: ValueError: <img')")
    assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0
    assert page.evaluate("document.title") != "taken"
    page.evaluate("document.querySelector('[data-show=errors]').click()")
    assert page.evaluate("document.querySelectorAll('#output .stdout').length") == 0
    assert page.evaluate("document.querySelectorAll('#output .error').length") >= 1
    page.evaluate("document.querySelector('[data-show=all]').click()")
    page.evaluate("document.querySelector('#recent').open = true")
    page.wait_for("document.querySelector('#calls').innerText.includes('ValueError')")
    page.evaluate("document.querySelector('#recent').open = false")


def test_page_f1_shows_why_a_worker_died(d: ModuleType, page: Chromium, workers: list[int]) -> None:
    """F1: a worker is killed: its row stays, with the signal."""
    (pid,) = d.addprocs(1)
    page.wait_for(f"{cell(pid, 'state')} === 'idle'")
    d.remote_do(support.kill_self, pid)
    page.wait_for(f"{cell(pid, 'state')} === 'gone'")
    assert "SIGKILL" in page.evaluate(cell(pid, "runs"))
    page.wait_for(f"document.querySelector('#output').innerText.includes('worker {pid} is gone')")
    page.wait_for("document.querySelector('#n-workers').innerText.includes('1 gone')")


def test_page_is_light_or_dark_and_fits_every_screen(page: Chromium) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        for name, width, height in (("wide", 1280, 800), ("phone", 390, 844)):
            page.emulate(width=width, height=height, scheme=scheme)
            page.wait_for(f"innerWidth === {width}")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            grounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
            shot(page, f"{name}-{scheme}")
    assert all(int(n) > 200 for n in re.findall(r"\d+", grounds["light"]))
    assert all(int(n) < 60 for n in re.findall(r"\d+", grounds["dark"]))
    page.emulate(width=1280, height=800, scheme="light")


def test_page_reads_well(page: Chromium) -> None:
    """Text stands out from what is behind it by 4.5 to 1, as WCAG asks, in light and in dark."""
    tags = ["h2", "small", "th", "td", "summary"]
    classes = [".note", ".state.idle", ".state.gone", "td.runs", ".error .text"]
    contrast = CONTRAST.replace("TEXTS", str(tags + classes))
    for scheme in ("light", "dark"):
        page.emulate(width=1280, height=800, scheme=scheme)
        assert [(text, ratio) for text, ratio in page.evaluate(contrast) if ratio < 4.5] == []
    page.emulate(width=1280, height=800, scheme="light")


def test_page_can_be_used_by_keyboard(page: Chromium) -> None:
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(30):
        page.press("Tab")
        reached.append(page.evaluate("document.activeElement.innerText.trim() || document.activeElement.id"))
        if reached[-1] == "Memory":
            break
    assert reached[-1] == "Memory", reached
    assert "Recent calls as a table" in reached
    page.press("Enter")
    order = "document.querySelector('#workers th[data-sort=memory]').getAttribute('aria-sort')"
    assert page.evaluate(order) == "descending"
    page.press("Enter")
    assert page.evaluate(order) == "ascending"


def test_page_does_not_jump(d: ModuleType, page: Chromium) -> None:
    """What has been shown stays where it is while figures change."""
    page.evaluate(
        "window.moved = 0; new PerformanceObserver((list) => list.getEntries().forEach("
        "(entry) => window.moved += entry.value)).observe({ type: 'layout-shift' })"
    )
    d.pmap(support.nap, [0.01] * 200)
    seen = page.evaluate("known.history.at(-1).time")
    page.wait_for(f"known.history.at(-1).time > {seen} + 1.5")
    assert page.evaluate("window.moved") < 0.02


def test_page_asks_for_nothing_elsewhere_and_complains_of_nothing(d: ModuleType, page: Chromium) -> None:
    """Last, as it looks at all that the tests before have caused."""
    page.evaluate("1")
    port = d.dashboard().port
    assert page.requests
    assert {urlsplit(url).netloc for url in page.requests} == {f"127.0.0.1:{port}"}
    assert page.complaints == []
    # What would go elsewhere is refused by the browser itself.
    assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"
    page.wait_until(lambda: page.evaluate("1") and page.complaints, 10, "the browser's word on that")
    assert any("Content Security Policy" in complaint for complaint in page.complaints)


def test_page_says_that_the_program_has_ended(d: ModuleType, page: Chromium) -> None:
    d.dashboard().close()
    page.wait_for("document.querySelector('#link').dataset.state === 'lost'")
    assert "may have ended" in page.evaluate("document.querySelector('#link').innerText")
