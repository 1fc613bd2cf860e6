"""A comparison in words: on the terminal, and as Markdown for a paper's draft."""

import math
import unicodedata

from util.metrics.table import is_better_low
from util.study.comparison import Comparison, Summary, Test

MOST_TESTS_SHOWN = 40  # on the terminal


def terminal(comparison: Comparison) -> list[str]:
    """Lines with the table of groups, that of tests, and what is to be said of them."""
    lines = [_what(comparison), "", *_aligned(_groups_rows(comparison))]
    if comparison.tests:
        shown = comparison.main_tests()[:MOST_TESTS_SHOWN]
        lines += ["", *_aligned(_tests_rows(comparison, shown))]
        if len(shown) < len(comparison.tests):
            lines.append(f"the files have {len(comparison.tests) - len(shown)} more tests")
    if comparison.joint:
        lines += ["", *_aligned(_joint_rows(comparison))]
    return [*lines, "", *explanations(comparison), *(f"note: {note}" for note in comparison.notes)]


def markdown(comparison: Comparison) -> str:
    """The same as a Markdown page."""
    parts = ["# Comparison", "", _what(comparison) + ".", "", *_piped(_groups_rows(comparison))]
    if comparison.tests:
        parts += ["", "## Paired tests", "", *_piped(_tests_rows(comparison, comparison.tests))]
    if comparison.joint:
        parts += ["", "## All groups at once", "", *_piped(_joint_rows(comparison))]
    parts += ["", *(f"- {line}" for line in explanations(comparison)),
              *(f"- Note: {note}" for note in comparison.notes)]
    parts += ["", "Runs:", "", *(f"- {_escaped(group.name)}: "
                                 f"{', '.join(f'`{run.folder}`' for run in group.runs)}"
                                 for group in comparison.groups)]
    return "\n".join(parts) + "\n"


def explanations(comparison: Comparison) -> list[str]:
    """What the numbers mean, for whoever reads them without docs/compare.md."""
    several = any(len(group.runs) > 1 for group in comparison.groups)
    methods = dict.fromkeys(one.method for one in comparison.summaries if one.method)
    of = comparison.unit if comparison.patients is None else "patients"
    pairs = len({(test.first, test.second) for test in comparison.tests})
    correction = f", Holm's correction over the {pairs} pairs of a metric and method" if pairs > 1 else ""
    has_seeds = any(not math.isnan(test.p_seeds) for test in comparison.tests)
    low = [metric for metric in comparison.metrics if is_better_low(metric)]
    lines = (
        (several,
         "± is the standard deviation over seeds; the interval is that of the mean over the seeds, for these "
         f"trained models on new {comparison.unit}"),
        (True, f"[ ] are 95 % intervals ({', '.join(methods) or 'none stored'})"),
        (comparison.tests,
         f"differences are first - second, on the same {comparison.unit}; {comparison.draws} resamples of "
         f"{of}, seed {comparison.seed}; p two-sided{correction}"),
        (comparison.joint,
         "joint DeLong: one test of whether all groups have the same ROC AUC, for these trained models on "
         f"new {comparison.unit}; which of them differ, the pairs say"),
        (has_seeds,
         "p holds for these trained models; p (new seeds) counts the spread over seeds too: it says whether "
         "the same would be found after training again"),
        (comparison.tests and not has_seeds and not several,
         "each group is one training: whether the difference would be there with another seed, no test of "
         "these runs can say"),
        (low, f"lower is better for {', '.join(low)}"),
        (comparison.split == "val",
         "val chose the best epoch of every run, so its figures are too good: compare on test"))
    return [text for is_so, text in lines if is_so]


# ---- cells -------------------------------------------------------------------------------------------------

def figure_text(value: float) -> str:
    """Three decimals, or three digits where the metric is in units of its own; – where it is undefined."""
    if math.isnan(value):
        return "–"
    if abs(value) < 0.0005:
        return "0.000"  # without a sign
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def p_text(p: float) -> str:
    if math.isnan(p):
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def summary_text(one: Summary) -> str:
    """0.871 ± 0.004 [0.842, 0.899]"""
    spread = f" ± {figure_text(one.sd)}" if len(one.values) > 1 else ""
    return figure_text(one.mean) + spread + _interval_text(one)


def difference_text(test: Test) -> str:
    if math.isnan(test.difference):
        return "–"
    text = ("+" if test.difference >= 0.0005 else "") + figure_text(test.difference)
    return text + _interval_text(test)


def _interval_text(one: Summary | Test) -> str:
    return "" if math.isnan(one.lower) else f" [{figure_text(one.lower)}, {figure_text(one.upper)}]"


def _what(comparison: Comparison) -> str:
    patients = "" if comparison.patients is None else f" of {comparison.patients:,} patients"
    return f"{comparison.split}: {comparison.images:,} {comparison.unit}{patients}, the same for all"


def _groups_rows(comparison: Comparison) -> list[list[str]]:
    return [["group", "seeds", *comparison.metrics],
            *([group.name, str(len(group.runs)),
               *(summary_text(comparison.summary(group.name, metric)) for metric in comparison.metrics)]
              for group in comparison.groups)]


def _tests_rows(comparison: Comparison, tests: list[Test]) -> list[list[str]]:
    columns = {"first": "first", "second": "second", "metric": "metric", "test": "method"}
    corrected = len({(test.first, test.second) for test in comparison.tests}) > 1
    seeds = any(not math.isnan(test.p_seeds) for test in comparison.tests)
    p_values = (("p", "p", True), ("p (Holm)", "p_holm", corrected), ("p (new seeds)", "p_seeds", seeds),
                ("p (new seeds, Holm)", "p_seeds_holm", seeds and corrected))
    shown = {heading: name for heading, name, is_shown in p_values if is_shown}
    return [[*columns, "difference", *shown],
            *([*(getattr(test, name) for name in columns.values()), difference_text(test),
               *(p_text(getattr(test, name)) for name in shown.values())] for test in tests)]


def _joint_rows(comparison: Comparison) -> list[list[str]]:
    return [["metric", "test", "groups", "chi-square", "df", "p"],
            *([test.metric, test.method, str(test.groups), figure_text(test.chi_square),
               "–" if math.isnan(test.p) else str(test.degrees_of_freedom), p_text(test.p)]
              for test in comparison.joint)]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell + " " * (width - _width(cell))
                      for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows]


def _width(text: str) -> int:
    return sum(0 if unicodedata.combining(mark) else 2 if unicodedata.east_asian_width(mark) in "WF" else 1
               for mark in text)


def _piped(rows: list[list[str]]) -> list[str]:
    header, *rest = (f"| {' | '.join(map(_escaped, row))} |" for row in rows)
    return [header, f"|{' --- |' * len(rows[0])}", *rest]


def _escaped(cell: str) -> str:
    return " ".join(cell.replace("\\", "\\\\").replace("|", "\\|").split())
