"""What a report says in words: what was run, on which data, and what a reader should be warned of."""

from dataclasses import dataclass

import pandas as pd

from util.core.plain_numbers import mean_and_deviation
from util.metrics.table import is_better_low
from util.report.metric_tables import undefined, written
from util.report.run_data import Run, as_dict

EXAMPLES = 4  # of each kind of finding
KINDS = {"same bytes": "the very same file", "same pixels": "the same image in another file",
         "near duplicate":
         "nearly the same image", "same patient": "images of one patient"}
NOTES = "From reading the data:"
FINETUNE = {"finetune": "all weights trained", "lp": "linear probe: the head alone trained",
            "lora": "LoRA: adapters and the head trained"}


def _adaptation(options: dict) -> str:
    if options.get("train_last_blocks"):
        return f"the last {options['train_last_blocks']} blocks and what follows them trained"
    return FINETUNE.get(options.get("adaptation"), str(options.get("adaptation") or ""))


def subtitle(run: Run) -> str:
    """Model, adaptation and date, as far as they are known."""
    model, options = as_dict(run.facts.get("model")), run.options
    parts = [str(model.get("arch") or options.get("model_arch") or options.get("model") or ""),
             _adaptation(options), str(run.facts.get("started") or "")[:10]]
    said = ", ".join(part for part in parts if part)
    counted = "; ".join(f"{split.name}: {split.images:,} images"
                        + (f" of {split.patients:,} patients" if split.patients else "")
                        for split in run.splits.values())
    return ". ".join(part for part in (said, counted) if part)


# ---- warnings ----------------------------------------------------------------------------------------------

def warnings_of(run: Run) -> list[tuple[str, list[str]]]:
    """[(what, examples)], the gravest first."""
    found = _leakage(run) + _weights(run) + _absent(run)
    if run.skipped:
        found.append((f"{_number_of_images(len(run.skipped))} could not be read and had to be left out.",
                      [f"{path}: {reason}" for path, reason in run.skipped[:EXAMPLES]]
                      + _more(len(run.skipped))))
    notes = as_dict(run.facts.get("data")).get("notes")
    if isinstance(notes, list) and notes:
        found.append((NOTES, [str(note) for note in notes]))
    lines = undefined(run)
    if lines:
        found.append(("Some metrics are undefined in some resamples, which their intervals leave out: too "
                      "few images of a class.", lines))
    return found


def _number_of_images(number: int) -> str:
    return "1 image" if number == 1 else f"{number:,} images"


def _more(number: int) -> list[str]:
    return [f"and {number - EXAMPLES:,} more"] if number > EXAMPLES else []


def _leakage(run: Run) -> list[tuple[str, list[str]]]:
    if run.leakage is None:
        return []
    findings = [finding for finding in run.leakage.get("findings") or [] if isinstance(finding, dict)]
    counts, found = as_dict(run.leakage.get("counts")), []
    kinds = dict.fromkeys([*KINDS, *(str(kind) for kind in counts), *(str(f.get("kind")) for f in findings)])
    for kind in kinds:
        own = [finding for finding in findings if finding.get("kind") == kind]
        number = counts.get(kind) if isinstance(counts.get(kind), int) else len(own)
        if number:
            what = KINDS.get(kind, kind)
            often = "once" if number == 1 else f"{number:,} times"
            found.append((f"Leakage: {what} in two splits, {often}. Metrics on those images are too good.",
                          [_finding(finding) for finding in own[:EXAMPLES]] + _more(number)))
    unreadable = run.leakage.get("unreadable")
    if isinstance(unreadable, list) and unreadable:
        found.append((f"The check for leakage could not read {_number_of_images(len(unreadable))}.",
                      [str(path) for path in unreadable[:EXAMPLES]] + _more(len(unreadable))))
    return found


def _finding(finding: dict) -> str:
    splits = " and ".join(map(str, finding.get("splits") or []))
    if finding.get("patient") is not None:
        counts = ", ".join(f"{split} {number}" for split, number in as_dict(finding.get("counts")).items())
        return f"patient {finding['patient']}: {counts or splits}"
    similarity = finding.get("similarity")
    alike = f" (similarity {written(float(similarity))})" if isinstance(similarity, (int, float)) else ""
    return f"{splits}: {' and '.join(map(str, finding.get('paths') or []))}{alike}"


