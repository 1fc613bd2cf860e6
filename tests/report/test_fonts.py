"""The text of the charts: whatever the script, it is drawn or replaced, and one line says which font is not
there."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager
from PIL import Image

from tests.conftest import not_installed, write_pictures
from util.metrics.curves import curves_of
from util.report import charts, class_charts, fundus_sheet
from util.report import fonts as chart_fonts
from util.report.bland_altman import agreement
from util.report.learning_curves import learning_curves
from util.study.comparison_chart import forest_figure

NAMES = ["正常眼底", "糖尿病视网膜病变"]
ROWS = [{"epoch": epoch, "train_loss": 1 / (epoch + 1), "val_mae_血糖": epoch / 9} for epoch in range(3)]


@pytest.fixture(autouse=True)
def fresh():
    """Warnings are errors, and matplotlib's list of fonts is put back."""
    before = list(font_manager.fontManager.ttflist)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    font_manager.fontManager.ttflist[:] = before
    forget()


def forget():
    chart_fonts._others_for.cache_clear()
    font_manager.fontManager._findfont_cached.cache_clear()


@pytest.fixture
def no_other_font(monkeypatch):
    """A machine that has matplotlib's own fonts alone."""
    forget()
    listed = font_manager.fontManager.ttflist
    listed[:] = [entry for entry in listed if entry.name.startswith("DejaVu")]
    monkeypatch.setattr(chart_fonts, "add_new_fonts", lambda: False)


def made_font(file: Path, family: str, marks: str) -> Path:
    """A font whose characters are triangles."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    pen.lineTo((500, 800))
    pen.lineTo((900, 0))
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "triangle"])
    builder.setupCharacterMap({ord(mark): "triangle" for mark in marks})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "triangle": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "triangle": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(file)
    return file


def draw_all(folder: Path) -> list[str]:
    """Every chart of the program that has a user's words in it -> the lines for the user."""
    rng = np.random.default_rng(0)
    counts = np.array([[9, 3], [5, 7]])
    drawn = [class_charts.confusion_matrix("test", counts, NAMES, "测试"), learning_curves(ROWS, heading="任务一")]
    true = np.arange(40) % 2
    logits = np.stack([np.zeros(40), true + rng.normal(size=40)], axis=1)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    curves = curves_of(true, chances.argmax(axis=1), chances, logits, NAMES, 1.3)
    entry = {"value": 0.8, "lower": 0.7, "upper": 0.9}
    scored = class_charts.Scored("test", "任务一, test, 40 images", NAMES, curves, counts,
                                 [{"roc_auc": entry, "average_precision": entry}] * 2, {})
    drawn += [draw(scored) for draw in (class_charts.roc, class_charts.precision_recall,
                                        class_charts.reliability,
                                        class_charts.scores)]
    table = pd.DataFrame({f"{kind}_{target}": rng.normal(size=9) for kind in ("true", "pred")
                          for target in ("血糖", "年龄")})
    drawn += [agreement("test", table, ["血糖", "年龄"], number) for number in (0, 1)]
    lines = []
    for number, chart in enumerate(drawn):
        charts.draw_svgs(chart)
        assert all("?" not in panel.svg for panel in chart.panels), "a browser has other fonts"
        lines += charts.save_png(chart, folder / f"chart_{number}.png")
    assert NAMES[1] in drawn[0].panels[0].svg and NAMES[1] in drawn[2].panels[0].svg
    files = [folder / "左眼.png", folder / "b.png"]
    for file in files:
        Image.new("RGB", (60, 60), "grey").save(file)
    lines += fundus_sheet.write_sheet(
        pd.DataFrame({"path": map(str, files), "x": 30.0, "y": 30.0, "radius": 25.0}), folder / "sheet.png"
    )
    return lines


