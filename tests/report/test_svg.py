"""A chart's SVG: well formed whatever the names are, the places of the numbers, colours and ids of the
page."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from tests.run_folders import HOSTILE
from util.metrics.curves import curves_of
from util.report import charts, class_charts
from util.report.bland_altman import agreement, room_around
from util.report.class_charts import Scored
from util.report.learning_curves import learning_curves

LONG = ["x" * 70, "Pneumonoultramicroscopicsilicovolcanoconiosis",
        "proliferative_diabetic_retinopathy_with_macular_oedema",
        "age-related macular degeneration, neovascular, of the left eye", "ok"]


def scored(names, number=60, split="test"):
    """What the charts of a split are drawn from, of random predictions."""
    rng = np.random.default_rng(0)
    true = np.arange(number) % len(names)
    logits = rng.normal(size=(number, len(names))) + np.eye(len(names))[true]
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    entry = {"value": 0.8, "lower": 0.7, "upper": 0.9}
    curves = curves_of(true, chances.argmax(axis=1), chances, logits, names, 1.3)
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (true, chances.argmax(axis=1)), 1)
    rows = [{"roc_auc": entry, "average_precision": entry}] * len(names)
    return Scored(split, f"a run, {split}", names, curves, counts, rows, {"ece": entry})


def all_charts(names, split="test"):
    """Every chart of a classification, drawn."""
    found = scored(names, split=split)
    drawn = [draw(found) for draw in (class_charts.roc, class_charts.precision_recall,
                                      class_charts.reliability,
                                      class_charts.scores, class_charts.spread_of_classes)]
    drawn.append(class_charts.confusion_matrix(split, found.counts, names))
    drawn = [chart for chart in drawn if chart is not None]
    for chart in drawn:
        charts.draw_svgs(chart)
    return drawn


def texts(svg):
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter("text")]


def hinted(svg, hint):
    """The path of each element that shows a text beside the pointer."""
    groups = [group for group in ElementTree.fromstring(svg).iter("g") if len(group)
              and group[0].tag == "title"]
    return [path.get("d") for group in groups if group[0].text.startswith(hint) for path in group
            if path.tag == "path"]


@pytest.mark.parametrize("name", [*HOSTILE, "\x00\x08\ud800\uffff", "]]>", "&amp;", ""])
def test_any_name_gives_well_formed_text(name):
    shown = re.sub("[\x00\x08\ud800\uffff]", "\ufffd", name)
    for chart in all_charts([name, "b", "c"]):
        for panel in chart.panels:
            root = ElementTree.fromstring(panel.svg)
            assert (
                root.get("role") == "img"
                and not list(root.iter("script"))
                and not list(root.iter("metadata"))
            )
            described_by = [root.find("title"), root.find("desc")]
            assert root.get("aria-labelledby").split() == [element.get("id") for element in described_by]
            assert described_by[0].text == panel.title and described_by[1].text
            if panel.key.startswith(("roc", "confusion", "spread")):
                assert shown in described_by[1].text


def test_hints_beside_the_pointer_are_kept():
    roc, _, reliability, scores, *_ = all_charts(["a <1>", "b", "c"])
    assert "<title>a &lt;1&gt; 0.800 (0.700 to 0.900)</title>" in roc.panels[0].svg
    assert re.search(r"<title>0\.\d\d to 0\.\d\d: \d+ images</title>", reliability.panels[0].svg)
    assert re.search(r"<title>right, 0\.\d\d to 0\.\d\d: \d+ images</title>", scores.panels[0].svg)


def test_every_colour_is_a_variable_of_the_page_and_nothing_is_asked_for():
    for chart in [*all_charts(["a", "b", "c"]), *all_charts([f"c{k}" for k in range(14)])]:
        for panel in chart.panels:
            assert not re.search(r"#[0-9a-fA-F]{3,8}\b(?!-)",
                                 re.sub(r"(?:url\(|href=\")#[\w-]+", "", panel.svg)), panel.key
            assert "rgb" not in panel.svg and "http" not in panel.svg and "font-family" not in panel.svg
            assert {"var(--ink)", "var(--muted)"} <= set(re.findall(r"var\(--\w+\)", panel.svg)), panel.key
            for style in re.findall(r'style="([^"]*)"', panel.svg):
                assert all(colour == "none" or colour.startswith("var(--") for colour in re.findall(
                    r"(?:fill|stroke):([^;]*)", style)), style
            assert all("fill:var(--" in element.get("style", "")
                       for element in with_style(panel.svg)), panel.key


def with_style(svg):
    """The texts of an SVG, each with the style that it has or gets from its groups."""
    found = []

    def visit(element, style):
        style = element.get("style", style)
        if element.tag == "text":
            element.set("style", style)
            found.append(element)
        for child in element:
            visit(child, style)

    visit(ElementTree.fromstring(svg), "")
    return found


def test_ids_are_those_of_one_panel_alone_and_every_reference_has_its_own():
    panels = [panel for split in ("test", "val") for chart in all_charts(["a", "b", "c"], split)
              for panel in chart.panels]
    ids = [name for panel in panels for name in re.findall(r'\bid="([^"]*)"', panel.svg)]
    assert len(ids) == len(set(ids)) > 2 * len(panels)
    for panel in panels:
        own = set(re.findall(r'\bid="([^"]*)"', panel.svg))
        assert set(re.findall(r"(?:url\(|href=\")#([\w-]+)", panel.svg)) <= own


def test_the_same_chart_gives_the_same_text():
    assert [[panel.svg for panel in chart.panels] for chart in all_charts(["a", "b"])] == [
        [panel.svg for panel in chart.panels] for chart in all_charts(["a", "b"])]


def test_places_are_those_of_the_numbers():
    panel = class_charts.roc(scored(["a", "b"])).panels[0]
    line, height = panel.axes[0].lines[-1], panel.box[3] * 72
    (chart,) = [chart for chart in all_charts(["a", "b"]) if chart.panels[0].key == panel.key]
    (drawn,) = hinted(chart.panels[0].svg, "b ")
    numbers = np.array(re.findall(r"-?[\d.]+", drawn), float).reshape(-1, 2)
    places = line.get_transform().transform(line.get_xydata()) / line.figure.dpi * 72
    corners = np.stack([places[:, 0], height - places[:, 1]], axis=1)
    for corner in numbers:  # matplotlib leaves out points on a straight line
        assert np.abs(corners - corner).sum(axis=1).min() < 0.2
    np.testing.assert_allclose(numbers[[0, -1]], corners[[0, -1]], atol=0.06)


def test_steps_of_precision_begin_at_the_left_edge():
    chart = class_charts.precision_recall(scored(["a", "b"]))
    recall, precision = scored(["a", "b"]).curves.precision_recall[1]
    x, y = chart.panels[0].axes[0].lines[-1].get_data()
    assert (
        x[0] == 0
        and y[0] == precision[0]
        and chart.panels[0].axes[0].lines[-1].get_drawstyle() == "steps-pre"
    )
    np.testing.assert_array_equal(x[1:], recall)
    np.testing.assert_array_equal(y[1:], precision)


@pytest.mark.parametrize("epochs", [5, 40])
def test_a_line_is_broken_where_a_value_lacks_and_a_lone_point_stays_visible(epochs):
    values = [0.0, 1.0, math.nan, 1.0, math.nan, *range(epochs - 5)]
    chart = learning_curves([{"epoch": epoch, "val_f1": value} for epoch, value in enumerate(values)])
    charts.draw_svgs(chart)
    (drawn,) = hinted(chart.panels[0].svg, "validation")
    assert drawn.count("M") == (2 if epochs == 5 else 3)
    marks = len(re.findall("<use ", chart.panels[0].svg))
    assert marks == (3 if epochs == 5 else 1)


def test_ticks_of_small_and_large_values_are_told_apart():
    for value in (1e-5, 1e-3, 0.5, 20, 4e6):
        chart = learning_curves([{"epoch": epoch, "lr": value * (1 + epoch)} for epoch in range(4)])
        charts.draw_svgs(chart)
        shown = texts(chart.panels[0].svg)
        ticks = shown[shown.index("3") + 1:]  # after those of the epochs
        assert len(ticks) == len(set(ticks)) >= 3 and max(map(len, ticks)) <= 5, ticks
        assert any("e" in tick for tick in ticks) == (value in (1e-5, 1e-3, 4e6)), ticks


def test_room_around_what_is_drawn():
    assert room_around(np.array([np.nan])) == (0, 1)
    low, high = room_around(np.array([7.0, 7.0]))
    assert low < 7 < high


@pytest.mark.parametrize("names", [LONG, LONG[::-1][:2], [f"{k} {name}" for k in range(3) for name in LONG]])
def test_no_name_is_broken_inside_a_word(names):
    """A line of a label is made of whole words; what is shortened says so."""
    for chart in all_charts(names)[-2 if len(names) > 2 else -1:]:
        words = {word for name in names for word in re.split(r"(?<=[_-])|\s+", name)}
        words |= {"Predicted", "True", "class", "(images)", "Probability", "given", "to", "the"}
        for text in texts(chart.panels[0].svg):
            for word in re.split(r"(?<=[_-])|\s+", text):
                whole = not re.search("[a-zA-Z]", word) or "…" in word or word in words
                assert whole, (text, word)
            assert charts.em(text) <= 24, text


def test_lines_of_names_are_broken_after_spaces_underscores_and_hyphens():
    assert charts.wrapped("moderate_npdr, non-proliferative", 7) == [
        "moderate_",
        "npdr, non-",
        "proliferative",
    ]
    assert charts.wrapped("重度非增殖性", 3) == ["重度非", "增殖性"]
    assert charts.wrapped("x" * 30, 5) == ["x" * 15 + "…" + "x" * 10] and charts.wrapped("", 5) == [""]


def test_many_points_are_one_path_and_few_bytes():
    import pandas as pd

    true = np.linspace(0, 9, 5000)
    chart = agreement("test", pd.DataFrame({"true_a": true, "pred_a": true + 1}), ["a"], 0)
    charts.draw_svgs(chart)
    assert [len(panel.axes[0].patches) for panel in chart.panels] == [1, 1]
    assert all(len(panel.svg) < 60_000 and "2,000 of 5,000 images drawn" in panel.small
               for panel in chart.panels)
    assert chart.panels[0].svg.count("<path") < 20
