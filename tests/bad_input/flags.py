"""Every flag of every program with what it does not take, and flags that contradict each other.

The parsers' own actions are gone through, so that a flag of tomorrow is covered today.
"""

import argparse
from collections.abc import Iterator

from tests.bad_input.place import MACHINE, MODEL, TRAINING, Place, predicting, train
from tests.bad_input.table import ACCEPTED, Row, Table

KIND = "Flags"
TABLE = Table()

NO_NUMBER = Row(
    KIND,
    "A number is expected and something else is given (`--epochs ten`, `--lr 0,001`)",
    "argument …: …",
    "write a number, with a point",
)
NOT_A_NUMBER = Row(
    KIND,
    "A number is `nan`, or below what makes sense",
    "…: …",
    "the line says what is taken",
    does="one line that names the flag and its range",
)
NO_CHOICE = Row(
    KIND,
    "A word is none of those that a flag takes",
    "argument …: invalid choice: … (choose from …)",
    "take one of those that the line lists",
)
NO_VALUE = Row(
    KIND,
    "A flag lacks its value, or has too many",
    "…",
    "give it as many as the help shows (`--help`)",
    does="one line that names the flag and how many values it takes",
)
UNKNOWN = Row(
    KIND, "A flag is misspelt or unknown", "unrecognized arguments: …", "the line names the nearest one"
)
CONTRADICTION = Row(
    KIND,
    "Two flags contradict each other",
    "…",
    "leave out one of the two that the line names",
    does="one line that names both flags",
)
MODEL_FLAGS = Row(
    KIND,
    "The model, its architecture, its input size or its augmentation does not exist or does not fit",
    "…",
    "take what the line proposes",
    does="one line that names the flag and what would fit: sizes, architectures, words",
)
FOLDS = Row(
    KIND,
    "`--folds` is larger than the number of patients (else cases, else images) of train and val, or a class "
    "or label has so few that a fold's training images would have none",
    "--folds …: …",
    "fewer folds, or more images of that class",
    does="one line that says how many there are",
)
JOBS = Row(
    KIND,
    "--slurm is given something else than KEY=VALUE, a key twice, one that a run can't have, or no time "
    "limit",
    "--slurm…",
    "write it as the line shows",
    does="one line that names the word and shows an example",
)
MISSING = Row(
    KIND,
    "What a program needs is not given",
    "…",
    "add the flag that the line names",
    does="one line that names the flag",
)
OUTPUT = Row(
    KIND,
    "The results cannot be written where a flag says (a file in the way, a name too long, no right)",
    "…",
    "name another folder",
    does="one line that names the flag, the folder and the reason",
)
IDLE = Row(
    KIND,
    "A flag does nothing beside another, or in this program",
    "…",
    "nothing to do; leave it out",
    ACCEPTED,
    "trains, and says so in a line",
)

DATA_FREE = {
    "main_finetune.py": [*TRAINING, "--dry_run", "--data_path", "data"],
    "main_regression.py": [*TRAINING, "--dry_run", "--csv_file", "d.csv", "--finetune", ""],
    "predict.py": ["--resume", "c.pth", "--input", "pictures", "--output", "o.csv", *MACHINE],
    "latent_feature.py": [*MODEL, *MACHINE, "--random_weights", "--input", "pictures", "--output", "o.npz"],
    "compare.py": ["a", "b"],
    "util.prepare": ["PAPILA", "raw", "out"],
}
# Numbers that are taken below zero: of flags without an effect, which people's scripts pass along.
BELOW_ZERO = {
    "main_finetune.py": {"world_size", "local_rank"},
    "main_regression.py": {
        "world_size",
        "local_rank",
        "smoothing",
        "mixup",
        "cutmix",
        "cutmix_minmax",
        "mixup_prob",
        "mixup_switch_prob",
    },
}


def parser_of(program: str) -> argparse.ArgumentParser:
    import compare
    import latent_feature
    import main_finetune
    import main_regression
    import predict
    from util.data.public import prepare
    from util.options import parsing

    if program in ("compare.py", "util.prepare"):
        return {"compare.py": compare, "util.prepare": prepare}[program].make_parser()
    module = {
        "main_finetune.py": main_finetune,
        "main_regression.py": main_regression,
        "predict.py": predict,
        "latent_feature.py": latent_feature,
    }[program]
    return parsing.parser_of(program, module.__doc__)


