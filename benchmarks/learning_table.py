"""The table of benchmarks/learning.py: made by compare.py, kept in docs/learning.json, shown in
docs/speed.md, and its AUCs on the README (and both in zh)."""

import contextlib
import io
import json
import math
import platform
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

import compare
from util.core.errors import InputError
from util.core.machine import usable_cores
from util.core.run_files import write_whole

if TYPE_CHECKING:
    from benchmarks.learning import Cell

START = "<!-- table of benchmarks/learning.py -->"
END = START.replace("table", "end of the table")
STORED, PAGES = Path("docs/learning.json"), {"en": "docs/speed.md", "zh": "docs/zh/speed.md"}
READMES = {"en": "README.md", "zh": "README_zh.md"}
METRICS = ("roc_auc", "accuracy")
WORDS = {
    "en": {
        "idrid": "IDRiD, whole photographs",
        "idrid_crop": "IDRiD, fundus crop",
        "digits": "digits, 64 pixels",
        "demo": "demo, 128 pixels",
        "imagenet": "ImageNet",
        "random": "random weights",
        "ours": "ours, defaults",
        "probe": "ours, `--adaptation lp`",
        "logistic": "logistic regression on features",
        "plain": "plain loop",
        "header": ("Images", "Start", "Method", "AUC", "Accuracy", "AUC above the plain loop's", "p",
                   "p (new seeds)", "Time"),
        "none": "Not measured yet.",
        "seeds": "seeds",
        "epochs": "epochs",
        "cores": "cores",
        "no GPU": "no GPU",
        "commit": "commit",
        "min": "min",
        "s": "s",
    },
    "zh": {
        "idrid": "IDRiD，整张照片",
        "idrid_crop": "IDRiD，裁出眼底",
        "digits": "手写数字，64 像素",
        "demo": "演示图像，128 像素",
        "imagenet": "ImageNet",
        "random": "随机权重",
        "ours": "本项目，默认设置",
        "probe": "本项目，`--adaptation lp`",
        "logistic": "对特征做逻辑回归",
        "plain": "普通训练循环",
        "header": ("图像", "起点", "方法", "AUC", "准确率", "AUC 高出普通循环", "p", "p（新种子）", "时间"),
        "none": "尚未测量。",
        "seeds": "种子数",
        "epochs": "epoch 数",
        "cores": "核",
        "no GPU": "无 GPU",
        "commit": "提交",
        "min": "分",
        "s": "秒",
    },
}


# ---- from runs to rows -------------------------------------------------------------------------------------

def content(cells: "list[Cell]", work: Path, epochs: int) -> dict:
    """What docs/learning.json holds, of runs that are done: {machine, epochs, seeds, commits, rows}; the
    number of seeds and the commits by start.

    Runs of the same images and start are compared with each other by compare.py, IDRiD with and without the
    fundus crop together; its tables stay in WORK/comparison.
    """
    rows, families = [], {}
    for cell in cells:
        families.setdefault((cell.images.removesuffix("_crop"), cell.start), []).append(cell)
    for (images, start), members in families.items():
        rows += _compared(members, work / "comparison" / f"{images}-{start}")
    seeds: dict[str, int] = {}
    commits: dict[str, set[str]] = {}
    for cell in cells:
        seeds[cell.start] = max(seeds.get(cell.start, 0), cell.seed + 1)
        commit = json.loads((cell.folder / "run.json").read_text(encoding="utf-8")).get("commit")
        commits.setdefault(cell.start, set()).update([commit] if commit else [])
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"machine": {"type": platform.machine(), "cores": usable_cores(), "gpu": gpu,
                        "torch": torch.__version__},
            "epochs": epochs, "seeds": seeds,
            "commits": {start: sorted(found) for start, found in commits.items()}, "rows": rows}


