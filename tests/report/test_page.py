"""report.html against fabricated folders: what stands on it, what is said to be missing, and that no name
breaks it."""

import html
import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.report.pages import page_of
from tests.run_folders import HOSTILE, classification_run, regression_run
from util.report import charts, page
from util.report.page import write_report
from util.report.run_data import read_run, standardised_errors, worst_first

pytestmark = pytest.mark.usefixtures("no_drawing")


@pytest.mark.parametrize("number", [2, 5, 39])
def test_classification(tmp_path, number, drawing):
    names = [f"{k}. class" for k in range(number)]
    folder = classification_run(tmp_path / "run", names, number=4 * number + 40)
    page, lines = page_of(folder)
    assert lines[0].startswith(f"report     {folder}/report.html") and not lines[1:]
    for part in (
        "Classification report",
        "vit_x",
        "294 of 294 tensors used",
        "all weights trained",
        "Learning curves",
        "bootstrap of patients",
        "2,000 resamples, seed 0",
        "a note <b>",
        "Reliability diagram",
        "Score distribution",
        "abc123",
        "python -m util.report",
        f"{(4 * number + 40) // 2} patients",
        "Most confident mistakes",
    ):
        assert part in page.text, part
    assert (folder / "report.html").stat().st_size < 2_000_000
    assert all((folder / f"{key}_test.png").stat().st_size > 5000
               for key in ("roc", "precision_recall", "reliability", "scores", "confusion_matrix"))
    assert all(svg["role"] == "img" for svg in page.all("svg")) and len(page.all("svg")) >= 12
    assert all(image["alt"] and image["src"].startswith("data:image/jpeg;base64,")
               for image in page.all("img"))
    assert all("scope" in th for th in page.all("th")) and page.all("html")[0]["lang"] == "en"
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert not re.search(r"https?://|url\((?!#)", page.source)


def test_figures_stand_with_their_intervals(tmp_path):
    folder = classification_run(tmp_path / "run", ["a", "b", "c"])
    stored = json.loads((folder / "metrics_test.json").read_text())
    page, _ = page_of(folder)
    for name in ("roc_auc", "accuracy", "brier"):
        value = stored[name]["value"]
        assert f"{value:.3f}" in page.text and f"{value - 0.05:.3f} to {value + 0.05:.3f}" in page.text, name
    table = pd.read_csv(folder / "predictions_test.csv")
    right = (table.true_class == table.predicted_class).sum()
    assert f"{right} of {len(table)} images on the diagonal" in page.text
    svg = re.search(r'<svg [^>]*"confusion-test.*?</svg>', page.source, re.DOTALL)[0]
    cells = re.findall(r">([^<>]+)</text>", svg)
    for true in "abc":
        for said in "abc":
            count = ((table.true_class == true) & (table.predicted_class == said)).sum()
            assert str(count) in cells and (f"{count} predicted {said}" in svg or not count)
        assert f"{true} ({(table.true_class == true).sum()})" in cells and true in cells
    precision = ((table.true_class == "a") & (table.predicted_class == "a")).sum() / (
        table.predicted_class == "a"
    ).sum()
    row = re.search(r'<th scope="row">a</th>(.*?)</tr>', page.source, re.DOTALL)[1]
    # computed, and stored with an interval
    assert f"{precision:.3f}" in row and "0.500<small>0.450 to 0.550" in row


def test_regression(tmp_path, drawing):
    folder = regression_run(tmp_path / "run", ["systolic <mmHg>", "age"])
    page, lines = page_of(folder)
    assert len(lines) == 1
    for part in ("Regression report", "systolic <mmHg>: predicted against "
                                      "true", "age: Bland-Altman plot", "Largest errors",
                 "R² of age", "limits of agreement"):
        assert part in page.text, part
    assert len(page.all("img")) == 24 and (folder / "agreement_test_age.png").exists()
    true = pd.read_csv(folder / "predictions_test.csv")["true_age"].dropna()
    assert f"{len(true)} {true.mean():.4g} ± {true.std():.4g}" in page.text