def flags_of(program: str) -> Iterator[tuple[str, argparse.Action]]:
    """The flags that take a value."""
    for action in parser_of(program)._actions:
        if action.option_strings and action.nargs != 0 and "--help" not in action.option_strings:
            yield action.option_strings[0], action


def is_number(action: argparse.Action) -> bool:
    """Whether a flag takes numbers: its reader takes one, and no word."""
    if action.type in (int, float):
        return True
    if action.type is None:
        return False
    for text, taken in (("0.5", True), ("1", True), ("x", False)):
        try:
            action.type(text)
            if not taken:
                return False
        except (argparse.ArgumentTypeError, ValueError):
            if text == "1":
                return False
    return True


def spoken(action: argparse.Action, word) -> list:
    return [word] * (action.nargs if isinstance(action.nargs, int) else 1)


def refused(row: Row, program: str, flag: str, name: str, words: list, *says: str) -> None:
    TABLE.add(row, f"{program} {flag} {name}", lambda place: [*DATA_FREE[program], flag, *words], *says,
              program=program)


for program in DATA_FREE:
    for flag, action in flags_of(program):
        below_zero = action.dest in BELOW_ZERO.get(program, ())
        if is_number(action):
            for word in ("ten", "1,5", ""):
                if word != "1,5" or "ratio" not in flag:
                    refused(NO_NUMBER, program, flag, word or "empty", spoken(action, word), flag)
            if not below_zero:
                refused(NOT_A_NUMBER, program, flag, "nan", spoken(action, "nan"), flag)
                refused(NOT_A_NUMBER, program, flag, "-1", spoken(action, "-1"), flag)
        elif action.choices:
            refused(NO_CHOICE, program, flag, "none such", spoken(action, "none-such"), flag)
        if action.nargs != "?":
            TABLE.add(
                NO_VALUE,
                f"{program} {flag}",
                lambda place, program=program, flag=flag: [*DATA_FREE[program], flag],
                flag,
                program=program,
            )
    for word in ("--epohcs", "--no-such-flag", "-x"):
        TABLE.add(
            UNKNOWN,
            f"{program} {word}",
            lambda place, program=program, word=word: [*DATA_FREE[program], word, "1"],
            word,
            program=program,
        )

# ---- contradictions ----------------------------------------------------------------------------------------


def contradicts(row: Row, *words, says=(), program="main_finetune.py", **more) -> None:
    def make(place: Place):
        place.data()
        place.some_pictures()
        place.write(
            "d.csv", "\n".join(["path,split,depth",
                                *(f"{path},{split},{depth}" for path, _, split, depth in place.kit.rows)])
        )
        begin = {
            "main_finetune.py": train(place, "--data_path", "data"),
            "predict.py": predicting(place, "pictures"),
            "main_regression.py": train(
                place, "--csv_file", "d.csv", "--targets", "depth", "--finetune", "", "--head_depth", 1
            ),
            "latent_feature.py": DATA_FREE["latent_feature.py"],
            "compare.py": [],
        }[program]
        return [*begin, *(place.kit.best if word is BEST else word for word in words)]

    TABLE.add(row, f"{program} {' '.join(map(str, words))}", make, *says, program=program, **more)


BEST = "BEST"
REGRESSION, PREDICT, LATENT, COMPARE = "main_regression.py", "predict.py", "latent_feature.py", "compare.py"
contradicts(CONTRADICTION, "--csv_file", "d.csv", says=("--data_path and --csv_file",))
contradicts(
    CONTRADICTION, "--patient_col", "p", "--patient_regex", "(a)", says=("--patient_col and --patient_regex",)
)
contradicts(CONTRADICTION, "--multilabel", says=("--multilabel needs a CSV (--csv_file)",))
contradicts(CONTRADICTION, "--multilabel", "--balanced_sampling", says=("--balanced_sampling with --multilabel",))
contradicts(CONTRADICTION, "--multilabel", "--select_metric", "qwk",
            says=("--select_metric qwk is not defined with --multilabel",))
