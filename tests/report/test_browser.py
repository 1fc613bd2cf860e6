"""report.html in a real browser: a quiet console, every image there, no sideways scroll, nothing asked of a
network."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.chromium import Browser, find_chromium
from tests.conftest import not_installed
from tests.run_folders import HOSTILE, classification_run, regression_run
from util.report import charts
from util.report.page import write_report

PHONE, DESKTOP = 360, 1280


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """.ci/run installs it."""
    program = find_chromium()
    if program is None:
        not_installed("Chromium")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """{name: report.html} of fabricated runs."""
    folder, patch = tmp_path_factory.mktemp("runs"), pytest.MonkeyPatch()
    patch.setattr(charts, "save_png", lambda *words: [])
    long = [f"{k}. a rather long name of a retinal disease" for k in range(39)]
    runs = [classification_run(folder / "two", ["healthy", "x" * 70]),
            classification_run(folder / "five", HOSTILE),
            classification_run(folder / "many", long, number=160),
            regression_run(folder / "numbers", ["systolic <mmHg>", "age"])]
    table = (folder / "five/predictions_test.csv").read_text()
    overlays = dict.fromkeys(re.findall(r'"([^"]*eye [^"]*\.png)"', table)[::2], "0.png")
    (folder / "five/heatmaps").mkdir()
    Image.new("RGB", (60, 40), "red").save(folder / "five/heatmaps/0.png")
    (folder / "five/heatmaps/heatmaps.json").write_text(json.dumps(overlays))
    for run in runs:
        write_report(run)
    patch.undo()
    return {run.name: run / "report.html" for run in runs}


NAMES = ["two", "five", "many", "numbers"]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_whole_and_quiet(browser, reports, name, dark):
    browser.open(reports[name], DESKTOP, dark=dark)
    assert browser.problems() == []
    assert [url for url in browser.requests()
            if not url.startswith("data:")] == [reports[name].resolve().as_uri()]
    broken = browser.ask("[...document.images].filter(image => !(image.complete && image.naturalWidth > "
                         "0)).length")
    assert browser.ask("document.images.length") >= 5 and broken == 0
    assert browser.ask("document.querySelectorAll('svg').length") >= 8
    empty = "[...document.querySelectorAll('svg')].filter(s => { const b = s.getBBox(); return b.width < 50 || b.height < 20 })"
    assert browser.ask(f"{empty}.length") == 0
    assert browser.ask("document.scripts.length") == 0 and "alert" not in str(
        browser.named("Page.javascriptDialogOpening")
    )


@pytest.mark.parametrize("width", [PHONE, 768, DESKTOP])
@pytest.mark.parametrize("name", NAMES)
def test_the_page_does_not_scroll_sideways(browser, reports, name, width):
    browser.open(reports[name], width)
    assert (
        browser.ask("document.documentElement.scrollWidth")
        <= browser.ask("document.documentElement.clientWidth")
        <= width
    )
    # nothing sticks out either, but for what stands in a box that scrolls by itself
    out = ("[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll *, pre, svg *') && "
           "e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => "
           "e.outerHTML.slice(0, 90))")
    assert browser.ask(out) == []


@pytest.mark.parametrize("name", NAMES)
def test_text_of_the_charts_can_be_read_on_a_phone(browser, reports, name):
    browser.open(reports[name], PHONE)
    heights = browser.ask("[...document.querySelectorAll('svg text')].map(t => "
                          "t.getBoundingClientRect().height)")
    assert len(heights) > 50 and min(heights) >= 9
    texts = ("[...document.querySelectorAll('svg')].filter(s => [...s.querySelectorAll('text')].some(t => { "
             "const a = t.getBoundingClientRect(), b = s.getBoundingClientRect(); return a.left < b.left - 1 "
             "|| a.right > b.right + 1 || a.bottom > b.bottom + 1 || a.top < b.top - 1 })).map(s => "
             "s.querySelector('title').textContent)")
    assert browser.ask(texts) == []  # no label is cut off


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground(browser, reports, dark):
    """WCAG 2's contrast of 4.5 for small text, of every text on the page and in the charts."""
    browser.open(reports["five"], DESKTOP, dark=dark)
    found = browser.ask("""(() => {
        const number = text => (text.match(/[\\d.]+/g) || []).map(Number);
        const over = (top, below) => { const a = top.length > 3 ? top[3] : 1;
            return [0, 1, 2].map(k => top[k] * a + below[k] * (1 - a)); };
        const ground = element => { if (!element) return [255, 255, 255];
            const colour = number(getComputedStyle(element).backgroundColor);
            return colour.length === 4 && colour[3] === 0 ? ground(element.parentElement)
                : over(colour, ground(element.parentElement)); };
        const below = text => { const panel = ground(text.closest('figure'));  // a cell of the matrix, or the figure
            if (!text.closest('.matrix')) return panel;
            const box = text.getBBox(), middle = new DOMPoint(box.x + box.width / 2, box.y + box.height / 2);
            const cell = [...text.closest('svg').querySelectorAll('path')].find(path => getComputedStyle(path).fill !== 'none'
                && path.isPointInFill(middle.matrixTransform(text.getCTM()).matrixTransform(path.getCTM().inverse())));
            if (!cell) return panel;
            const style = getComputedStyle(cell);
            return over([...number(style.fill), parseFloat(style.opacity) * parseFloat(style.fillOpacity)], panel); };
        const own = element => [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
        return [...document.querySelectorAll('main *')].filter(e => own(e) && e.getClientRects().length
                && !['title', 'desc'].includes(e.tagName)).map(e => {
            const style = getComputedStyle(e), svg = e instanceof SVGElement;
            return {ink: number(svg ? style.fill : style.color), ground: svg ? below(e) : ground(e),
                    text: e.textContent.slice(0, 40), size: parseFloat(style.fontSize)}; }); })()""")

    def luminance(colour):
        linear = [c / 3294.6 if c <= 10.31475 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return np.dot(linear, [0.2126, 0.7152, 0.0722])

    contrasts = [((max(a, b) + 0.05) / (min(a, b) + 0.05), part) for part in found
                 for a, b in [(luminance(part["ink"]), luminance(part["ground"]))]]
    assert len(contrasts) > 300
    assert [(round(float(value), 2), part["text"]) for value, part in contrasts if value < 4.5] == []
    body = browser.ask("getComputedStyle(document.body).backgroundColor")
    cells = {tuple(part["ground"]) for _, part in contrasts if "%" in part["text"]}
    assert len(cells) > 8, "texts were looked at on the colours of their cells"
    assert bool(luminance([float(c) for c in re.findall(r"[\d.]+", body)]) < 0.05) is dark


@pytest.mark.parametrize("name", NAMES)
def test_print_is_light_and_keeps_charts_whole(browser, reports, tmp_path, name):
    browser.open(reports[name], 690, dark=True, media="print")  # A4 without its margins
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.ask("getComputedStyle(document.querySelector('figure')).breakInside") == "avoid"
    assert browser.ask("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    browser.print_to(tmp_path / "page.pdf")
    pages = (tmp_path / "page.pdf").read_bytes().count(b"/Type /Page\n")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF") and 4 <= pages <= 32


def test_a_broken_page_is_noticed(browser, tmp_path):
    """What the checks above rely on: they see a missing image, a request, an error and a table that is too
    wide."""
    page = tmp_path / "broken.html"
    page.write_text(
        '<meta name="viewport" content="width=device-width"><img src="gone.jpg"><div style="width:900px">x</div>'
        "<script>console.error('x'); missing()</script>"
    )
    browser.open(page, PHONE)
    assert len(browser.problems()) >= 2 and any(url.endswith("gone.jpg") for url in browser.requests())
    assert browser.ask("document.documentElement.scrollWidth") > PHONE
    assert browser.ask("[...document.images].filter(image => !image.naturalWidth).length") == 1