def _compared(cells: "list[Cell]", output: Path) -> list[dict]:
    """Rows of runs of one start on the same test images, with the tests against the plain loop where it is
    among them."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    # the second of each pair: tests are first - second
    for cell in sorted(cells, key=lambda cell: cell.way == "plain"):
        groups.setdefault((cell.images, cell.way), []).append(cell)
    names = [f"{images} {way}" for images, way in groups]
    with contextlib.redirect_stdout(io.StringIO()):  # comparison.md says the same
        compare.main([*(str(cell.folder) for members in groups.values() for cell in members),
                      "--metric", *METRICS, "--names", *names, "--output", str(output)])
    found = pd.read_csv(output / "comparison.csv").set_index("group")
    tests = pd.read_csv(output / "comparison_tests.csv")
    tests = tests[(tests["metric"] == "roc_auc") & (tests["method"] == "paired DeLong")]
    rows = []
    for name, ((images, way), members) in zip(names, groups.items(), strict=True):
        times = [json.loads((cell.folder / "cell.json").read_text(encoding="utf-8"))["seconds"]
                 for cell in members]
        known = [seconds for seconds in times if seconds is not None]
        row = {"images": images, "start": members[0].start, "way": way, "model": members[0].arch,
               "seeds": len(members),
               **{column: _number(found.loc[name, column]) for metric in METRICS
                  for column in (metric, f"{metric}_sd", f"{metric}_lower", f"{metric}_upper")},
               "seconds": round(statistics.median(known), 1) if known else None}
        against = tests[(tests["first"] == name) & tests["second"].str.endswith(" plain")]
        rows.append(row | {column: _number(against.iloc[0][column]) if len(against) else None
                           for column in ("difference", "lower", "upper", "p_holm", "p_seeds_holm")})
    return rows


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)


# ---- from rows to pages ------------------------------------------------------------------------------------

def markdown(stored: dict, language: str) -> str:
    """The table and a line on how it was measured."""
    words = WORDS[language]
    if not stored["rows"]:
        return words["none"]
    lines = [words["header"], ["---"] * len(words["header"]), *(_cells(row, words) for row in stored["rows"])]
    machine = stored["machine"]
    seeds = ", ".join(f"{number} ({words[start]})" for start, number in stored["seeds"].items())
    said = [f"{words['seeds']} {seeds}", f"{words['epochs']} {stored['epochs']}",
            f"{machine['type']}, {machine['cores']} {words['cores']}, {machine['gpu'] or words['no GPU']}",
            f"PyTorch {machine['torch']}",
            f"{words['commit']} {', '.join(sorted(set().union(*stored['commits'].values())))}"]
    return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), "", "; ".join(said)])


def short(stored: dict, language: str) -> str:
    """The README's table: a line of AUCs for each kind of images and start."""
    words = WORDS[language]
    if not stored["rows"]:
        return words["none"]
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in stored["rows"]:
        found.setdefault((row["images"], row["start"]), {})[row["way"]] = _mean(row, "roc_auc")
    # the plain loop's row stands last of all images that are compared with it
    ways = list(dict.fromkeys(way for row in found.values() for way in row))
    lines = [[*words["header"][:2], *(words[way] for way in ways)], ["---"] * (2 + len(ways)),
             *([words[images], words[start], *(row.get(way, "–") for way in ways)]
               for (images, start), row in found.items())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(row: dict, words: dict) -> list[str]:
    above = ""
    if row["difference"] is not None:
        above = f"{row['difference']:+.3f} [{row['lower']:+.3f}, {row['upper']:+.3f}]"
    return [words[row["images"]], words[row["start"]], words[row["way"]], _figure(row, "roc_auc"),
            _figure(row, "accuracy"), above, _p(row["p_holm"]), _p(row["p_seeds_holm"]),
            _time(row["seconds"], words)]


def _mean(row: dict, name: str) -> str:
    spread = "" if row[f"{name}_sd"] is None else f" ± {row[f'{name}_sd']:.3f}"
    return f"{row[name]:.3f}{spread}"


def _figure(row: dict, name: str) -> str:
    return f"{_mean(row, name)} [{row[f'{name}_lower']:.3f}, {row[f'{name}_upper']:.3f}]"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _time(seconds: float | None, words: dict) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.0f} {words['s']}" if seconds < 120 else f"{seconds / 60:.1f} {words['min']}"


def inserted(page: str, table: str) -> str:
    """A page with its table in place of the one between the marks. ValueError where the marks are not there
    once each."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end) or START in after or END in after:
        raise ValueError(f"the page needs {START} and {END}, once each")
    return f"{before}{START}\n{table}\n{END}{after}"


def shown(stored: dict) -> dict[str, str]:
    """{page: its table}."""
    return ({page: markdown(stored, language) for language, page in PAGES.items()}
            | {page: short(stored, language) for language, page in READMES.items()})


def joined(old: dict, new: dict) -> dict:
    """The new rows, and of the old ones those of starts that the new ones lack."""
    kept = [row for row in old["rows"] if row["start"] not in new["seeds"]]
    if not kept:
        return new
    return new | {"rows": sorted([*kept, *new["rows"]], key=lambda row: row["start"]),
                  **{name: dict(sorted((old[name] | new[name]).items())) for name in ("seeds", "commits")}}


def write(new: dict, root: Path) -> None:
    """docs/learning.json and the tables of the pages; rows of starts that were not asked for stay. InputError
    where they were trained for another time."""
    old = json.loads((root / STORED).read_text(encoding="utf-8")) if (root / STORED).exists() else new
    if old["epochs"] != new["epochs"]:
        raise InputError(f"--write: {STORED} is of {old['epochs']} epochs, and these runs are of "
                         f"{new['epochs']}")
    stored = joined(old, new)
    write_whole(root / STORED, json.dumps(stored, indent=2, ensure_ascii=False) + "\n")
    for name, table in shown(stored).items():
        page = root / name
        write_whole(page, inserted(page.read_text(encoding="utf-8"), table))
        print(f"written: {root / STORED} and the table of {page}")
