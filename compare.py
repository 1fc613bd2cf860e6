"""Compare runs on the same test images, or train the runs of a study and compare them.

Runs that were trained already; those that differ in their seed alone are one group:
    python compare.py output_dir/A_seed0 output_dir/A_seed1 output_dir/B_seed0 --metric roc_auc f1 \
        --output comparison
A study, backbones x adaptations x shares of the training images x seeds; the same command again goes on with
it:
    python compare.py --run examples/grid.yaml --dry_run
    python compare.py --run examples/grid.yaml --nproc 4
    python compare.py --run examples/grid.yaml --nproc 4 --slurm time=1440 partition=gpu gpus_per_node=4
Written: comparison.csv, comparison_tests.csv, comparison_joint.csv, comparison.md, comparison.png. Exit
codes: 0 done, 2 wrong input (one line), 1 where a run of the study failed (the others are run and compared
all the same), 99 asked to end, 130 interrupted.
"""

import sys
from argparse import ArgumentTypeError, Namespace
from functools import partial
from pathlib import Path

from util.core.ending import exit_code_of
from util.core.errors import InputError, RunError, reject_if
from util.data.splits import is_test
from util.options.flag import REGRESSION, Flag, count, seed_number
from util.options.groups import Options
from util.options.parsing import OneLineParser


def scored_split(text: str) -> str:
    if text != "val" and not is_test(text):
        raise ArgumentTypeError(f"{text} is no split that is scored: test, test_NAME or val")
    return text


DEFAULT_OUTPUT = "./output_dir/comparison"
OF_A_STUDY = ("nproc", "slurm", "dry_run")
FLAGS = {
    "comparison": (
        Flag(name="metric", words="+", metavar="NAME",
             help="metrics to compare, by their names in metrics_test.json, after the folders; not set: "
                  "roc_auc average_precision f1, or r2 pearson mae of a regression"),
        Flag(name="split", read=scored_split, default="test", metavar="SPLIT",
             help="whose predictions are compared: test, test_NAME of a further test set, or val (which "
                  "chose the best epoch, so its metrics are too good)"),
        Flag(name="output", metavar="DIR",
             help=f"folder for the tables and the chart; not set: {DEFAULT_OUTPUT}, or the study's own "
                  "folder with --run"),
        Flag(name="names", words="+", metavar="NAME",
             help="names of the groups, in the order of their first runs; not set: folders or options"),
        Flag(name="draws", read=count, default=2000, help="resamples of the bootstrap"),
        Flag(name="seed", read=seed_number, default=0, help="seed of the resamples")),
    "study": (
        Flag(name="run", metavar="GRID.yaml",
             help="a study's YAML file, such as examples/grid.yaml: train its runs first; finished ones are "
                  "skipped"),
        Flag(name="nproc", read=count,
             help="processes (GPUs of this machine) that train a run of the study; not set: 1"),
        Flag(name="slurm", words="+", metavar="KEY=VALUE",
             help="submit the study's runs to Slurm, one job each, and wait for them; parameters of "
                  "submitit, such as time=1440 (minutes) partition=gpu gpus_per_node=4"),
        Flag(name="dry_run", default=False, help="list the study's runs and their commands, then stop"))}


def make_parser() -> OneLineParser:
    parser = OneLineParser(prog="compare.py", description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders of runs, OUTPUT_DIR/TASK")
    for heading, flags in FLAGS.items():
        group = parser.add_argument_group(heading)
        for flag in flags:
            flag.add_to(group.add_argument)
    return parser


def main(argv: list[str] | None = None) -> int:
    options = make_parser().parse_args(argv)
    if options.run is not None:
        return study(options)
    idle = [f"--{name}" for name in OF_A_STUDY if getattr(options, name)]
    folders = [name for name in options.metric or () if Path(name).is_dir()]
    reject_if(
        (idle, f"{' and '.join(idle)} belong to a study: name its grid with --run"),
        (not options.runs, "no run is named: pass the folders of runs, or a study's grid with --run"),
        (folders, f"--metric {' '.join(folders[:1])} is a folder: name the runs before --metric"))
    compare_folders(options, options.runs, Path(options.output or DEFAULT_OUTPUT))
    return 0


def study(options: Namespace) -> int:
    """Run what is missing of a grid, then compare what is there -> exit code."""
    from util.study import grid_file, slurm
    from util.study import runs as sweep

    reject_if((options.runs, "--run names a study and the folders its own runs: pass one of the two"),
              (options.names, "--names is for folders: a study's groups are called as its grid says"))
    processes = options.nproc or 1
    jobs = None if options.slurm is None else slurm.read_parameters(options.slurm)
    grid = grid_file.read_grid(options.run)
    if options.dry_run:
        found = sweep.states(grid, canonical)
        submitted = [] if jobs is None else slurm.would_submit(grid, found, jobs)
        print(*sweep.listing(grid, found, processes), *submitted, sep="\n")
        return 0
    run = sweep.run if jobs is None else partial(slurm.run, parameters=jobs)
    outcome = run(grid, processes, canonical)
    done = {str(cell.folder): cell.group for cell in grid.cells if cell.name not in outcome.failed}
    if done and not outcome.stopped_by:
        compare_folders(options, list(done), Path(options.output or grid.folder), done)
    return outcome.exit_code


def canonical(options: Options) -> Options:
    """With a model's name as a run stores it. torch and timm take seconds to import: called where a spelling
    is another one."""
    import models_vit
    from jobs.tasks.regression import resolve_names

    if options.program == REGRESSION:
        options = resolve_names(options)
    backbone = models_vit.find_backbone(options.model.model, options.model.model_arch)
    return options.having(model=backbone.model, model_arch=backbone.arch)


def compare_folders(options: Namespace, folders: list[str], output: Path,
                    labels: dict[str, str] | None = None) -> None:
    """Read, compare, print, write. labels: {folder: name of its group}. InputError: see
    util/study/comparison_runs.py."""
    from tqdm import tqdm

    from util.core.run_files import write_whole
    from util.study import comparison, comparison_chart, comparison_runs, comparison_text

    runs = comparison_runs.read_runs(folders, options.split)
    for run in runs:
        run.label = (labels or {}).get(str(run.folder), "")
    notes = comparison_runs.align(runs)
    groups, more = comparison_runs.grouped(runs, options.names)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output} can't be made ({error.strerror}): name another "
                         "folder") from error
    with tqdm(total=len(runs), desc="resampling", unit="run", leave=False,
              disable=not sys.stderr.isatty()) as bar:
        found = comparison.compare(groups, options.metric, options.split, options.draws, options.seed,
                                   bar.update)
    found.notes[:0] = [*notes, *more]
    try:
        found.notes += comparison_chart.forest_figure(found, output / "comparison.png")
        tables = {"": comparison.groups_table(found),
                  "_tests": comparison.table_of_tests(found.tests, comparison.Test),
                  "_joint": comparison.table_of_tests(found.joint, comparison.JointTest)}
        for name, table in tables.items():
            write_whole(output / f"comparison{name}.csv", table.to_csv(index=False, lineterminator="\n"))
        write_whole(output / "comparison.md", comparison_text.markdown(found))
    except OSError as error:
        raise RunError(f"{output} can't be written ({error.strerror}): make room, or name another "
                       "folder") from error
    print(*comparison_text.terminal(found), sep="\n")
    print(f"written to {output}: comparison.csv, comparison_tests.csv, comparison_joint.csv, comparison.md, "
          "comparison.png")


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