def _weights(run: Run) -> list[tuple[str, list[str]]]:
    if "weights" not in run.facts:
        return []
    weights = run.facts["weights"]
    if not isinstance(weights, dict):
        return [("Training started from random weights: no pre-trained ones were given (--finetune).", [])]
    used, expected = weights.get("used"), weights.get("expected")
    if isinstance(used, int) and isinstance(expected, int) and used < expected:
        return [(f"Only {used:,} of the {expected:,} tensors of the backbone came from the pre-trained "
                 "weights; the others started at random.", [str(weights.get("text") or "")])]
    return []


def _absent(run: Run) -> list[tuple[str, list[str]]]:
    found, counts = [], _images(run)
    if run.kind != "classification" or not counts:
        return []
    for split, by_class in counts.items():
        absent = [name for name in run.names if not by_class.get(name)]
        if absent and len(absent) < len(run.names):
            listed = ", ".join(absent[:10]) + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
            found.append((f"{split} has no image of {len(absent)} of the {len(run.names)} classes "
                          f"({listed}): means over the classes count them as 0 or leave them out.", []))
    return found


# ---- data --------------------------------------------------------------------------------------------------

def _images(run: Run) -> dict[str, dict[str, int]]:
    """{split: {class: images}}: of run.json, and for val and test of the predictions where there are any."""
    stored = as_dict(as_dict(run.facts.get("data")).get("images"))
    counts = {split: {str(name): number for name, number in by_class.items() if isinstance(number, int)}
              for split, by_class in stored.items() if isinstance(by_class, dict)}
    for split in run.splits.values():
        if split.table is not None and "true_class" in split.table:
            counts[split.name] = {str(k): int(n) for k, n in split.table["true_class"].value_counts().items()}
    return {split: counts[split] for split in ("train", "val", "test") if split in counts}


def _patients(run: Run) -> dict[str, dict[str, int]]:
    """{split: {class: patients}} where they are known; of train only where run.json says so."""
    stored = as_dict(as_dict(run.facts.get("data")).get("patients"))
    counts = {split: by_class for split, by_class in stored.items() if isinstance(by_class, dict)}
    for split in run.splits.values():
        if split.patients and "true_class" in split.table:
            known = split.table[split.table["patient"] != ""]
            counts[split.name] = known.groupby("true_class")["patient"].nunique().to_dict() | {
                "": split.patients
            }
    return counts


@dataclass
class DataTable:
    """How many images each class or target has: rows and the last line are (name, [(number, what is below
    it)])."""

    caption: str
    first: str
    splits: list[str]
    rows: list[tuple[str, list[tuple[str, str]]]]


def data_table(run: Run) -> DataTable | None:
    """A column a split; None where nothing is known of the classes."""
    return _classes(run) if run.kind == "classification" else _targets(run)


def _classes(run: Run) -> DataTable | None:
    images, patients = _images(run), _patients(run)
    if not images:
        return None

    def cell(split: str, name: str, number: int) -> tuple[str, str]:
        return f"{number:,}", _of_patients(patients.get(split, {}).get(name))

    rows = [(name, [cell(split, name, images[split].get(name, 0)) for split in images]) for name in run.names]
    last = [cell(split, "", sum(images[split].values())) for split in images]
    return DataTable("Images of each class and split", "Class", list(images), [*rows, ("All", last)])


def _targets(run: Run) -> DataTable:
    stored = as_dict(as_dict(run.facts.get("data")).get("images"))
    counts = {split: number for split, number in stored.items() if isinstance(number, int)}
    counts |= {split.name: split.images for split in run.splits.values() if split.images}
    splits = [split for split in ("train", "val", "test") if split in counts]
    tables = {split.name: split.table for split in run.splits.values() if split.table is not None}

    def cell(split: str, name: str) -> tuple[str, str]:
        if split not in tables:
            return "–", ""
        values = tables[split][f"true_{name}"].dropna()
        return f"{len(values):,}", _spread(values)

    known = {split.name: split.patients for split in run.splits.values()}
    last = [(f"{counts[split]:,}", _of_patients(known.get(split))) for split in splits]
    return DataTable("Images with a known value, with its mean and standard deviation", "Target", splits,
                     [*((name, [cell(split, name) for split in splits]) for name in run.names),
                      ("All", last)])


