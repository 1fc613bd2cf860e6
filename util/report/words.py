"""What a report says in words: what was run, on which data, and what a reader should be warned of."""

from collections.abc import Sequence

from util.core.plain_numbers import mean_and_deviation
from util.data.splits import in_order
from util.metrics.table import CLASSIFICATION, MULTILABEL, REGRESSION, is_better_low
from util.report.metric_tables import undefined, written
from util.report.run_data import Run, as_dict

EXAMPLES = 4  # of each kind of finding
KINDS = {"same bytes": "the very same file", "same pixels": "the same image in another file",
         "near duplicate": "nearly the same image", "same patient": "images of one patient"}
NOTES = "From reading the data:"
FINETUNE = {"finetune": "all weights trained", "lp": "linear probe: the head alone trained",
            "lora": "LoRA: adapters and the head trained"}


def _adaptation(options: dict) -> str:
    if options.get("train_last_blocks"):
        return f"the last {options['train_last_blocks']} blocks and what follows them trained"
    return FINETUNE.get(options.get("adaptation"), str(options.get("adaptation") or ""))


def subtitle(run: Run) -> str:
    """Model, adaptation and date, as far as they are known."""
    options = run.options
    said = _joined(run.part("model").get("arch") or options.get("model_arch") or options.get("model"),
                   _adaptation(options), str(run.facts.get("started") or "")[:10])
    counted = "; ".join(f"{split.name}: {split.images:,} {split.unit}"
                        + (f" of {split.patients:,} patients" if split.patients else "")
                        for split in run.splits.values())
    return ". ".join(filter(None, (said, counted)))


def _joined(*parts: object) -> str:
    return ", ".join(str(part) for part in parts if part)


# ---- warnings ----------------------------------------------------------------------------------------------

def warnings_of(run: Run) -> list[tuple[str, list[str]]]:
    """[(what, examples)], the gravest first."""
    found = _leakage(run) + _weights(run) + _absent(run)
    if run.skipped:
        found.append((f"{_number_of_images(run.skipped)} could not be read and had to be left out.",
                      _first([f"{path}: {reason}" for path, reason in run.skipped])))
    notes = run.part("data").get("notes")
    if isinstance(notes, list) and notes:
        found.append((NOTES, [str(note) for note in notes]))
    lines = undefined(run)
    if lines:
        what = "label" if run.kind == MULTILABEL else "class"
        found.append(("Some metrics are undefined in some resamples, which their intervals leave out: too "
                      f"few images of a {what}.", lines))
    return found


def _number_of_images(images: Sequence[object]) -> str:
    return "1 image" if len(images) == 1 else f"{len(images):,} images"


def _first(lines: list[str], number: int | None = None) -> list[str]:
    """The first of the lines, and how many more there are of the number of all."""
    more = (len(lines) if number is None else number) - EXAMPLES
    return lines[:EXAMPLES] + ([f"and {more:,} more"] if more > 0 else [])


def _leakage(run: Run) -> list[tuple[str, list[str]]]:
    if run.leakage is None:
        return []
    findings = [finding for finding in run.leakage.get("findings") or [] if isinstance(finding, dict)]
    counts, found = as_dict(run.leakage.get("counts")), []
    kinds = dict.fromkeys([*KINDS, *(str(kind) for kind in counts), *(str(f.get("kind")) for f in findings)])
    for kind in kinds:
        own = [finding for finding in findings if finding.get("kind") == kind]
        number = counts.get(kind) if isinstance(counts.get(kind), int) else len(own)
        often = "once" if number == 1 else f"{number:,} times"
        if number:
            found.append((f"Leakage: {KINDS.get(kind, kind)} in two splits, {often}. Metrics on those images "
                          "are too good.",
                          _first([_finding(finding) for finding in own], number)))
    unreadable = run.leakage.get("unreadable")
    if isinstance(unreadable, list) and unreadable:
        found.append((f"The check for leakage could not read {_number_of_images(unreadable)}.",
                      _first(list(map(str, unreadable)))))
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
    weights = run.facts.get("weights", {})
    if not isinstance(weights, dict):
        return [("Training started from random weights: no pre-trained ones were given (--finetune).", [])]
    used, expected = weights.get("used"), weights.get("expected")
    if isinstance(used, int) and isinstance(expected, int) and used < expected:
        return [(f"Only {used:,} of the {expected:,} tensors of the backbone came from the pre-trained "
                 "weights; the others started at random.", [str(weights.get("text") or "")])]
    return []