contradicts(CONTRADICTION, "--tta", "--adaptation", "lp", says=("--tta with --adaptation lp",))
contradicts(CONTRADICTION, "--min_lr", 1, says=("--min_lr 1 is above",))
contradicts(CONTRADICTION, "--crop_scale", 0.9, 0.1, says=("--crop_scale 0.9 0.1",))
contradicts(CONTRADICTION, "--crop_ratio", 2, 1, says=("--crop_ratio 2 1",))
contradicts(CONTRADICTION, "--crop_scale", 0.9, 1.1, says=("a crop takes at most 1",))
contradicts(CONTRADICTION, "--cutmix_minmax", 0.5, 0.1, says=("--cutmix_minmax",))
contradicts(CONTRADICTION, "--start_epoch", 5, says=("--start_epoch 5 leaves nothing",))
contradicts(CONTRADICTION, "--resume", "auto", "--eval", says=("needs --task",))
contradicts(CONTRADICTION, "--dataratio", "0.5,0.5", says=("names a share twice",))
contradicts(
    CONTRADICTION, "--model", "Dinov2", "--model_arch", "dinov3_vits16", says=("belongs to --model Dinov3",)
)
contradicts(CONTRADICTION, "--precision", "fp16", says=("needs a GPU",))
contradicts(
    CONTRADICTION,
    "--optuna_trials",
    2,
    "--eval",
    "--resume",
    "x",
    program=REGRESSION,
    says=("pass one of them",),
)
contradicts(CONTRADICTION, "--optuna_trials", 2, "--resume", "x", program=REGRESSION,
            says=("--optuna_resume",))
contradicts(CONTRADICTION, "--optuna_trials", 2, "--eval", "--resume", "x", says=("pass one of them",))
contradicts(CONTRADICTION, "--optuna_trials", 2, "--dataratio", "0.5,1", says=("name one share",))
contradicts(CONTRADICTION, "--optuna_trials", 2, "--select_metric", "ece", "--optuna_direction", "maximize",
            says=("--select_metric ece is to be minimized", "contradicts it"))
contradicts(CONTRADICTION, "--covariates", "age", "--cutmix", 1, says=("--covariates are not mixed",))
contradicts(CONTRADICTION, "--covariates", "age", says=("a folder has none", "--csv_file"))
contradicts(CONTRADICTION, "--use_class_weights", "--use_weighted_sampler",
            says=("--balanced_sampling (--use_weighted_sampler) and --class_weights",))
contradicts(
    CONTRADICTION,
    "--optuna_trials",
    2,
    "--optuna_metric",
    "mae",
    "--optuna_direction",
    "maximize",
    program=REGRESSION,
    says=("contradicts it",),
)
contradicts(
    CONTRADICTION,
    "--target_transform",
    "log",
    "none",
    program=REGRESSION,
    says=("--target_transform log none",),
)
contradicts(
    CONTRADICTION, "--head_num_heads", 7, program=REGRESSION, says=("--head_num_heads 7 does not divide",)
)
contradicts(CONTRADICTION, "--pretrained", "--finetune", "x", program=REGRESSION, says=("--pretrained",))
contradicts(
    CONTRADICTION,
    "--model",
    "resnet10t",
    "--model_arch",
    "test_vit",
    program=REGRESSION,
    says=("pass one of the two",),
)
contradicts(CONTRADICTION, "--class_names", "a", "a", program=PREDICT, says=("--class_names",))
contradicts(CONTRADICTION, "--heatmap_of", "moist", program=PREDICT, says=("--heatmap_of moist",))
contradicts(CONTRADICTION, "--resume", BEST, program=LATENT, says=("pass one of them",))
contradicts(CONTRADICTION, "--run", "x.yaml", "folder", program=COMPARE, says=("pass one of the two",))
contradicts(CONTRADICTION, "folder", "--nproc", 2, program=COMPARE, says=("--nproc",))
contradicts(JOBS, "--run", "x.yaml", "--slurm", "gpu", program=COMPARE, says=("--slurm gpu: not KEY=VALUE",))
contradicts(
    JOBS,
    "--run",
    "x.yaml",
    "--slurm",
    "time=9",
    "time=8",
    program=COMPARE,
    says=("--slurm gives time twice",),
)
contradicts(
    JOBS, "--run", "x.yaml", "--slurm", "time=1-00:00", program=COMPARE, says=("--slurm needs time=NUMBER",)
)
contradicts(
    JOBS, "--run", "x.yaml", "--slurm", "partition=gpu", program=COMPARE, says=("--slurm needs time=NUMBER",)
)
contradicts(
    JOBS, "--run", "x.yaml", "--slurm", "time=9", "nodes=2", program=COMPARE, says=("nodes can't be set",)
)
contradicts(CONTRADICTION, "folder", "--slurm", "time=9", program=COMPARE,
            says=("--slurm belong to a study",))
