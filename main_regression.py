"""Predict numbers from retinal images, and search for good settings with Optuna.

On a laptop's CPU, with the demo's images (sh search.sh does this):
    python main_regression.py --model timm --model_arch efficientvit_m0 --input_size 128 \
        --csv_file demo_data/demo.csv --targets vessel_width disc_radius lesion_area
On one GPU or several of a machine, RETFound's weights by default:
    torchrun --nproc_per_node=4 main_regression.py --csv_file data/retina.csv --targets tc ldl hdl --task NAME
A search, then the final run with what it found:
    torchrun --nproc_per_node=4 main_regression.py --csv_file data/retina.csv --optuna_trials 20 \
        --optuna_epochs 10 --task S
    torchrun --nproc_per_node=4 main_regression.py --csv_file data/retina.csv \
        --params output_dir/S/optuna_best.json --task F
Results: OUTPUT_DIR/TASK. Exit codes: 0 done, 2 wrong input (one line), 1 a failed run.
"""

from util.core.ending import exit_code_of, exit_with
from util.core.errors import InputError
from util.options import checks
from util.options.flag import REGRESSION
from util.options.parsing import parse


def main(argv: list[str] | None = None) -> int:
    options = parse(REGRESSION, __doc__, argv)
    if not options.data.csv_file and not options.run.resume:
        raise InputError("--csv_file is not given: name the CSV with the columns path, split and the targets")
    options, lines = checks.checked(options)

    # torch and timm take seconds to import: --help does not wait for them
    from jobs.folds import run_folds
    from jobs.tasks.regression import Regression, resolve_names
    from util.parallel.processes import process_group

    options = resolve_names(options)
    with process_group(options.run.device, options.processes.dist_url,
                       options.processes.dist_on_itp) as world:
        world.say(*checks.without_effect(options), *lines, *filter(None, [world.note]))
        if options.search.optuna_trials:
            from jobs.search import search

            search(options, world, Regression)
        else:
            for one in checks.one_run_a_ratio(options):
                run_folds(one, world, Regression)
    return 0


if __name__ == "__main__":
    exit_with(exit_code_of(main))