def _absent(run: Run) -> list[tuple[str, list[str]]]:
    found, counts = [], _images(run) if run.kind == CLASSIFICATION else {}
    for split, by_class in counts.items():
        absent = [name for name in run.names if not by_class.get(name)]
        if absent and len(absent) < len(run.names):
            listed = ", ".join(absent[:10]) + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
            found.append((f"{split} has no image of {len(absent)} of the {len(run.names)} classes "
                          f"({listed}): means over the classes count them as 0 or leave them out.", []))
    return found


# ---- data --------------------------------------------------------------------------------------------------

def _images(run: Run) -> dict[str, dict[str, int]]:
    """{split: {class: images or cases}}: of run.json, and for val and test of the predictions where there are
    any."""
    stored = as_dict(run.part("data").get(run.main.unit))
    counts = {split: {str(name): number for name, number in by_class.items() if isinstance(number, int)}
              for split, by_class in stored.items() if isinstance(by_class, dict)}
    for split in run.splits.values():
        if split.table is not None and "true_class" in split.table:
            counts[split.name] = {str(k): int(n) for k, n in split.table["true_class"].value_counts().items()}
    return {split: counts[split] for split in in_order(counts, _external(run))}


def _external(run: Run) -> list[str]:
    return [split.name for split in run.splits.values() if split.is_external]


def _patients(run: Run) -> dict[str, dict[str, int]]:
    """{split: {class: patients}} where they are known; of train only where run.json says so."""
    stored = as_dict(run.part("data").get("patients"))
    counts = {split: by_class for split, by_class in stored.items() if isinstance(by_class, dict)}
    for split in run.splits.values():
        if split.patients and "true_class" in split.table:
            known = split.table[split.table["patient"] != ""]
            by_class = known.groupby("true_class")["patient"].nunique().to_dict()
            counts[split.name] = by_class | {"": split.patients}
    return counts


def data_table(run: Run) -> dict[str, object] | None:
    """How many images each class, label or target has, a column a split; None where nothing is known of them.
    rows, of which the last is of all: (name, [(number, what is below it)])."""
    return {CLASSIFICATION: _classes, MULTILABEL: _labels, REGRESSION: _targets}[run.kind](run)


def _classes(run: Run) -> dict[str, object] | None:
    images, patients = _images(run), _patients(run)
    if not images:
        return None
    rows = [(name, [_images_and_patients(by_class.get(name, 0), patients.get(split, {}).get(name))
                    for split, by_class in images.items()]) for name in run.names]
    last = [_images_and_patients(sum(by_class.values()), patients.get(split, {}).get(""))
            for split, by_class in images.items()]
    return {"caption": f"{run.main.unit.capitalize()} of each class and split", "first": "Class",
            "splits": list(images),
            "rows": [*rows, ("All", last)]}


def _labels(run: Run) -> dict[str, object] | None:
    """Images with each label, and below how many are known not to have it."""
    counts, patients = _number_of_split(run)
    stored = {split: as_dict(by_label)
              for split, by_label in as_dict(run.part("data").get("positives")).items()}
    for split in run.splits.values():
        if split.table is not None:
            stored[split.name] = {name: [int((split.table[f"true_{name}"] == kind).sum()) for kind in (1, 0)]
                                  for name in run.names}
    if not counts:
        return None
    splits = in_order(counts, _external(run))
    rows = [(name, [_with_and_without(stored.get(split, {}).get(name)) for split in splits])
            for name in run.names]
    last = [_images_and_patients(counts[split], patients.get(split)) for split in splits]
    return {"caption": f"{run.main.unit.capitalize()} with each label, and without it", "first": "Label",
            "splits": splits,
            "rows": [*rows, ("All", last)]}


def _with_and_without(counts: object) -> tuple[str, str]:
    if not (isinstance(counts, list) and len(counts) == 2 and all(isinstance(one, int) for one in counts)):
        return "–", ""
    return f"{counts[0]:,}", f"{counts[1]:,} without"


def _number_of_split(run: Run) -> tuple[dict[str, int], dict[str, int]]:
    """{split: images} where run.json has no classes; {split: patients} where they are known."""
    stored = as_dict(run.part("data").get(run.main.unit))
    counts = {split: number for split, number in stored.items() if isinstance(number, int)}
    counts |= {split.name: split.images for split in run.splits.values() if split.images}
    return counts, {split.name: split.patients for split in run.splits.values()}


def _targets(run: Run) -> dict[str, object]:
    counts, known = _number_of_split(run)
    splits = in_order(counts, _external(run))
    rows = [(name, [_known_values(run, split, name) for split in splits]) for name in run.names]
    last = [_images_and_patients(counts[split], known.get(split)) for split in splits]
    unit = run.main.unit.capitalize()
    return {"caption": f"{unit} with a known value, with its mean and standard deviation", "first": "Target",
            "splits": splits, "rows": [*rows, ("All", last)]}