contradicts(MODEL_FLAGS, "--model", "RETFound_big", says=("RETFound_big",))
contradicts(
    MODEL_FLAGS,
    "--model",
    "",
)
contradicts(MODEL_FLAGS, "--model_arch", "test_vitt", says=("no model of timm",))
contradicts(MODEL_FLAGS, "--model_arch", "test_vit.unheard",
            says=("has no tag unheard of test_vit", "test_vit.r160_in1k"))
contradicts(MODEL_FLAGS, "--model_arch", "x" * 3000)
contradicts(MODEL_FLAGS, "--model_arch", "resnet10t.a1_in1k", says=("no tag a1_in1k", "resnet10t.c3_in1k"))
contradicts(MODEL_FLAGS, "--model_arch", "vit_tiny_patch16_224_in21k.augreg", says=("no tag augreg",))
contradicts(MODEL_FLAGS, "--model_arch", "crossvit_9_240", says=("--input_size 32", "what works is 240"))
contradicts(MODEL_FLAGS, "--model_arch", "halonet26t", "--input_size", 100, says=("what works is 256",))
contradicts(
    MODEL_FLAGS,
    "--model_arch",
    "maxvit_tiny_tf_224",
    "--input_size",
    100,
    says=("what works is 96 or 128 or 224",),
)
contradicts(MODEL_FLAGS, "--model_arch", "resnet10t.a1_in1k", program=REGRESSION, says=("resnet10t.c3_in1k",))
contradicts(MODEL_FLAGS, "--input_size", 33, says=("nearest sizes are 32 and 48",))
contradicts(MODEL_FLAGS, "--input_size", 1)
contradicts(MODEL_FLAGS, "--input_size", 10**7, says=("--input_size",))
contradicts(MODEL_FLAGS, "--aa", "rand-m9-oops", says=("--aa rand-m9-oops",))
contradicts(MODEL_FLAGS, "--aa", "x" * 999, says=("--aa",))
for wrong in (
    "ImageNet1k",
    "0.5,0.5,0.5",
    "0.5,0.5,0.5,0.5,0.5,0",
    "0.5,0.5,0.5,0.5,0.5,nan",
    "0.5 0.5 0.5 0.5 0.5 0.5",
):
    contradicts(MODEL_FLAGS, "--norm", wrong, says=("--norm", "six numbers"))
contradicts(MODEL_FLAGS, "--select_metric", "luck", says=("luck",))
contradicts(MODEL_FLAGS, "--fc_norm_passes", 3, says=("--fc_norm_passes",))
contradicts(MODEL_FLAGS, "--patient_regex", "(", says=("--patient_regex",))
contradicts(MODEL_FLAGS, "--patient_regex", "a", says=("--patient_regex",))
contradicts(MODEL_FLAGS, "--patient_regex", "(a)(b)", says=("--patient_regex",))
contradicts(MODEL_FLAGS, "--finetune", "hf:x", says=("hf:owner/repo/file",))
contradicts(MODEL_FLAGS, "--finetune", "hf:a/../../b", says=("hf:",))
contradicts(MODEL_FLAGS, "--finetune", "~nobody-here/w.pth", says=("no such file",))
contradicts(MODEL_FLAGS, "--head_depth", 10**9, program=REGRESSION, says=("--head_depth",))
contradicts(MODEL_FLAGS, "--head_embed_dim", 10**9, program=REGRESSION, says=("--head_embed_dim",))
contradicts(MODEL_FLAGS, "--head_mlp_ratio", 1e9, program=REGRESSION, says=("--head_mlp_ratio",))
contradicts(MODEL_FLAGS, "--recount", 10**12, says=("--recount",))
contradicts(FOLDS, "--folds", 99, says=("--folds 99: train and val have",))
contradicts(FOLDS, "--folds", 99, program=REGRESSION, says=("--folds 99: train and val have",))
contradicts(CONTRADICTION, "--folds", 3, "--fold", 4, says=("--fold 4 of --folds 3",))
contradicts(CONTRADICTION, "--folds", 3, "--fold", 2, "--optuna_trials", 2, says=("--fold 2 is one run",))
contradicts(CONTRADICTION, "--folds", 3, "--resume", "x.pth", says=("--folds trains several", "--resume"))
contradicts(MISSING, "--eval", says=("--eval needs --resume",))
TABLE.add(MISSING, "no --csv_file", lambda place: train(place), "--csv_file is not given", program=REGRESSION)
TABLE.add(MISSING, "no weights", lambda place: ["--input", "x", "--output", "o.npz"], "no weights are named",
          program=LATENT)
