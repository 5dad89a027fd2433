"""The pages in a real browser, from file://: they sort, search and draw, cut nothing off, and ask for no network.

Screenshots at 390 and 1440 pixels, light and dark, are written into `build/screenshots`.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from leaderboard_samples import SAM, Bench, fill, make_card, make_record

from sam_bench.leaderboard import BuiltLeaderboard, build_leaderboard
from sam_bench.leaderboard.site import Content
from sam_bench.leaderboard.site.assets import assets
from sam_bench.leaderboard.site.pages import render_board
from sam_bench.records import write_atomic

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
MARKUP = "<script>document.title = 'broken out'</script><img src=x onerror=\"document.title = 'broken out'\">"
BOARD, MODEL = "boards/cifar10-Linf-8over255-autoattack.html", "models/cifar10/Linf/at-eps8.html"
HOSTILE = "models/cifar10/Linf/hostile.html"
PAGES = {"start": "index.html", "board": BOARD, "model": MODEL}

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="needs Chromium and its driver; on Debian and Ubuntu: apt-get install chromium chromium-driver",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for switch in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-quic",
        "no-first-run",
        "hide-scrollbars",
        "window-size=1440,1000",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{switch}")
    # With the driver's path given, selenium looks for none and downloads none.
    driver = webdriver.Chrome(options=options, service=Service(executable_path=str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltLeaderboard:
    bench = Bench(tmp_path_factory.mktemp("bench"))
    fill(bench)
    card = make_card("hostile", SAM, authors=MARKUP, paper_title=MARKUP)
    bench.submit(card, make_record(card, clean=70, robust=1, warnings=(MARKUP,), command=MARKUP))
    # As long a name as there can be, without a place to break it.
    long = make_card("n" * 80, SAM.model_copy(update={"name": "method" * 8}))
    bench.submit(long, make_record(long, clean=60, robust=1))
    few = make_card("few")
    bench.submit(few, make_record(few, clean=45, robust=44, n=50))
    return build_leaderboard(bench.folder)


class Viewer:
    """A browser on the pages of one site."""

    def __init__(self, driver: Any, site: Path) -> None:
        self.driver, self.site = driver, site

    def open(self, page: str, width: int = 1440, scheme: str = "light") -> None:
        """Show a page and wait until it is drawn."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.get((self.site / page).as_uri())
        self.wait()

    def wait(self) -> None:
        """Until every plot is drawn."""
        from selenium.webdriver.support.ui import WebDriverWait

        drawn = "return [...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.marks'))"
        WebDriverWait(self.driver, 20).until(lambda driver: driver.execute_script(drawn))

    def run(self, script: str, *given: Any) -> Any:
        return self.driver.execute_script(script, *given)

    def column(self, index: int) -> list[str]:
        """The texts of a column of the board's table, in the order shown."""
        return self.run(
            "return [...document.querySelector('table.board').tBodies[0].rows].map(row => row.cells[arguments[0]]"
            ".innerText.split('\\n')[0].split('[')[0].trim())",
            index,
        )

    def press(self, index: int) -> None:
        """Sort by a column as a keyboard does."""
        from selenium.webdriver.common.keys import Keys

        header = self.driver.find_elements("css selector", "table.board thead th")[index]
        target = self.run(
            "const own = arguments[0]; return own.tabIndex >= 0 ? own : own.querySelector('[tabindex]')", header
        )
        assert target is not None, "the header cannot be reached by the keyboard"
        target.send_keys(Keys.ENTER)
        self.run("return new Promise(done => setTimeout(done, 50))")  # DataTables sorts after the event


@pytest.fixture
def viewer(browser: Any, built: BuiltLeaderboard) -> Viewer:
    return Viewer(browser, built.paths["html"].parent)


CUT_OFF = """
const cut = [];
for (const own of document.querySelectorAll('body *')) {
  if (own.closest('svg') || own.closest('.hidden') || own.matches('.skip, script')) continue;
  const box = own.getBoundingClientRect();
  if (!box.width) continue;
  const scrolls = own.scrollWidth > own.clientWidth + 1 && getComputedStyle(own).display !== 'inline';
  if (scrolls || box.right > innerWidth + 1 || box.left < -1) cut.push(own.outerHTML.slice(0, 80));
}
for (const plot of document.querySelectorAll('.plot svg.marks')) {
  const frame = plot.getBoundingClientRect();
  for (const text of plot.querySelectorAll('text')) {
    const box = text.getBoundingClientRect();
    if (box.right > frame.right + 1 || box.left < frame.left - 1) cut.push('svg ' + text.textContent);
  }
}
return [document.documentElement.scrollWidth - document.documentElement.clientWidth, cut];
"""