def _images_and_patients(images: int, patients: int | None) -> tuple[str, str]:
    return f"{images:,}", f"{patients:,} patients" if patients else ""


def _known_values(run: Run, split: str, target: str) -> tuple[str, str]:
    if split not in run.splits or run.splits[split].table is None:
        return "–", ""
    values = run.splits[split].table[f"true_{target}"].dropna()
    spread = f"{written(float(values.mean()))} ± {written(float(values.std()))}" if len(values) > 1 else ""
    return f"{len(values):,}", spread


# ---- what was run ------------------------------------------------------------------------------------------

def facts_of(run: Run) -> list[tuple[str, str]]:
    """[(term, text)] of run.json, as far as it says."""
    facts, options, model, data = run.facts, run.options, run.part("model"), run.part("data")
    counts = [f"{model[key]:,} {word}"
              for key, word in (("parameters", "parameters"), ("trained", "of them trained"))
              if isinstance(model.get(key), int)]
    size = f"input {options['input_size']} pixels" if options.get("input_size") else ""
    several = f"{facts['processes']} processes" if (facts.get("processes") or 1) != 1 else ""
    precision = f"precision {facts['precision']}" if facts.get("precision") else ""
    commit = str(facts.get("commit") or "").replace("+", " with uncommitted changes")
    rows = {"Model": _joined(options.get("model"), model.get("arch"), *counts, size),
            "Weights": _weights_text(facts["weights"]) if "weights" in facts else "",
            "Normalisation": _normalisation(run.part("normalisation")),
            "Adaptation": _adaptation(options),
            "Training": _training(run),
            "Settings": f"found by a search: {options['params']}" if options.get("params") else "",
            "Covariates": _covariates(data),
            "Chosen by": _chosen_by(str(options.get("select_metric") or "")),
            "Device": _joined(facts.get("device"), several, precision),
            "Started": _when(facts),
            "Code": f"commit {commit}" if commit else "",
            "Versions": _joined(*(f"{name} {version}" for name, version in run.part("versions").items())),
            "Data": f"fingerprint {data['fingerprint']}" if data.get("fingerprint") else ""}
    return [row for row in rows.items() if row[1]] or [("run.json", "is not there or says nothing")]


def _weights_text(weights: object) -> str:
    if not isinstance(weights, dict):
        return "none: random ones"
    known = isinstance(weights.get("used"), int) and isinstance(weights.get("expected"), int)
    used = f"{weights['used']:,} of {weights['expected']:,} tensors used" if known else ""
    digest = f"sha256 {weights['sha256']}" if weights.get("sha256") else ""
    return _joined(weights.get("name") or weights.get("path"), used, digest)


def _normalisation(said: dict) -> str:
    values = [said.get("mean"), said.get("std")]
    is_known = all(isinstance(value, list) and all(isinstance(number, int | float) for number in value)
                   for value in values)
    return f"{mean_and_deviation(*values)} ({said.get('source')})" if is_known else ""


def _training(run: Run) -> str:
    options, facts, rate = run.options, run.facts, run.facts.get("learning_rate")
    return _joined(f"{options['epochs']} epochs" if options.get("epochs") else "",
                   f"{facts['steps_an_epoch']} steps each" if facts.get("steps_an_epoch") else "",
                   f"effective batch {facts['effective_batch']}" if facts.get("effective_batch") else "",
                   f"learning rate {rate:.3g}" if isinstance(rate, float) else "",
                   f"seed {options['seed']}" if "seed" in options else "",
                   f"best epoch {run.best_epoch}" if run.best_epoch is not None else "")


def _covariates(data: dict) -> str:
    """What the head reads beside the image, and the values of names."""
    said = []
    for one in map(as_dict, data.get("covariates") or []):
        levels = ", ".join(map(str, one.get("levels") or []))
        said.append(f"{one.get('name')} ({levels or 'number'})")
    return "; ".join(said)


def _chosen_by(metric: str) -> str:
    parts = metric.split("+")
    if len(parts) == 1:
        return f"the {'lowest' if is_better_low(metric) else 'highest'} {metric} on val" if metric else ""
    turned = " (those of which less is better with their sign turned)"
    return f"the mean of {', '.join(parts)} on val" + (turned if any(map(is_better_low, parts)) else "")


def _when(facts: dict) -> str:
    resumed = facts.get("resumed") if isinstance(facts.get("resumed"), list) else []
    return "; ".join([str(facts.get("started") or ""),
                      *(f"resumed at epoch {as_dict(again).get('epoch')} on {as_dict(again).get('started')}"
                        for again in resumed)])