TABLE.add(MISSING, "no input", lambda place: ["--resume", "x", "--output", "o.csv"], "--input",
          program=PREDICT)
TABLE.add(MISSING, "nothing to predict", lambda place: [], "--resume", program=PREDICT)
TABLE.add(MISSING, "no runs", lambda place: [], "no run is named", program=COMPARE)
TABLE.add(MISSING, "no set", lambda place: [], "NAME", program="util.prepare")
TABLE.add(MISSING, "an architecture", lambda place: ["--model", "Dinov2", "--data_path", "x"], "--model_arch",
          real=True)

for name, words, says in (
    ("--task with ..", ["--task", "../x"], "no name for a folder"),
    ("--task with a root", ["--task", "/tmp/x"], "no name for a folder"),
    ("a file as --output_dir", ["--output_dir", "file"], "--output_dir"),
    ("a file as --log_dir", ["--log_dir", "file"], "--log_dir"),
    ("a task below a file", ["--output_dir", ".", "--task", "file/x"], "--output_dir"),
    ("a name too long", ["--task", "x" * 300], "--output_dir"),
    ("a path too long", ["--output_dir", "/".join(["x" * 200] * 30)], "--output_dir"),
    ("a device", ["--output_dir", "/dev/null"], "--output_dir"),
    ("a link to itself", ["--output_dir", "loop"], "--output_dir"),
    ("/proc", ["--output_dir", "/proc/x"], "--output_dir"),
):

    def make(place: Place, words=words):
        place.data()
        place.write("file", "x")
        (place.folder / "loop").symlink_to("loop")
        return [*TRAINING, "--data_path", "data", *words]

    TABLE.add(OUTPUT, name, make, says)


@TABLE.case(OUTPUT, "no right", "--output_dir")
def _(place: Place):
    place.as_nobody = True
    place.data()
    (place.folder / "locked").mkdir(mode=0o555)
    return [*TRAINING, "--data_path", "data", "--output_dir", "locked", "--task", "t"]


for name, words, says in (
    ("no folder", ["--output", "none/o.csv"], "there is no folder"),
    ("a folder", ["--output", "d.csv"], "is a folder"),
    ("no .csv", ["--output", "o.txt"], "end in .csv"),
    ("the input itself", ["--input", "in.csv", "--output", "in.csv"], "is the --input itself"),
    ("a name too long", ["--output", "x" * 300 + ".csv"], "--output"),
):

    def make(place: Place, words=words):
        place.some_pictures()
        (place.folder / "d.csv").mkdir()
        place.write("in.csv", "path\npictures/dry0.png\n")
        return [*predicting(place, "pictures"), *words]

    TABLE.add(OUTPUT, f"predict.py, {name}", make, says, program=PREDICT)

for words, says in (
    (["--mixup_prob", 0.5], "--mixup_prob does nothing"),
    (["--nb_classes", 2, "--dist_eval", "--resplit"], "accepted for compatibility, no effect"),
    (["--blr", 0.1], "--blr does nothing"),
    (["--patient_col", "p"], "--patient_col does nothing"),
    (["--cls_token"], "--cls_token changes nothing"),
    (["--warmup_epochs", 99], "warm-up"),
):

    def make(place: Place, words=words):
        place.data()
        return train(place, "--data_path", "data", *words)

    TABLE.add(IDLE, " ".join(map(str, words)), make, says)