@pytest.mark.parametrize(("page", "width"), [(BOARD, 768), (BOARD, 2560), (MODEL, 768), (HOSTILE, 390)])
def test_nothing_is_cut_off_and_no_page_scrolls_sideways(viewer: Viewer, page: str, width: int) -> None:
    viewer.open(page, width)
    assert viewer.run(CUT_OFF) == [0, []]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_whole_and_can_be_read_in_both_themes(viewer: Viewer, page: str, width: int, scheme: str) -> None:
    viewer.open(PAGES[page], width, scheme)
    assert viewer.run(CUT_OFF) == [0, []]
    found = viewer.run("""
      return [...document.querySelectorAll('body *')].filter(own => !own.closest('.hidden') &&
        [...own.childNodes].some(node => node.nodeType === 3 && node.data.trim()) && own.getClientRects().length)
        .map(own => {
          let ground = own;
          const clear = colour => colour === 'rgba(0, 0, 0, 0)';
          while (ground.parentElement && clear(getComputedStyle(ground).backgroundColor)) ground = ground.parentElement;
          const style = getComputedStyle(own);
          const ink = own.closest('svg') ? style.fill : style.color;
          return [ink, getComputedStyle(ground).backgroundColor, own.textContent.slice(0, 30)];
        })""")
    low = [(text, ink, paper) for ink, paper, text in found if contrast(ink, paper) < 4.5]
    assert len(found) > 30 and not low
    assert (luminance(found[0][1]) < 0.2) == (scheme == "dark")
    shot = viewer.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    (SCREENSHOTS / f"{page}-{width}-{scheme}.png").write_bytes(base64.b64decode(shot["data"]))


def test_name_accuracies_and_state_are_seen_on_a_narrow_screen_and_the_rest_is_folded(viewer: Viewer) -> None:
    viewer.open(BOARD, 390)
    shown = viewer.run("""
      return [...document.querySelectorAll('table.board thead th')].filter(own => own.getClientRects().length)
        .map(own => [own.innerText.trim(), own.getBoundingClientRect().right])""")
    assert [text for text, _ in shown] == ["rank", "model", "clean", "robust", "state"]
    assert max(right for _, right in shown) <= 390
    assert "AT Linf 8/255, PreActResNet-18 (width 16), 110 passes" in viewer.driver.page_source
    assert viewer.run("return document.querySelector('.fold').getBoundingClientRect().height") > 0


def test_headers_sort_by_number_with_the_keyboard_and_rows_without_a_rank_stay_below(viewer: Viewer) -> None:
    viewer.open(BOARD)
    assert viewer.column(0)[-1] == "–" and viewer.column(1)[-1] == "few"
    for index, descends_first in ((2, True), (3, True), (7, False), (9, False)):
        for descends in (descends_first, not descends_first):
            viewer.press(index)
            texts = viewer.column(index)
            assert viewer.column(1)[-1] == "few"
            values = [float(text.rstrip("kM")) for text in texts[:-1]]
            assert values == sorted(values, reverse=descends)
    header = viewer.driver.find_elements("css selector", "table.board thead th")[9]
    assert header.get_attribute("aria-sort") == "descending"


def test_search_leaves_the_rows_with_every_word(viewer: Viewer) -> None:
    viewer.open(BOARD)
    field = viewer.driver.find_element("css selector", ".dt-search input")
    assert viewer.run("return arguments[0].labels.length", field) == 1
    field.send_keys("rho=0.4 sam")
    assert viewer.column(1) == ["sam-rho0.4"]


def test_markup_in_a_card_or_record_is_shown_as_text_and_never_runs(viewer: Viewer) -> None:
    for page in (HOSTILE, BOARD):
        viewer.open(page)
        assert MARKUP in viewer.driver.find_element("tag name", "main").text
        assert viewer.driver.title.endswith("sam-bench leaderboard")


def test_both_plots_of_a_board_show_every_model_and_its_page(viewer: Viewer) -> None:
    viewer.open(BOARD)
    marks = "return document.querySelectorAll('.plot .mark-symbol.role-mark path').length"
    assert viewer.run(marks) == 2 * 8
    assert viewer.run("return document.querySelectorAll('.plot .role-legend-label text').length") == 2 * 4


def test_nothing_is_asked_of_the_network_and_the_console_is_silent(viewer: Viewer) -> None:
    for kind in ("performance", "browser"):
        viewer.driver.get_log(kind)  # forget what came before
    for page in PAGES.values():
        viewer.open(page)
    events = [json.loads(entry["message"])["message"] for entry in viewer.driver.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert {url.split(":")[0] for url in asked} <= {"file", "data"} and len(asked) >= 6
    assert viewer.driver.get_log("browser") == []


def test_a_thousand_models_are_drawn_in_two_seconds(browser: Any, built: BuiltLeaderboard, tmp_path: Path) -> None:
    first = built.boards[0].rows[0]
    rows = []
    for index in range(1000):
        path = tmp_path / "cifar10" / "Linf" / f"model-{index:04}.json"
        shares = {"clean_accuracy": 0.95 - index / 3000, "robust_accuracy": 0.5 - index / 2500}
        row = first.row.model_copy(update=shares)
        rows.append(replace(first, stored=replace(first.stored, path=path), row=row, rank=index + 1))
    board = replace(built.boards[0], rows=tuple(rows))
    content = Content([board], tmp_path)
    write_atomic(content.board_page(board), render_board(content, board))
    for name, text in assets().items():
        write_atomic(content.site / "assets" / name, text)
    viewer = Viewer(browser, content.site)
    # The main thread's own time: other work of the machine is not in it. The first time, the scripts are compiled.
    taken = []
    for _ in range(2):
        browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        viewer.open(BOARD)
        metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        browser.execute_cdp_cmd("Performance.disable", {})
        taken += [each["value"] for each in metrics if each["name"] == "TaskDuration"]
    assert len(viewer.column(1)) == 100
    assert "of 1,000 models" in viewer.driver.find_element("css selector", ".dt-info").text
    assert min(taken) < 2, f"the page took {taken} s"
    print(f"1,000 models: {taken} s")


def luminance(colour: str) -> float:
    """WCAG's relative luminance of `rgb(r, g, b)`."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