def test_hostile_names_stay_text(tmp_path):
    folder = classification_run(tmp_path / "<b>run</b>", HOSTILE, leakage=None,
                                options={"task": "<img src=x onerror=alert(1)>", "data_path": "<i>&",
                                         "odd": "<script>"})
    (folder / "leakage.json").write_text(
        json.dumps(
            {
                "pictures": 9,
                "checked": 9,
                "unreadable": ["<u>"],
                "findings": [{"kind": "<kind>", "splits": ["<s>"], "paths": ["<p>", "b"], "similarity": 0.9}],
                "counts": {"<kind>": 1},
                "cannot see": "<blind>",
            }
        )
    )
    (folder / "skipped_images.csv").write_text('path,reason\n"<q>.jpg",cut\n')
    page, lines = page_of(folder)
    assert not page.all("script") and all(set(image) == {"src", "width", "height", "alt"}
                                          for image in page.all("img"))
    for name in HOSTILE:
        assert html.unescape(name).replace("\n", " ") in page.text
    for part in ("<u>", "<kind>", "<blind>", "<q>.jpg", "<img src=x onerror=alert(1)>", "<p> and b"):
        assert part in page.text, part
    assert "&amp;lt;" not in page.source and "&amp;amp;" not in page.source, "escaped once"
    assert {tag for tag, _ in page.tags} <= {
        "html", "head", "meta", "title", "link", "style", "body", "main", "header", "p", "h1", "h2", "h3",
        "nav", "a", "aside",
        "ul", "li", "section", "div", "i", "b", "table", "caption", "thead", "tbody", "tfoot", "tr", "th",
        "td", "small",
        "figure", "figcaption", "svg", "desc", "path", "text", "rect", "span", "ol", "img", "dl", "dt", "dd",
        "pre", "code",
        "footer", "g", "defs", "use", "clippath"}


@pytest.mark.parametrize("name", HOSTILE)
def test_every_template_escapes(tmp_path, name):
    """A hostile text in every place of a run's files: it stands in the page as text, wherever it stands at
    all."""
    marked = f"<s>{name}</s>"
    folder = regression_run(tmp_path / "run", [marked, "b"],
                            weights={"name": marked, "used": 1, "expected": 1, "text": marked})
    facts = json.loads((folder / "run.json").read_text())
    facts |= {"commit": f"{marked}+", "device": marked, "started": marked, "versions": {marked: marked}}
    facts["data"] |= {"notes": [marked], "fingerprint": marked}
    facts["options"] |= {"task": marked, "csv_file": marked, "unknown_option": marked, "model": marked,
                         "adaptation": marked}
    (folder / "run.json").write_text(json.dumps(facts))
    stored = json.loads((folder / "metrics_test.json").read_text())
    stored[marked] = {"value": 0.5, "lower": 0.4, "upper": 0.6, "method": marked, "resamples": 9, "seed": 1,
                      "undefined": 2}
    (folder / "metrics_test.json").write_text(json.dumps(stored))
    page, _ = page_of(folder)
    assert not {"s", "script"} & {tag for tag, _ in page.tags} and page.source.count("&lt;s&gt;") > 30
    assert not re.search(r"&amp;(lt|gt|amp|quot|#3\d);", page.source), "nothing is escaped twice"


def test_templates_lie_as_files_and_escape_by_themselves(tmp_path):
    """Nothing but the SVG of a chart is taken as HTML, and no module writes tags."""
    sources = {path: path.read_text() for path in page.TEMPLATES.glob("*.html")}
    assert {path.name for path in sources} == {"report.html", "metrics.html", "mistakes.html", "parts.html"}
    safe = [found for text in sources.values() for found in re.findall(r"{{[^}]*\| *safe[^}]*}}", text)]
    assert set(safe) == {"{{ panel.svg | safe }}"} and not any(
        "autoescape" in text for text in sources.values()
    )
    for module in page.TEMPLATES.parent.glob("*.py"):
        assert not re.search(r"<(div|p|td|th|li|ul|h\d|span|table|small)\b|Markup",
                             module.read_text()), module.name


def test_one_drawing_feeds_the_page_and_the_png(tmp_path, drawing, monkeypatch):
    """Each PNG is the figure whose SVG stands in the page, and no chart is drawn twice."""
    from matplotlib.figure import Figure

    saved, savefig = [], Figure.savefig

    def save(figure, path, **how):
        saved.append((figure, how["format"], str(path)))
        savefig(figure, path, **how)

    monkeypatch.setattr(Figure, "savefig", save)
    for folder in (classification_run(tmp_path / "classes", ["a", "b", "c"]),
                   regression_run(tmp_path / "numbers", ["age", "bmi"])):
        saved.clear()
        source = page_of(folder)[0].source
        in_page = {id(figure) for figure, kind, _ in saved if kind == "svg"}
        pngs = [figure for figure, kind, _ in saved if kind == "png"]
        assert {id(figure) for figure in pngs} <= in_page
        assert len(pngs) == len(set(map(id, pngs))) == len(list(folder.glob("*.png")))
        assert sum(kind == "svg" for _, kind, _ in saved) == source.count("<svg ")
    assert sorted(path.name for path in (tmp_path / "classes").glob("*.png")) == [
        "confusion_matrix_test.png", "confusion_matrix_val.png", "learning_curves.png",
        "precision_recall_test.png",
        "reliability_test.png", "roc_test.png", "scores_test.png"]
    assert sorted(path.name for path in (tmp_path / "numbers").glob("*.png")) == [
        *(f"agreement_{split}_{target}.png" for split in ("test", "val") for target in ("age", "bmi")),
        "learning_curves.png"]


