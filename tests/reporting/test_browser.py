"""The page in headless Chromium: without a network, by mouse and by keyboard, in both themes, narrow and on
paper."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made import ROWS, sweep

from quantlab.reporting.writing import write_sweep

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(sweep(tmp_path_factory.mktemp("sweep"), ROWS))


class Opened:
    """A page in a context without a network, and all that it asked for or complained of."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(offline=True, **options)
        self.asked: list[str] = []
        self.said: list[str] = []
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(file.absolute().as_uri())

    def names(self) -> list[str]:
        texts = self.page.locator("#table tbody th").all_inner_texts()
        return [text.split("\n")[0] for text in texts]

    def plot(self, name: str) -> Any:
        self.page.locator(f"#{name}").scroll_into_view_if_needed()
        self.page.wait_for_selector(f"#{name} .main-svg")
        return self.page.locator(f"#{name}")


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Opened]:
    page = Opened(browser, report, viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield page
    page.context.close()


def test_all_of_it_shows_without_a_network_or_a_complaint(opened: Opened, report: Path) -> None:
    plots = opened.page.locator(".plot").evaluate_all("plots => plots.map(plot => plot.id)")
    for name in plots:
        opened.plot(name)
    assert plots and opened.said == []
    assert [url for url in opened.asked if not url.startswith(("data:", "blob:"))] == [report.as_uri()]


@pytest.mark.slow
def test_plots_wait_until_they_are_seen(opened: Opened) -> None:
    assert opened.page.locator("#noise .main-svg").count() == 0
    opened.plot("noise")


def test_the_table_sorts_by_click_and_by_key(opened: Opened) -> None:
    head = opened.page.get_by_role("button", name=re.compile("^accuracy"))
    up = ["bad k=2", "poor k=3", "good k=4", "FP32"]
    head.click()
    assert opened.names() == up
    assert opened.page.locator("#table thead th[aria-sort]").get_attribute("aria-sort") == "ascending"
    head.focus()
    opened.page.keyboard.press("Enter")
    assert opened.names() == up[::-1]
    opened.page.get_by_role("button", name=re.compile("^difference")).press("Space")
    assert opened.names() == up  # FP32 has no difference: what is empty stands last
    assert opened.page.locator("#table thead th[aria-sort]").count() == 1


def test_the_table_fits_a_laptop_and_its_columns_can_be_chosen(opened: Opened) -> None:
    box = "document.querySelector('#trials .scroll')"
    assert opened.page.evaluate(f"{box}.scrollWidth <= {box}.clientWidth")
    settings = opened.page.locator("#table thead th", has_text=re.compile("^k"))
    assert not settings.is_visible()
    opened.page.get_by_text("Columns").click()
    opened.page.get_by_label("k", exact=True).check()
    assert settings.is_visible()


@pytest.mark.slow
def test_names_stand_beside_points_apart_and_stay_in_another_theme(opened: Opened) -> None:
    plot = opened.plot("pareto")
    opened.page.wait_for_selector("#pareto .annotation-text")
    boxes = [text.bounding_box() for text in plot.locator(".annotation-text").all()]
    for index, one in enumerate(boxes):
        for other in boxes[:index]:
            apart = one["x"] >= other["x"] + other["width"] or other["x"] >= one["x"] + one["width"]
            assert apart or abs(one["y"] - other["y"]) >= min(one["height"], other["height"]) - 2
    opened.page.get_by_role("button", name="Dark theme").click()
    opened.page.wait_for_timeout(300)
    names = {"FP32", "good k=4", "poor k=3", "bad k=2"}
    assert names <= set(plot.locator(".annotation-text").all_text_contents())


@pytest.mark.slow
def test_rows_are_filtered(opened: Opened) -> None:
    opened.page.get_by_label("Show rows with").fill("k= worse")
    assert opened.page.locator("#table tbody tr:visible").count() == 2
    assert opened.page.get_by_role("status").inner_text() == "2 of 4 trials"


@pytest.mark.slow
def test_a_point_tells_what_it_is(opened: Opened) -> None:
    box = opened.plot("pareto").locator(".scatterlayer .trace .point").first.bounding_box()
    opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = opened.page.locator("#pareto .hoverlayer .hovertext")
    label.wait_for()
    assert "%" in label.text_content() and "MB" in label.text_content()


@pytest.mark.slow
def test_dark_by_choice_of_the_system_and_of_the_reader(browser: Any, report: Path) -> None:
    opened = Opened(browser, report, color_scheme="dark")
    ground, ink = "getComputedStyle(document.documentElement).backgroundColor", "#pareto .xtick text"
    dark = opened.page.evaluate(ground)
    opened.plot("pareto")
    light_on_dark = opened.page.locator(ink).first.evaluate("text => getComputedStyle(text).fill")
    opened.page.get_by_role("button", name="Light theme").click()
    assert (dark, opened.page.evaluate(ground)) == ("rgb(20, 23, 26)", "rgb(255, 255, 255)")
    opened.page.wait_for_function(
        f"getComputedStyle(document.querySelector('{ink}')).fill !== '{light_on_dark}'"
    )
    opened.context.close()


@pytest.mark.slow
def test_a_phone_scrolls_the_table_and_not_the_page(browser: Any, report: Path) -> None:
    opened = Opened(browser, report, viewport={"width": 390, "height": 800})
    for name in opened.page.locator(".plot").evaluate_all("plots => plots.map(plot => plot.id)"):
        opened.plot(name)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 390
    first = opened.page.locator("#table tbody th").first
    before = first.bounding_box()["x"]
    opened.page.locator("#trials .scroll").evaluate("box => { box.scrollLeft = 200; }")
    assert first.bounding_box()["x"] == before
    opened.context.close()


@pytest.mark.slow
def test_on_paper_everything_is_there_and_nothing_to_press(opened: Opened) -> None:
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    opened.page.emulate_media(media="print")
    assert opened.page.locator(".plot").count() == opened.page.locator(".plot > .plot-container").count()
    assert opened.page.locator("button:visible").count() == len(
        opened.page.locator("#table thead th:not([hidden]) button").all()
    )
    assert opened.page.locator("details:not([open])").count() == 0
    opened.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.page.evaluate("document.documentElement.dataset.theme") is None


@pytest.mark.slow
def test_data_are_saved_and_commands_copied(opened: Opened) -> None:
    with opened.page.expect_download() as saved:
        opened.page.locator("[data-csv=trials]").click()
    lines = Path(saved.value.path()).read_text().splitlines()
    assert saved.value.suggested_filename == "trials.csv" and len(lines) == 5
    assert lines[0].startswith("trial,") and lines[2].startswith("good k=4,")
    opened.page.locator(".copy").first.click()
    opened.page.wait_for_function("document.querySelector('.copy').textContent === 'Copied'")


@pytest.mark.slow
def test_the_keyboard_reaches_the_answer_first(opened: Opened) -> None:
    opened.page.keyboard.press("Tab")
    assert opened.page.evaluate("document.activeElement.textContent") == "Skip to the answer"
    assert opened.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.slow
def test_a_sweep_of_200_trials_is_under_8_mb(browser: Any, tmp_path: Path) -> None:
    rows = [
        {
            "name": f"trial k={k} s={s}",
            "settings": {"method.k": str(k), "bits.activations": str(s)},
            "wrong": k + s,
        }
        for k in range(20)
        for s in range(10)
    ]
    file = write_sweep(sweep(tmp_path, rows))
    assert file.stat().st_size < 8 * 2**20
    opened = Opened(browser, file)
    opened.plot("axis-0")
    assert len(opened.names()) == 200 and opened.said == []
    opened.context.close()
