"""Apply a trained checkpoint to images without labels: classes with probabilities, or numbers; heat maps where asked for.

A folder with pictures at any depth, on a laptop's CPU as on a GPU:
    python predict.py --resume output_dir/NAME/checkpoint-best.pth --input DIR --output predictions.csv
A CSV (its other columns are kept; a regression with covariates needs it), on four GPUs:
    torchrun --nproc_per_node=4 predict.py --resume output_dir/NAME/checkpoint-best.pth --input patients.csv \
        --path_col image --output predictions.csv
With a map of where the model looked for each picture:
    python predict.py --resume output_dir/NAME/checkpoint-best.pth --input DIR --output predictions.csv --heatmaps maps
A start that was cut goes on when it is started again. Exit codes: 0 done, 2 wrong input (one line), 1 a failed run.
"""

import sys

from util.core.ending import exit_code_of
from util.options import flags
from util.options import inference as own


def make_parser() -> flags.OneLineParser:
    parser = own.parser_of("predict.py", __doc__)
    group = parser.add_argument_group("checkpoint, images and result")
    group.add_argument("--resume", required=True, metavar="CKPT",
                       help="the checkpoint: of main_finetune.py, main_regression.py or the original scripts")
    own.add_picture_flags(group)
    group.add_argument("--output", required=True, metavar="FILE.csv", help="where the predictions are written, FILE.csv")
    group.add_argument("--class_names", nargs="+", default=None, metavar="NAME",
                       help="classes in order, for a checkpoint of the original scripts, which does not name them; not "
                            "set: 0, 1, …")
    own.add_heatmap_flags(parser)
    flags.add_model_flags(parser, title=own.FOREIGN, leave_out=own.NOT_FOR_USE)
    own.add_machine_flags(parser, "as the checkpoint was trained")
    return parser


def main(argv: list[str] | None = None) -> int:
    parsed = flags.parse(make_parser(), argv)
    options = parsed.options
    own.check_output(options.output, (".csv",), options.input)

    from jobs.predictions import predict  # torch and timm take seconds to import: --help does not wait
    from util.parallel.processes import process_group

    with process_group(options.device, options.dist_url, options.dist_on_itp) as world:
        world.say(*filter(None, [world.note]))
        predict(parsed, world)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
