"""Fine-tune or probe a pre-trained vision transformer on retinal images, then score it.

On a laptop's CPU, with the demo's images (sh train.sh does this):
    python main_finetune.py --model timm --model_arch efficientvit_m0 --input_size 128 --data_path demo_data
On one GPU or several of a machine:
    torchrun --nproc_per_node=1 main_finetune.py --model RETFound_dinov2 --finetune RETFound_dinov2_meh \
        --batch_size 24 --epochs 50 --nb_classes 5 --data_path DIR --task NAME --adaptation finetune
A search for good settings, then the final run with what it found:
    python main_finetune.py --csv_file data/dr.csv --optuna_trials 20 --optuna_epochs 10 --task S
    python main_finetune.py --csv_file data/dr.csv --params output_dir/S/optuna_best.json --task F
Score a checkpoint:
    python main_finetune.py --model RETFound_dinov2 --nb_classes 5 --data_path DIR --task NAME --eval \
        --resume output_dir/NAME/checkpoint-best.pth
Results: OUTPUT_DIR/TASK. Exit codes: 0 done, 2 wrong input (one line), 1 a failed run.
"""

from util.core.ending import exit_code_of, exit_with
from util.options import checks
from util.options.flag import FINETUNE
from util.options.parsing import parse


def main(argv: list[str] | None = None, **defaults: str) -> int:
    """defaults: other ones of flags, of another name of this program."""
    options, lines = checks.checked(parse(FINETUNE, __doc__, argv, defaults))

    # torch and timm take seconds to import: --help does not wait
    from jobs.folds import run_folds
    from jobs.tasks.classification import Classification
    from jobs.tasks.multilabel import Multilabel
    from util.parallel.processes import process_group

    with process_group(options.run.device, options.processes.dist_url,
                       options.processes.dist_on_itp) as world:
        world.say(*checks.without_effect(options), *lines, *filter(None, [world.note]))
        if options.search.optuna_trials:
            from jobs.search import search

            search(options, world, Classification, Multilabel)
        else:
            for one in checks.one_run_a_ratio(options):
                run_folds(one, world, Classification, Multilabel)
    return 0


if __name__ == "__main__":
    exit_with(exit_code_of(main))