def texts_of(monkeypatch):
    """{text: families} of every PNG that is drawn from here on."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    seen, savefig = {}, Figure.savefig

    def save(figure, *words, **options):
        savefig(figure, *words, **options)
        if options["format"] == "png":
            seen.update({text.get_text(): text.get_family() for text in figure.findobj(Text)
                         if text.get_text()})

    monkeypatch.setattr(Figure, "savefig", save)
    return seen


def test_without_a_font_every_chart_is_drawn_with_numbers_and_one_line_says_so(
    tmp_path, no_other_font, monkeypatch, capfd
):
    texts = texts_of(monkeypatch)
    lines = draw_all(tmp_path)
    assert (
        len(lines) == 1
        and "class 0 is '正常眼底'" in lines[0]
        and "apt-get install fonts-noto-cjk" in lines[0]
    )
    assert {"class 0", "class 0 (12)", "class 1", "0.800 (0.700 to 0.900)", "Probability of class 1", "??",
            "mae_?? 0.222",
            "target 1, test (9 images)", "???, test, 40 images"} <= set(texts), texts
    assert not set("".join(texts)) & set("".join(NAMES) + "血糖年龄任务一测试")
    assert draw_all(tmp_path) == [], "once a run"
    assert capfd.readouterr().err == ""


def test_with_a_font_every_chart_has_the_names(tmp_path, no_other_font, monkeypatch):
    font_manager.fontManager.addfont(made_font(tmp_path / "own.ttf", "Own Chinese",
                                               "".join(NAMES) + "血糖年龄任务一测试左眼"))
    texts = texts_of(monkeypatch)
    assert draw_all(tmp_path) == []
    assert {NAMES[0], f"{NAMES[0]} (12)", NAMES[1], f"Probability of {NAMES[1]}", "测试", "任务一",
            "任务一, test, 40 images", "mae_血糖 0.222"} <= set(texts), texts
    for text, families in texts.items():
        if set(text) & set("".join(NAMES)):
            assert families == [chart_fonts.DEFAULT_FONT, "Own Chinese"]


def test_an_installed_chinese_font_draws_them(tmp_path, monkeypatch):
    fonts, missing = chart_fonts.fonts_for("".join(NAMES))
    if missing:
        not_installed("fonts-wqy-microhei")
    texts = texts_of(monkeypatch)
    assert draw_all(tmp_path) == []
    assert NAMES[0] in texts
    assert fonts[1] in chart_fonts.PREFERRED_FONTS or not set(chart_fonts.PREFERRED_FONTS) & set(
        chart_fonts._installed()
    )


@pytest.fixture
def charts_are_not_drawn():
    """They are, here."""


def test_a_run_says_it_once(start, no_other_font, tmp_path):
    data = write_pictures(tmp_path / "data", numbers=(2, 1, 2), classes=("正常", "轻度", "重度"))
    warnings.simplefilter("ignore")  # of the packages that a whole run uses
    warnings.filterwarnings("error", message="Glyph")
    code, out, err = start("--output_dir", "out", "--task", "任务", data=data)
    assert code == 0 and out.count("no installed font") == 1 and "\nval: no installed font" in out, err
    assert "Glyph" not in out + err


def test_a_comparison_has_the_names_of_groups_and_metrics(tmp_path, no_other_font, monkeypatch):
    run = SimpleNamespace  # only what the image reads
    groups = [run(name=name, runs=[1]) for name in NAMES]
    one = run(mean=0.5, lower=0.4, upper=0.6, values=[0.5])
    comparison = run(metrics=["mae_血糖"], groups=groups, split="test", images=9, unit="images", joint=[], main_tests=list,
                     summary=lambda name, metric: one)
    monkeypatch.setattr("util.study.comparison_chart.summary_text", lambda summary: "0.5")
    texts = texts_of(monkeypatch)
    lines = forest_figure(comparison, tmp_path / "comparison.png")
    assert len(lines) == 1 and "group 0 is '正常眼底'" in lines[0]
    assert {"group 0", "group 1"} <= set(texts)
    assert any(text.startswith("mae_??") for text in texts)


def test_fonts_are_looked_for_only_where_one_is_missing(no_other_font, monkeypatch):
    monkeypatch.setattr(chart_fonts, "_installed", lambda: pytest.fail("the fonts were listed"))
    assert chart_fonts.fonts_for("sévère, R² − 1 %\nμm") == ([chart_fonts.DEFAULT_FONT], set())


def test_named_fonts_come_first_then_any_that_has_the_character(tmp_path, no_other_font):
    for family, marks in (("A Font", "正ไ"), ("SimHei", "正"), ("Z Thai", "ไ"), ("Last Resort", "正ไa🙂"),
                          ("Noto Emoji", "🙂"),
                          ("B Color Emoji", "🙂")):
        font_manager.fontManager.addfont(made_font(tmp_path / f"{family}.ttf", family, marks))
    assert chart_fonts.fonts_for("正") == ([chart_fonts.DEFAULT_FONT, "SimHei"], set())
    assert chart_fonts.fonts_for("正ไ") == ([chart_fonts.DEFAULT_FONT, "SimHei", "A Font"], set())
    assert chart_fonts.fonts_for("🙂 ok") == ([chart_fonts.DEFAULT_FONT, "Noto Emoji"], set())
    lost = "\U0003fffd"
    assert chart_fonts.fonts_for(f"正{lost}") == ([chart_fonts.DEFAULT_FONT, "SimHei"], {lost})
    assert "fonts-noto;" in chart_fonts.missing_line({"ก"})[0]


def test_a_font_installed_after_matplotlib_listed_them_is_found(tmp_path, no_other_font, monkeypatch):
    monkeypatch.undo()  # the real add_new_fonts
    chart_fonts.add_new_fonts.cache_clear()
    file = str(made_font(tmp_path / "new.ttf", "New Font", "\U0003fff0"))
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda fontpaths=None, fontext="ttf": (
        [file] if fontpaths is None and fontext == "ttf" else []))
    assert chart_fonts.fonts_for("a\U0003fff0") == ([chart_fonts.DEFAULT_FONT, "New Font"], set())
    chart_fonts.add_new_fonts.cache_clear()


def test_names_are_whole_unless_they_are_long():
    names = ["no DR", "", "x" * 99, "two\nlines", "a rather long name of a disease of the retina",
             "central serous chorioretinopathy, left"]
    assert chart_fonts.shown_names(names) == ["no DR", "class 1", "x" * 21 + "…" + "x" * 12, "two lines",
                                              "a rather long name of a…retina", "central serous…left"]
    twins = ["x" * 50 + "a" + "y" * 50, "x" * 50 + "b" + "y" * 50]
    assert chart_fonts.shown_names(twins) == twins  # cut, they would read the same


def test_a_name_that_no_font_has_becomes_its_number_and_a_character_a_question_mark():
    from matplotlib.figure import Figure

    figure, lost = Figure(), "\U0003fffd"
    shown = ["no DR", f"a {lost} b", f"a\n{lost} b (7)", f"of {lost}"]
    for text in shown:
        figure.text(0, 0, text)
    (line,) = chart_fonts.fit_fonts(figure, ["no DR", f"a {lost} b"])
    assert [text.get_text() for text in figure.texts] == ["no DR", "class 1", "class 1 (7)", "of ?"]
    assert f"class 1 is {f'a {lost} b'!r}" in line
