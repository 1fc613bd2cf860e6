"""One feature vector an image, of a backbone or a trained checkpoint: for one's own statistics and plots.

A folder with images at any depth, RETFound's weights, on one GPU or a CPU:
    python latent_feature.py --model RETFound_mae --finetune RETFound_mae_natureCFP --input DIR \
        --output features.npz
A CSV, on four GPUs, as a table (pip install -r requirements-parquet.txt):
    torchrun --nproc_per_node=4 latent_feature.py --model RETFound_dinov2 --finetune RETFound_dinov2_meh \
        --input patients.csv --path_col image --output features.parquet
The backbone of a fine-tuned checkpoint:
    python latent_feature.py --resume output_dir/NAME/checkpoint-best.pth --input DIR --output features.npz
Read them with numpy:
    file = numpy.load("features.npz"); file["paths"], file["pooled"]; json.loads(str(file["facts"]))
paths (N,), and float32 (N, D): cls, the class token after the last norm; patch_mean, the mean of the patch
tokens (or of the last feature map); pooled, what a classifier's head reads. A start that was cut goes on when
it is started again.
Exit codes: 0 done, 2 wrong input (one line), 1 a failed run.
"""


from util.core.ending import exit_code_of, exit_with
from util.options import inference
from util.options.flag import FEATURES
from util.options.parsing import parse


def main(argv: list[str] | None = None) -> int:
    options = parse(FEATURES, __doc__, argv)
    inference.check_weights(options)
    inference.check_output(options.use.output, (".npz", ".parquet"), options.use.input)

    from jobs.feature_vectors import extract  # torch and timm take seconds to import: --help does not wait
    from util.parallel.processes import process_group

    with process_group(options.run.device, options.processes.dist_url,
                       options.processes.dist_on_itp) as world:
        world.say(*filter(None, [world.note]))
        extract(options, world)
    return 0


if __name__ == "__main__":
    exit_with(exit_code_of(main))
