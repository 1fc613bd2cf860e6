"""Apply a trained checkpoint to images without labels: classes with probabilities, numbers, heat maps.

A folder with images at any depth, on a laptop's CPU as on a GPU:
    python predict.py --resume output_dir/NAME/checkpoint-best.pth --input DIR --output predictions.csv
A CSV (its other columns are kept; a regression with covariates needs it), on four GPUs:
    torchrun --nproc_per_node=4 predict.py --resume output_dir/NAME/checkpoint-best.pth --input patients.csv \
        --path_col image --output predictions.csv
With a map of where the model looked for each image:
    python predict.py --resume output_dir/NAME/checkpoint-best.pth --input DIR --output predictions.csv \
        --heatmaps maps
A start that was cut goes on when it is started again. Exit codes: 0 done, 2 wrong input (one line), 1 a
failed run.
"""


from util.core.ending import exit_code_of, exit_with
from util.options import inference
from util.options.flag import PREDICT
from util.options.parsing import parse


def main(argv: list[str] | None = None) -> int:
    options = parse(PREDICT, __doc__, argv)
    inference.check_output(options.use.output, (".csv",), options.use.input)

    from jobs.predictions import predict  # torch and timm take seconds to import: --help does not wait
    from util.parallel.processes import process_group

    with process_group(options.run.device, options.processes.dist_url,
                       options.processes.dist_on_itp) as world:
        world.say(*filter(None, [world.note]))
        predict(options, world)
    return 0


if __name__ == "__main__":
    exit_with(exit_code_of(main))
