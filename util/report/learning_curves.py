"""The learning curves: what changed over the epochs, a small panel a metric."""

import math

import numpy as np

from util.metrics.table import BY_NAME
from util.report import charts
from util.report.charts import LEARNING_RATE, MUTED, Chart, Panel, axes_in, own_style, titled
from util.report.fonts import shown_names
from util.report.metric_tables import written

PANEL_WIDTH, PANEL_HEIGHT, PITCH = 2.6, 1.75, 2.1  # inches; PITCH: of the rows, with room for titles
MOST_EPOCHS = 600  # drawn of each line, evenly chosen


@own_style()
def learning_curves(log_rows: list[dict], best_epoch: int | None = None, heading: str = "") -> Chart | None:
    """A panel of each metric that the log holds; None without a single epoch.

    log_rows: one dict an epoch, with "epoch" and numbers named as in the log: train_loss, val_loss,
    val_<metric> or <metric>, lr. train_ and val_ of one name share a panel; a name that is no metric's gets a
    panel when it begins with val_. best_epoch is marked, and its values stand over the panels (else those of
    the last epoch).
    """
    rows = sorted((row for row in log_rows if row.get("epoch") is not None), key=lambda row: row["epoch"])
    found = curve_panels(rows)
    if not found:
        return None
    epochs = [row["epoch"] for row in rows]
    is_marked = best_epoch in epochs
    marked = epochs.index(best_epoch) if is_marked else len(epochs) - 1
    chosen = np.unique(np.linspace(0, len(epochs) - 1, min(len(epochs), MOST_EPOCHS)).astype(int))
    columns = min(4, len(found))
    lines = math.ceil(len(found) / columns)
    figure, panels = charts.empty_figure(PANEL_WIDTH * columns, PITCH * lines), []
    for number, (name, curves) in enumerate(found.items()):
        left, bottom = number % columns * PANEL_WIDTH, (lines - 1 - number // columns) * PITCH
        right, top = left + PANEL_WIDTH, bottom + PANEL_HEIGHT
        axes = axes_in(figure, (left + 0.56, bottom + 0.26, right - 0.12, top - 0.2),
                       (epochs[0], epochs[-1]) if len(epochs) > 1 else (epochs[0] - 1, epochs[0] + 1), (0, 1))
        for source, values in curves.items():
            _draw_line(axes, np.asarray(epochs)[chosen], values[chosen], source, name)
        axes.autoscale(axis="y")
        if is_marked and len(epochs) > 1:
            axes.axvline(best_epoch, color=MUTED, linewidth=0.9, linestyle=":")
        axes.locator_params(axis="x", integer=True, nbins=5, min_n_ticks=1)
        axes.locator_params(axis="y", nbins=4)
        value = curves.get("val", curves.get("train"))[marked]
        text = written(float(value)) if math.isfinite(value) else "–"
        title = f"{titled(shown_names([name])[0])} {text}"
        said = f"{titled(name)} over the epochs: {text} at epoch {epochs[marked]}."
        panels.append(Panel(f"learning-{number}", title, said, (left, bottom, right, top), [axes]))
    which = "the best epoch (dotted)" if is_marked else "the last epoch"
    note = f"Over the epochs. The numbers are those of {which}, {epochs[marked]}."
    return Chart(figure, panels, heading, note=note,
                 legend=[("s0", "validation", ""), ("plain", "training", "")])


def _draw_line(axes: "charts.Axes", epochs: np.ndarray, values: np.ndarray, source: str, name: str) -> None:
    """A line, broken where a value lacks; few points are marked, and of many those that stand alone between
    two gaps."""
    known = np.isfinite(np.concatenate([[np.nan], values, [np.nan]]))
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    said = "" if name == LEARNING_RATE else charts.hint({"train": "training", "val": "validation"}[source])
    marked = None if len(epochs) <= 30 else np.flatnonzero(alone).tolist()
    axes.plot(epochs, values, **charts.LINES["plain" if source == "train" else "s0"], marker="o",
              markersize=2.5, markevery=marked, gid=said or None)


def curve_panels(rows: list[dict]) -> dict[str, dict[str, np.ndarray]]:
    """{metric: {"train" or "val": values, NaN where an epoch lacks one}} in the metrics' own order, then by
    name."""
    panels: dict[str, dict[str, np.ndarray]] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        source, name = ("train", key[6:]) if key.startswith("train_") else ("val", key.removeprefix("val_"))
        values = [row.get(key) for row in rows]
        numbers = [float(value) if isinstance(value, (int, float)) else math.nan for value in values]
        is_drawn = (name == LEARNING_RATE or name in BY_NAME or key.startswith("val_")) and name != "n"
        if is_drawn and any(map(math.isfinite, numbers)):
            panels.setdefault(name, {})[source] = np.where(np.isfinite(numbers), numbers, np.nan)

    def place(name: str) -> tuple[float, str]:
        row = BY_NAME.get(name)
        return (math.inf if row is None or row.curve is None else row.curve, name)

    return dict(sorted(panels.items(), key=lambda item: place(item[0])))
