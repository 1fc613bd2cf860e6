"""SVG text: well formed whatever the names are, and the places where the numbers say."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from tests.run_folders import HOSTILE
from util.report import svg

SVG = "{http://www.w3.org/2000/svg}"


def parsed(chart):
    return ElementTree.fromstring(chart.svg().replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]), (0, 10, ["0", "2", "4", "6", "8", "10"]),
    (-1.5, 1.5, ["−1", "0", "1"]), (0, 2400, ["0", "500", "1,000", "1,500", "2,000"]),
    (0, 0.0011, ["0", "5e−4", "1e−3"]),
    (0.0012, 0.0019, ["1.2e−3", "1.4e−3", "1.6e−3", "1.8e−3"]), (-2e6, 4e6, ["−2e6", "0", "2e6", "4e6"])])
def test_ticks_are_round_and_told_apart(low, high, expected):
    assert svg.tick_texts(svg.ticks(low, high)) == expected


def test_ticks_of_nothing():
    assert svg.ticks(3, 3) == [3] and svg.ticks(math.nan, 1) == [] and svg.tick_texts([]) == []
    assert svg.room_around(np.array([np.nan])) == (0, 1)
    low, high = svg.room_around(np.array([7.0, 7.0]))
    assert low < 7 < high


@pytest.mark.parametrize("name", [*HOSTILE, "\x00\x08\ud800\uffff", "]]>", "&amp;"])
def test_any_name_gives_well_formed_text(name):
    chart = svg.Chart("k", name, name, (0, 1), (0, 1), (name, name)).axes()
    chart.line([0, 1], [0, 1], "s0", name)
    chart.bar(0, 1, 0, 1, "s1", name)
    chart.note(0.5, 0.5, name)
    root = parsed(chart)
    shown = re.sub("[\x00\x08\ud800\uffff]", "\ufffd", name)
    assert root.find(f"{SVG}title").text == shown and root.get("role") == "img" and not root.findall(f".//{SVG}script")
    described_by = {root.find(f"{SVG}{part}").get("id") for part in ("title", "desc")}
    assert set(root.get("aria-labelledby").split()) == described_by


def test_places_are_those_of_the_numbers():
    chart = svg.Chart("k", "t", "d", (0, 10), (0, 100), size=(120, 110), left=10, right=10, top=5, bottom=5)
    chart.line([0, 10], [0, 100], "s0")
    chart.steps([5, 10], [50, 0], "s1")
    chart.bar(2, 4, 0, 50, "s2")
    assert chart.parts[0] == '<path class="line s0" d="M10.0 105.0L110.0 5.0"/>'
    assert chart.parts[1] == '<path class="line s1" d="M10.0 55.0V55.0H60.0V105.0H110.0"/>'
    assert 'x="30.0" y="55.0" width="20.0" height="50.0"' in chart.parts[2]


def test_a_line_is_broken_where_a_value_lacks_and_a_lone_point_stays_visible():
    chart = svg.Chart("k", "t", "d", (0, 4), (0, 1), size=(50, 50), left=5, right=5, top=5, bottom=5)
    chart.line([0, 1, 2, 3, 4], [0, 1, math.nan, 1, math.nan], "s0")
    assert chart.parts[0].count("M") == 2 and chart.parts[0].endswith('M35.0 5.0h0"/>')
    chart.line([0, 1], [math.nan, math.nan], "s0")
    assert len(chart.parts) == 1