def _of_patients(number: int | None) -> str:
    return f"{number:,} patients" if number else ""


def _spread(values: pd.Series) -> str:
    return f"{written(float(values.mean()))} ± {written(float(values.std()))}" if len(values) > 1 else ""


# ---- what was run ------------------------------------------------------------------------------------------

def facts_of(run: Run) -> list[tuple[str, str]]:
    """[(term, text)] of run.json, as far as it says."""
    facts, options, model = run.facts, run.options, as_dict(run.facts.get("model"))
    counts = [
        f"{model[key]:,} {word}"
        for key, word in (("parameters", "parameters"), ("trained", "of them trained"))
        if isinstance(model.get(key), int)
    ]
    size = f"input {options['input_size']} pixels" if options.get("input_size") else ""
    weights = facts.get("weights")
    rows = [("Model", ", ".join(part for part in (str(options.get("model") or ""),
                                                  str(model.get("arch") or ""), *counts, size)
                                if part)),
            ("Weights", _weights_text(weights) if "weights" in facts else ""),
            ("Normalisation", _normalisation(as_dict(facts.get("normalisation")))),
            ("Adaptation", _adaptation(options)),
            ("Training", _training(run)),
            ("Chosen by", _chosen_by(str(options.get("select_metric") or ""))),
            ("Device", ", ".join(part for part in (
                str(facts.get("device") or ""),
                f"{facts['processes']} processes" if (facts.get("processes") or 1) != 1 else "",
                f"precision {facts['precision']}" if facts.get("precision") else "") if part)),
            ("Started", _when(facts)),
            ("Code", f"commit {facts['commit']}".replace("+", " with uncommitted changes")
             if facts.get("commit") else ""),
            ("Versions", ", ".join(f"{name} {version}"
                                   for name, version in as_dict(facts.get("versions")).items())),
            ("Data", f"fingerprint {as_dict(facts.get('data')).get('fingerprint')}"
             if as_dict(facts.get("data")).get("fingerprint") else "")]
    return [(term, text) for term, text in rows if text] or [("run.json", "is not there or says nothing")]


def _weights_text(weights) -> str:
    if not isinstance(weights, dict):
        return "none: random ones"
    known = isinstance(weights.get("used"), int) and isinstance(weights.get("expected"), int)
    used = f"{weights['used']:,} of {weights['expected']:,} tensors used" if known else ""
    digest = f"sha256 {weights['sha256']}" if weights.get("sha256") else ""
    return ", ".join(part for part in (str(weights.get("name") or weights.get("path") or ""), used, digest)
                     if part)


def _normalisation(said: dict) -> str:
    values = [said.get("mean"), said.get("std")]
    if not all(isinstance(value, list) and all(isinstance(number, int | float) for number in value)
               for value in values):
        return ""
    return f"{mean_and_deviation(*values)} ({said.get('source')})"


def _training(run: Run) -> str:
    options, facts = run.options, run.facts
    parts = [f"{options['epochs']} epochs" if options.get("epochs") else "",
             f"{facts['steps_an_epoch']} steps each" if facts.get("steps_an_epoch") else "",
             f"effective batch {facts['effective_batch']}" if facts.get("effective_batch") else "",
             f"learning rate {facts['learning_rate']:.3g}"
             if isinstance(facts.get("learning_rate"), float) else "",
             f"seed {options['seed']}" if "seed" in options else "",
             f"best epoch {run.best_epoch}" if run.best_epoch is not None else ""]
    return ", ".join(part for part in parts if part)


def _chosen_by(metric: str) -> str:
    parts = metric.split("+")
    if len(parts) > 1:
        return f"the mean of {', '.join(parts)} on val" + (
            " (those of which less is better with their sign "
            "turned)" if any(map(is_better_low, parts)) else "")
    return f"the {'lowest' if is_better_low(metric) else 'highest'} {metric} on val" if metric else ""


def _when(facts: dict) -> str:
    resumed = facts.get("resumed") if isinstance(facts.get("resumed"), list) else []
    text = str(facts.get("started") or "")
    for again in resumed:
        text += f"; resumed at epoch {as_dict(again).get('epoch')} on {as_dict(again).get('started')}"
    return text
