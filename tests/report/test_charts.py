"""The PNG files: what their cells say, that they open, and that no name of a class spoils them."""

import math
import re
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.report.test_svg import all_charts, texts
from util.core import disk
from util.core.errors import InputError
from util.report import charts, class_charts, page
from util.report.learning_curves import curve_panels, learning_curves

LONG_NAMES = [f"{k}. a rather long name of a retinal disease" for k in range(39)]


@pytest.fixture(autouse=True)
def warnings_are_errors():
    """matplotlib warns of characters without a glyph and of layouts that failed; a user should never see
    it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def write_matrix(counts, names, path, title=""):
    """confusion_matrix_*.png as training writes it; lines for the user."""
    return charts.save_png(class_charts.confusion_matrix("test", counts, names, title), path)


def drawn(path):
    """The image as an array (height, width, 3), after checking that it is sane."""
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and min(image.size) >= 300 and max(image.size) <= 5000
        return np.asarray(image.convert("RGB")).astype(int)


def test_shares_are_taken_by_row():
    confusion = np.array([[6, 2], [1, 3]])
    assert class_charts.cell_texts(confusion) == [["6\n75 %", "2\n25 %"], ["1\n25 %", "3\n75 %"]]
    np.testing.assert_array_equal(class_charts.row_shares(confusion), [[0.75, 0.25], [0.25, 0.75]])


def test_shares_near_the_ends_do_not_claim_them():
    confusion = np.array([[999, 1, 0], [0, 1000, 0], [0, 0, 0]])
    assert class_charts.cell_texts(confusion) == [["999\n>99 %", "1\n<1 %", "0\n0 %"],
                                            ["0\n0 %", "1000\n100 %", "0\n0 %"], ["0\n–", "0\n–", "0\n–"]]


def test_many_classes_get_counts_alone_and_hundreds_none():
    confusion = np.eye(13, dtype=int) * 7
    assert class_charts.cell_texts(confusion)[0] == ["7"] + [""] * 12
    assert set(sum(class_charts.cell_texts(np.ones((61, 61), dtype=int)), [])) == {""}


@pytest.mark.long
@pytest.mark.parametrize("is_dark", [False, True])
def test_text_stands_out_from_every_shade_of_a_cell(is_dark):
    """WCAG 2's contrast of 4.5, by the colours of the page's style sheet; the PNG has those of the light
    page."""
    style = (page.TEMPLATES / "report.css").read_text()
    style = style[style.index("color-scheme: dark"):] if is_dark else style

    def variable(name):
        found = re.search(rf"{name}: #(\w{{6}})", style)[1]
        return np.array([int(found[k:k + 2], 16) / 255 for k in (0, 2, 4)])

    def luminance(colour):
        return np.dot([0.2126, 0.7152, 0.0722],
                      [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour])

    for hits in range(0, 101):
        chart = class_charts.confusion_matrix("test", np.array([[hits, 100 - hits], [0, 1]]), ["a", "b"])
        axes = chart.figure.axes[0]
        count, share = [text for text in axes.texts if text.get_position() == (0.5, 0.5)]
        assert count.get_color() == share.get_color()
        ink = variable(charts.VARIABLES[count.get_color()])
        alpha = class_charts.CELL_ALPHA * hits / 100
        ground = variable("--s0") * alpha + variable("--panel") * (1 - alpha)
        darker, lighter = sorted([luminance(ground), luminance(ink)])
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, hits


def test_rows_are_true_classes_from_the_top_and_columns_predicted_ones():
    figure = class_charts.confusion_matrix("test", np.array([[6, 2], [1, 3]]), ["a", "b"]).figure
    axes = figure.axes[0]
    place = {text.get_text().split("\n")[0]: axes.transData.transform(text.get_position())
             for text in axes.texts}
    assert place["6"][0] < place["2"][0] and place["6"][1] == place["2"][1]
    assert place["1"][0] == place["6"][0] and place["1"][1] < place["6"][1]
    assert (
        place["a"][0] == place["6"][0]
        and place["b"][0] == place["2"][0]
        and place["a"][1] == place["b"][1] > place["6"][1]
    )
    assert place["a (8)"][1] == place["6"][1] and place["b (4)"][1] == place["1"][1]
    shades = {0.75: (0, 0), 0.25: (0, 1)}
    assert [patch.get_alpha() for patch in axes.patches] == [
        pytest.approx(class_charts.CELL_ALPHA * s) for s in sorted(shades)
    ]
    for patch, cells in zip(axes.patches, ([(1, 0), (0, 1)], [(0, 0), (1, 1)]), strict=True):
        corners = patch.get_path().vertices.reshape(-1, 5, 2)[:, 0]  # x, y of each square
        assert {(y, x) for x, y in corners.tolist()} == set(cells)
    words = {text.get_text(): text for text in figure.texts}
    assert words["True class (images)"].get_rotation() == 90 and words["Predicted class"].get_rotation() == 0


@pytest.mark.parametrize("num_classes", [2, 5, 39, 61])
def test_picture_of_any_number_of_classes(tmp_path, num_classes):
    confusion = np.random.default_rng(0).poisson(0.2, size=(num_classes, num_classes))
    confusion[-1] = 0  # a class without images
    names = (LONG_NAMES * 2)[:num_classes] if num_classes <= 39 else [str(k) for k in range(num_classes)]
    assert write_matrix(confusion, names, tmp_path / "confusion.png", "a title " * 12) == []
    assert (drawn(tmp_path / "confusion.png") < 250).any()
    assert [file.name for file in tmp_path.iterdir()] == ["confusion.png"]


def test_table_and_its_counts_give_the_same_picture(tmp_path):
    table = pd.DataFrame({"true_class": list("aabccc"), "predicted_class": list("abbcca")})
    counts, names = np.array([[2, 1, 0], [0, 1, 1], [0, 0, 1]]), ["c", "a", "b"]
    write_matrix(table, names, tmp_path / "table.png")
    write_matrix(counts, names, tmp_path / "counts.png")
    write_matrix(counts.T, names, tmp_path / "turned.png")
    np.testing.assert_array_equal(drawn(tmp_path / "table.png"), drawn(tmp_path / "counts.png"))
    assert (tmp_path / "table.png").read_bytes() != (tmp_path / "turned.png").read_bytes()


def test_one_image_is_enough(tmp_path):
    table = pd.DataFrame({"true_class": ["b"], "predicted_class": ["a"]})
    assert write_matrix(table, ["a", "b"], tmp_path / "confusion.png") == []
    drawn(tmp_path / "confusion.png")
    assert write_matrix(table[:0], ["a", "b"], tmp_path / "none.png") == []
    drawn(tmp_path / "none.png")


def test_counts_that_do_not_fit_the_classes_are_refused(tmp_path):
    with pytest.raises(InputError, match="true_class 'z' has no prob_ column"):
        write_matrix(pd.DataFrame({"true_class": ["z"], "predicted_class": ["a"]}), ["a"], tmp_path / "x.png")
    for wrong in (np.ones((2, 3), dtype=int), np.full((2, 2), 0.5)):
        with pytest.raises(ValueError, match="whole counts"):
            write_matrix(wrong, ["a", "b"], tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_names_with_any_characters_are_drawn_or_numbered(tmp_path, capfd):
    # The last three: an unassigned character that no font has, a file name that is not UTF-8, nothing at all.
    names = ["正常眼底", "$x_$ & <b>", "two\nlines\t", "\U0003fffd", "a\udce9b", ""]
    notes = write_matrix(np.eye(6, dtype=int), names, tmp_path / "confusion.png", "测试 $")
    drawn(tmp_path / "confusion.png")
    assert (
        len(notes) == 1 and "class 3 is" in notes[0] and "class 1 is" not in notes[0] and "\n" not in notes[0]
    )
    assert capfd.readouterr().err == ""


def test_settings_of_the_user_change_nothing(tmp_path):
    import matplotlib

    write_matrix(np.eye(2, dtype=int), ["a", "b"], tmp_path / "plain.png")
    with matplotlib.rc_context({"text.color": "red", "font.size": 30, "font.family": "monospace"}):
        write_matrix(np.eye(2, dtype=int), ["a", "b"], tmp_path / "own.png")
        assert matplotlib.rcParams["font.size"] == 30
    np.testing.assert_array_equal(drawn(tmp_path / "plain.png"), drawn(tmp_path / "own.png"))


def test_failed_write_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "confusion.png"
    write_matrix(np.eye(2, dtype=int), ["a", "b"], path)
    before = path.read_bytes()

    def full_disk(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_matrix(np.ones((2, 2), dtype=int), ["a", "b"], path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# ---- learning curves ---------------------------------------------------------------------------------------

def test_panels_pair_training_and_validation_and_keep_their_order():
    rows = [{"epoch": 0, "train_loss": 2.0, "train_lr": 0.1, "val_zeta": 1, "val_f1": 0.5, "val_loss": 1.0,
             "val_n": 9,
             "seconds": 3.0, "note": "x", "kappa": 0.1},
            {"epoch": 1, "train_loss": math.inf, "val_f1": None, "val_loss": 0.5, "kappa": math.nan,
             "val_n": 9}]
    panels = curve_panels(rows)
    assert list(panels) == ["loss", "f1", "kappa", "lr", "zeta"]
    np.testing.assert_array_equal(panels["loss"]["train"], [2.0, math.nan])
    np.testing.assert_array_equal(panels["loss"]["val"], [1.0, 0.5])
    np.testing.assert_array_equal(panels["f1"]["val"], [0.5, math.nan])
    assert list(panels["lr"]) == ["train"] and list(panels["kappa"]) == ["val"]


def test_values_over_the_panels_are_those_of_the_best_epoch_else_of_the_last():
    rows = [{"epoch": epoch, "val_f1": value}
            for epoch, value in zip((5, 6, 7), (0.25, 0.75, 0.5), strict=True)]
    for best_epoch, expected in [(6, "F1 0.750"), (None, "F1 0.500"), (99, "F1 0.500")]:
        (panel,) = learning_curves(rows, best_epoch).panels
        assert panel.title == expected
        np.testing.assert_array_equal(panel.axes[0].lines[0].get_data(), [[5, 6, 7], [0.25, 0.75, 0.5]])
        assert len(panel.axes[0].lines) == (2 if best_epoch == 6 else 1)


@pytest.mark.parametrize("epochs", [1, 40])
def test_learning_curves_open(tmp_path, epochs):
    rows = [{"epoch": e, "train_loss": 1 / (e + 1), "val_loss": 1.0, "val_f1": e / 50,
             "val_$odd_": math.nan if e % 2 else 1} for e in range(epochs)]
    assert charts.save_png(learning_curves(rows, 0, "a run"), tmp_path / "curves.png") == []
    charts.save_png(learning_curves(rows[::-1], 0, "a run"), tmp_path / "turned.png")
    np.testing.assert_array_equal(drawn(tmp_path / "curves.png"), drawn(tmp_path / "turned.png"))


def test_no_epoch_no_chart():
    for rows in ([], [{"epoch": 0}], [{"train_loss": 1.0}]):
        assert learning_curves(rows) is None


def test_the_png_has_title_legend_and_notes_which_the_drawing_itself_has_not(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    chart, seen, savefig = all_charts(["left eye", "_right"])[0], [], Figure.savefig

    def save(figure, *words, **how):
        seen.append([text.get_text() for text in figure.texts])
        savefig(figure, *words, **how)

    monkeypatch.setattr(Figure, "savefig", save)
    for _ in range(2):
        charts.save_png(chart, tmp_path / "roc.png")
    assert seen[0] == seen[1] == ["ROC curves", "a run, test", "_right", "0.800 (0.700 to 0.900)",
                                  "ROC AUC and its 95 % interval"]
    assert not chart.figure.texts and "ROC AUC" not in "".join(texts(chart.panels[0].svg))
    assert drawn(tmp_path / "roc.png").shape[0] > 600


def test_nothing_slow_is_imported_before_a_picture_is_drawn():
    code = ("import sys, util.report.page, util.metrics.classification; "
            "slow = ('matplotlib', 'sklearn', 'scipy.stats', 'scipy.optimize', 'torch'); "
            "print([name for name in slow if name in sys.modules])")
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                            cwd=ROOT)
    assert answer.stdout.strip() == "[]"
