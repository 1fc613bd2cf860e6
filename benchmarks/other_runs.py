"""A run that is not this program's, written as a run's folder, so that compare.py takes it beside ours."""

import json
from pathlib import Path

import pandas as pd

from jobs.run_folder import commit, now, versions
from util.core.run_files import write_metrics_json, write_predictions, write_whole
from util.data.tables import Data, fingerprint
from util.metrics.intervals import classification_intervals


def write_run(folder: Path, data: Data, options: dict, predictions: dict[str, pd.DataFrame],
              **facts: object) -> None:
    """The files that compare.py reads; run.json last: where it is, the run is whole.

    options: what tells the run from others, under the names of main_finetune.py's flags where they mean the
    same; `adaptation` is the method. predictions: {split: predictions table}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split, table in predictions.items():
        write_predictions(table, folder / f"predictions_{split}.csv")
        write_metrics_json(folder / f"metrics_{split}.json", classification_intervals(table, options["seed"]))
    content = {"written": now(), "options": options, "versions": versions(), "commit": commit(),
               "data": {"fingerprint": fingerprint(data.table), "class_names": data.class_names}, **facts}
    write_whole(folder / "run.json", json.dumps(content, indent=2) + "\n")
