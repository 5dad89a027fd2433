"""The page in a real browser, from file://: it sorts, searches, filters, and asks the network for nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from leaderboard_samples import SAM, Bench, fill, make_card, make_record

from sam_bench.leaderboard import BuiltLeaderboard, build_leaderboard

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
MARKUP = "<script>document.title = 'broken out'</script><img src=x onerror=\"document.title = 'broken out'\">"

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
        "window-size=1300,1000",
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
    return build_leaderboard(bench.folder, title="Leaderboard of a test")


@pytest.fixture
def page(browser: Any, built: BuiltLeaderboard) -> Any:
    browser.get(built.paths["html"].as_uri())
    return browser


def column(page: Any, index: int, board: int = 0) -> list[str]:
    """The visible texts of a column on one board, in the order shown."""
    rows = page.find_elements("css selector", "#leaderboard tbody")[board].find_elements("css selector", "tr.row")
    return [row.find_elements("css selector", "th,td")[index].text for row in rows if row.is_displayed()]


def click_header(page: Any, index: int) -> None:
    page.find_elements("css selector", "thead th button")[index].click()


def test_rows_come_ranked_by_robust_accuracy(page: Any) -> None:
    assert column(page, 0) == [str(rank) for rank in range(1, 8)]
    robust = [float(text) for text in column(page, 3)]
    assert robust == sorted(robust, reverse=True) and len(robust) == 7


@pytest.mark.parametrize("index", [0, 2, 3, 8, 9])
def test_a_numeric_header_sorts_by_number_in_both_directions(page: Any, index: int) -> None:
    orders = []
    for _ in range(2):
        click_header(page, index)
        orders.append([float(text) for text in column(page, index)])
    first_descends = index == 2  # accuracies start from the best; robust was sorted so from the start
    assert orders[0] == sorted(orders[0], reverse=first_descends)
    assert orders[1] == sorted(orders[0], reverse=not first_descends)


def test_training_passes_sort_as_numbers_not_as_texts(page: Any) -> None:
    click_header(page, 9)
    assert column(page, 9) == ["10", "20", "20", "20", "20", "110", "110"]
    click_header(page, 9)
    assert column(page, 9) == ["110", "110", "20", "20", "20", "20", "10"]


def test_a_row_without_a_rank_stays_below_however_the_board_is_sorted(page: Any) -> None:
    for index in (3, 3, 0, 0, 1, 1):
        click_header(page, index)
        assert column(page, 0, board=1)[-1] == "–" and column(page, 1, board=1)[-1].startswith("at-eps4")
    assert float(column(page, 3, board=1)[-1]) == max(float(text) for text in column(page, 3, board=1))


def test_a_text_header_sorts_names_and_the_details_stay_with_their_row(page: Any) -> None:
    click_header(page, 1)
    names = [text.split("[")[0].strip() for text in column(page, 1)]
    assert names == ["at-eps4", "at-eps8", "hostile", "sam-rho0.1", "sam-rho0.2", "sam-rho0.4", "standard"]
    page.find_elements("css selector", "tr.row .open")[5].click()
    details = [row.text for row in page.find_elements("css selector", "tr.details") if row.is_displayed()]
    assert len(details) == 1 and "evaluate sam-rho0.4 " in details[0]


def test_search_keeps_the_rows_that_have_every_word(page: Any) -> None:
    field = page.find_element("id", "search")
    field.send_keys("SAM rho=0.2 digits")
    shown = [row.text for row in page.find_elements("css selector", "tr.row") if row.is_displayed()]
    assert len(shown) == 1 and "tiny-sam" in shown[0]
    assert page.find_element("id", "count").text == "1 of 21 rows"
    field.send_keys(" nowhere")
    assert page.find_element("id", "nothing").is_displayed()


def test_the_board_filter_leaves_one_board_and_its_panel(page: Any, built: BuiltLeaderboard) -> None:
    board = built.boards[2]
    page.find_element("css selector", f'#board option[value="{board.key}"]').click()
    shown = [
        part.get_attribute("data-board") for part in page.find_elements("css selector", "tbody") if part.is_displayed()
    ]
    panels = [
        part.get_attribute("data-board") for part in page.find_elements("css selector", ".panel") if part.is_displayed()
    ]
    assert shown == panels == [board.key]
    assert page.find_element("id", "count").text == "6 of 21 rows"


def test_an_opened_row_gives_its_commands_and_links_that_lead_to_files(page: Any, built: BuiltLeaderboard) -> None:
    page.find_elements("css selector", "tr.row .open")[2].click()
    (details,) = [row for row in page.find_elements("css selector", "tr.details") if row.is_displayed()]
    assert "sam-bench train --recipe sam --name sam-rho0.4" in details.text and "zero-gradients" in details.text
    links = {link.text: link.get_attribute("href") for link in details.find_elements("tag name", "a")}
    assert len(links) == 3 and "cifar10/Linf/records/sam-rho0.4-autoattack-Linf-8over255.json" in links
    for href in links.values():
        assert Path(href.removeprefix("file://")).is_file()


def test_a_doubtful_record_is_marked_and_the_mark_says_why(page: Any) -> None:
    marks = page.find_elements("css selector", "tr.row sup")
    assert any("zero-gradients" in mark.get_attribute("title") for mark in marks)


def test_markup_in_a_card_or_record_is_shown_as_text(page: Any) -> None:
    next(button for button in page.find_elements("css selector", ".open") if button.text == "hostile").click()
    (details,) = [row for row in page.find_elements("css selector", "tr.details") if row.is_displayed()]
    assert details.text.count(MARKUP) >= 4  # note, command, paper, authors
    assert page.title == "Leaderboard of a test"


def test_nothing_is_asked_of_the_network_and_the_console_is_silent(page: Any, built: BuiltLeaderboard) -> None:
    for kind in ("performance", "browser"):
        page.get_log(kind)  # forget what came before
    page.get(built.paths["html"].as_uri())
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert {url.split(":")[0] for url in asked} <= {"file", "data"} and built.paths["html"].as_uri() in asked
    assert page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)") == []
    assert page.get_log("browser") == []


@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (1300, "dark"), (390, "light"), (390, "dark")])
def test_text_can_be_read_and_the_page_never_scrolls_sideways(page: Any, width: int, scheme: str) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    page.refresh()
    overflow = page.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0
    ink, paper = page.execute_script(
        "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    )
    assert contrast(ink, paper) > 7
    assert (luminance(paper) < 0.2) == (scheme == "dark")
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("width", [360, 390, 1440])
def test_rank_model_clean_and_robust_accuracy_are_seen_without_scrolling(page: Any, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    page.refresh()
    right = "arguments[0].getBoundingClientRect().right"
    edge = page.execute_script(f"return {right}", page.find_element("css selector", ".scroll"))
    cells = page.find_elements("css selector", "thead th.number:nth-child(4), td.main, tr.board th span")
    assert len(cells) > 20
    assert max(page.execute_script(f"return {right}", cell) for cell in cells) <= edge
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def luminance(colour: str) -> float:
    """WCAG's relative luminance of `rgb(r, g, b)`."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
