"""BENCHMARK.md says what util/data/public/sets.py and the parsers know, and the figures of the papers."""

import math
import re
import shlex
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from util.data.public import prepare as module
from util.data.public.sets import SETS
from util.metrics.delong import macro_auc_influence

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "BENCHMARK.md").read_text(encoding="utf-8")


def cells(heading: str) -> list[list[str]]:
    """The rows of the table under a heading, without its header and rule."""
    text = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in text.split("\n") if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_names_what_the_table_names():
    rows = {row[0]: row for row in cells("The data sets")}
    assert list(rows) == list(SETS)
    for name, public_set in SETS.items():
        line = " | ".join(rows[name])
        assert f"({public_set.url})" in line and public_set.terms in line and public_set.imaging in line
        assert rows[name][-1] == str(len(public_set.classes)) and f"{public_set.pictures:,}" in line
        text = PAGE.split(f"\n### {name}\n")[1].split("\n### ")[0].split("\n## ")[0]
        assert f"python -m util.prepare {name} " in text
        assert all(f"`{label}`" in text for label in public_set.classes[:6]), name
        for url in re.findall(r"https://\S+[^\s),]", public_set.files):
            assert url in text


def test_every_set_has_a_line_for_figures_and_every_figure_of_the_papers_is_there():
    rows = cells("Published figures")
    assert {row[0] for row in rows} == set(SETS)
    assert all(row[4] == row[5] == "" for row in rows)  # one's own
    figures = {(row[0], row[1], row[2]): row[3] for row in rows}
    assert figures["APTOS2019", "RETFound-MAE (CFP)", "AUROC"] == "0.943 (0.941–0.944)"
    assert figures["IDRID", "RETFound-MAE (CFP)", "AUROC"] == "0.822 (0.815–0.829)"
    assert figures["MESSIDOR2", "RETFound-MAE (CFP)", "AUROC"] == "0.884"
    second = {row[2].split()[-1] if row[2] != "AUPR (`average_precision`)" else "AUPR": row[3] for row in rows
              if row[1] == "RETFound_dinov2_meh"}
    assert second == {"accuracy": "0.7091", "F1": "0.6078", "AUROC": "0.9037", "AUPR": "0.6863"}
    for link in ("10.1038/s41586-023-06555-x", "10.1038/s41467-026-70077-z", "arxiv.org/abs/2509.03421",
                 "rs-6080254",
                 "https://github.com/rmaphoh/RETFound/blob/main/BENCHMARK.md"):
        assert link in PAGE
    header = next(line for line in PAGE.split("\n") if line.startswith("| Data set | Model |"))
    assert "own split: not comparable" in header


def hanley_mcneil(auc: float, inside: int, outside: int) -> float:
    """Standard error of an AUC of so many images of a class and others (Radiology 143, 1982)."""
    two_inside, two_outside = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = (inside - 1) * (two_inside - auc**2) + (outside - 1) * (two_outside - auc**2)
    return math.sqrt((auc * (1 - auc) + spread) / (inside * outside))


def drawn_macro_aucs(counts: list[int], advantage: float, sets: int) -> np.ndarray:
    """(sets,) macro AUCs of standard normal scores (N, K) with an advantage for an image's own class."""
    rng, one_hot = (
        np.random.default_rng(0),
        np.eye(len(counts), dtype=bool)[np.repeat(np.arange(len(counts)), counts)],
    )
    return np.array([macro_auc_influence(one_hot, rng.normal(size=one_hot.shape) + advantage * one_hot)[0]
                     for _ in range(sets)])


def test_the_interval_over_images_beside_the_published_one():
    """Of counts by grade: the owner's test of IDRiD, and 30 % of each grade of APTOS2019's 3,662 labelled
    images."""
    published = {row[0]: row[3] for row in cells("Published figures") if row[1] == "RETFound-MAE (CFP)"}
    rows = re.findall(
        r"^\| (APTOS2019|IDRID) \| ([\d,]+) \(([\d, ]+)\)[^|]*\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$",
        PAGE,
        re.M,
    )
    assert [row[0] for row in rows] == ["APTOS2019", "IDRID"]
    for name, images, grades, figure, by_formula, by_drawing in rows:
        assert figure == published[name]
        auc, low, high = map(float, re.findall(r"[\d.]+", figure))
        counts = [int(count) for count in grades.split(", ")]
        assert sum(counts) == int(images.replace(",", "")) and len(counts) == len(SETS[name].classes)
        half = 1.96 * math.hypot(*(hanley_mcneil(auc, count, sum(counts) - count)
                                   for count in counts)) / len(counts)
        assert by_formula == f"± {half:.3f} ({auc - half:.3f}–{auc + half:.3f})"
        # of a standard normal score with an advantage a, and one without, the first is higher with a chance
        # of Phi(a / sqrt 2)
        aucs = drawn_macro_aucs(counts, math.sqrt(2) * NormalDist().inv_cdf(auc), 400)
        drawn, said = 1.96 * aucs.std(), float(by_drawing.split()[1])
        assert by_drawing == f"± {said:.3f} ({auc - said:.3f}–{auc + said:.3f})" and said == pytest.approx(
            drawn, rel=0.08
        )
        assert aucs.mean() == pytest.approx(auc, abs=0.004) and min(half, drawn) > 6 * (high - low) / 2


def page_commands() -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").split("\n")]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_pages_commands_are_understood():
    """Those of prepare and compare.py by their parsers, with the right number of classes where one is trained
    or scored; the flags of training are parsed in test_pages.py, which reads this page too."""
    prepared, scored = set(), set()
    for words in page_commands():
        if "util.prepare" in words:
            options = module.make_parser().parse_args(words[words.index("util.prepare") + 1:])
            assert options.out_dir.rsplit("/", 1)[-1] == options.name
            prepared.add(options.name)
        elif "compare.py" in words:
            assert len(words) > 3
        else:
            values = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
            values |= {word: value for word, value in zip(words, words[1:], strict=False)
                       if word.startswith("--")}
            data = (
                values.get("DATA_PATH")
                or values.get("--data_path")
                or values["--csv_file"].removesuffix("/split_list.csv")
            )
            name = data.rsplit("/", 1)[-1]
            number = int(values.get("NUM_CLASS") or values["--nb_classes"])
            if SETS[name].several:
                begin = words.index("--label_cols") + 1
                labels = [word for word in words[begin:] if word in SETS[name].classes]
                assert labels == words[begin:begin + number] and "--multilabel" in words, words
                assert ("--patient_col" in words) == bool(SETS[name].patients)
                scored.add(name)
                continue
            assert number == len(SETS[name].classes), words
            if "--csv_file" in values:  # the columns of the list, and the patients that are the reason for it
                assert (values["--label_col"], values["--patient_col"]) == ("class", "patient") and SETS[
                    name
                ].patients
                assert {"class", "patient"} < set(module.LIST_COLUMNS)
            scored.add(name)
    assert prepared == scored == set(SETS)


def test_flags_are_pinned():
    parser = module.make_parser()
    flags = {action.option_strings[0]: action.default for action in parser._actions
             if action.option_strings and action.dest != "help"}
    assert flags == {"--seed": 0, "--val": 0.15, "--test": 0.3, "--split_list": None, "--copy": False,
                     "--link": False}
    assert all(f"`{flag}`" in PAGE for flag in flags)