def test_charts_that_are_there_and_not_older_are_left_alone(tmp_path, drawing):
    folder = classification_run(tmp_path / "run", ["a", "b"])
    write_report(folder)
    drawn = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    os.utime(folder / "predictions_val.csv", (2e9, 2e9))
    write_report(folder)
    again = {path.name for path in folder.glob("*.png") if path.stat().st_mtime_ns != drawn[path.name]}
    assert again == {"roc_test.png", "precision_recall_test.png", "reliability_test.png", "scores_test.png",
                     "confusion_matrix_val.png"}


def test_the_same_folder_gives_the_same_page(tmp_path):
    folder = classification_run(tmp_path / "run", ["a", "b", "c"])
    first, second = (re.sub("Made [0-9: -]+ from", "", page_of(folder)[0].source) for _ in range(2))
    assert first == second


def test_charts_take_their_colours_from_the_page(tmp_path):
    """Every variable that a chart or the style sheet uses is set, and for dark mode anew."""
    source = page_of(classification_run(tmp_path / "run", [f"c{k}" for k in range(14)]))[0].source
    used = {name for svg in re.findall(r"<svg .*?</svg>", source, re.DOTALL)
            for name in re.findall(r"var\((--[\w-]+)", svg)}
    light, dark = (
        source[: source.index("prefers-color-scheme: dark")],
        source[source.index("prefers-color-scheme: dark") :],
    )
    assert {"--s0", "--s7", "--ink", "--muted", "--grid",
            "--cell-ink"} < used - {"--text"} <= set(charts.VARIABLES.values())
    for name in charts.VARIABLES.values():
        assert re.search(rf"{name}: #", light) and re.search(rf"{name}: #", dark[:dark.index("* {")]), name
    for colour, name in charts.VARIABLES.items():
        if "-ink" not in name and name != "--panel":
            assert f"{name}: {colour}" in light, "the PNG has the colours of the light page"


# ---- mistakes ----------------------------------------------------------------------------------------------

def test_the_most_confident_mistakes_come_first(tmp_path):
    folder = classification_run(tmp_path / "run", ["a", "b", "c"])
    run = read_run(folder)
    rows, total = worst_first(run, run.main, 24)
    table = pd.read_csv(folder / "predictions_test.csv")
    wrong = table[table.true_class != table.predicted_class]
    sure = wrong[["prob_a", "prob_b", "prob_c"]].max(axis=1).sort_values(ascending=False)
    assert total == len(wrong) and rows == sure.index[:24].tolist()


def test_the_largest_errors_are_in_standard_deviations_of_the_truth():
    table = pd.DataFrame({"true_a": [0.0, 2.0, np.nan, 4.0], "pred_a": [0.0, 2.0, 9.0, 4.4],
                          "true_b": [0.0, 0.02, 0.04, np.nan], "pred_b": [0.01, 0.02, 0.0, 1.0]})
    sd_a, sd_b = np.std([0, 2, 4]), np.std([0, 0.02, 0.04])
    np.testing.assert_allclose(standardised_errors(table, ["a", "b"]),
                               [0.01 / sd_b, 0, 0.04 / sd_b, 0.4 / sd_a])
    assert np.isnan(standardised_errors(table.assign(true_a=np.nan, true_b=np.nan), ["a", "b"])).all()


def test_heat_maps_stand_beside_their_pictures(tmp_path):
    folder = classification_run(tmp_path / "run", ["a", "b", "c"])
    run = read_run(folder)
    first = run.main.table["path"].iloc[worst_first(run, run.main, 1)[0][0]]
    (folder / "heatmaps").mkdir()
    Image.new("RGB", (30, 20), "red").save(folder / "heatmaps/0.png")
    (folder / "heatmaps/heatmaps.json").write_text(
        json.dumps({first: "0.png", "/elsewhere": "../../../etc/passwd"})
    )
    page, _ = page_of(folder)
    assert any(image["alt"].startswith("Heat map of") for image in page.all("img"))
    assert all(path.parent == folder / "heatmaps" for path in read_run(folder).heat_maps.values())


# ---- large -------------------------------------------------------------------------------------------------

def test_many_images_give_a_small_page(tmp_path):
    folder = classification_run(tmp_path / "run", ["a", "b", "c"], number=5_000, pictures=False,
                                splits=("test",))
    write_report(folder)
    assert (folder / "report.html").stat().st_size < 150_000


def test_hundreds_of_classes(tmp_path):
    names = [f"c{k}" for k in range(120)]
    folder = classification_run(tmp_path / "run", names, number=400, pictures=False, splits=("test",))
    page, _ = page_of(folder)
    assert "too many for their confusion matrix" in page.text and "Commonest confusions" in page.text
    assert "60 classes of fewer images are not drawn" in page.text


def test_the_command_answers_without_torch(tmp_path):
    code = ("import sys\nfrom util.report.__main__ import main\n"
            "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
            "print([name for name in ('torch', 'matplotlib', 'sklearn') if name in sys.modules])")
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                            cwd=ROOT)
    assert answer.stdout.strip().endswith("[]") and "RUN" in answer.stdout
