"""Files of settings, the environment, the data sets' preparation, and the study's grid."""

from tests.bad_input.place import TRAINING, Place, train
from tests.bad_input.table import Row, Table

KIND = "Settings, studies, environment"
TABLE = Table()

PARAMS = Row(
    KIND,
    "`--params` is not there, is no JSON, or holds unknown settings or values that no flag takes",
    "--params …: …",
    "pass the `optuna_best.json` of a search",
)
GRID = Row(
    KIND,
    "A study's YAML is not there, empty, no YAML, or holds unknown keys, flags or values",
    "…",
    "the line names the file's line and key",
    does="one line that names the line of the file and the key",
)
RUNS = Row(
    KIND,
    "compare.py is given folders that are no runs, or runs whose files are damaged or of other images",
    "…",
    "pass folders OUTPUT_DIR/TASK of finished runs",
    does="one line that names the folder and what it lacks",
)
PREPARE = Row(
    KIND,
    "util.prepare is given a folder that is not there, not the data set's, or contradicting shares",
    "…",
    "pass the folder that the owner's archive was unpacked to",
    does="one line that names the folder or the share",
)
STORAGE = Row(
    KIND,
    "`--optuna_storage` is no address, or a file that is no database",
    "--optuna_storage…",
    "write `sqlite:///FILE` or `postgresql://USER@HOST/NAME`",
)
RANKS = Row(
    KIND,
    "RANK, WORLD_SIZE and the like are set and are no numbers, or contradict each other",
    "… in the environment …; start with torchrun, or unset them",
    "`unset RANK WORLD_SIZE LOCAL_RANK`, or start with torchrun",
)
ENVIRONMENT = Row(
    KIND,
    "Another variable of the environment holds what it can't",
    "… in the environment: …",
    "correct or unset it",
)

TEXTS = {
    "empty": "",
    "no JSON": "{lr",
    "a list": "[1]",
    "a number": "5",
    "no params": '{"a": 1}',
    "params of text": '{"params": "lr"}',
    "an unknown setting": '{"params": {"colour": 1}}',
    "text as a value": '{"params": {"lr": "fast"}}',
    "true as a value": '{"params": {"lr": true}}',
    "a list as a value": '{"params": {"lr": [1]}}',
    "null as a value": '{"params": {"lr": null}}',
    "below 0": '{"params": {"lr": -1}}',
    "NaN": '{"params": {"lr": NaN}}',
    "infinite": '{"params": {"lr": 1e999}}',
    "a billion layers": '{"params": {"head_depth": 1000000000}}',
    "half a layer": '{"params": {"head_depth": 2.5}}',
    "a number of 5,000 digits": '{"params": {"head_depth": ' + "9" * 5000 + "}}",
    "deep brackets": "[" * 100_000,
    "not UTF-8": b"\xff{}",
}
for name, text in TEXTS.items():
    TABLE.add(
        PARAMS,
        name,
        lambda place, text=text: (
            [place.write("p.json", text)]
            and [
                *TRAINING,
                "--dry_run",
                "--csv_file",
                place.kit.csv,
                "--targets",
                "depth",
                "--finetune",
                "",
                "--params",
                "p.json",
            ]
        ),
        "p.json",
        program="main_regression.py",
    )
for text in ('{"params": {"head_depth": 2}}', '{"params": {"class_weights": 1}}',
             '{"params": {"balanced_sampling": "on"}}', '{"params": {"accum_iter": true}}'):
    TABLE.add(
        PARAMS,
        f"of a classification: {text}",
        lambda place, text=text: [place.write("p.json", text)] and [*train(place), "--params", "p.json"],
        "p.json",
    )
for name in ("none.json", ".", "/dev/null", "x" * 3000):
    TABLE.add(
        PARAMS,
        f"of the name {name[:20]}",
        lambda place, name=name: [*TRAINING, "--csv_file", place.kit.csv, "--targets", "depth", "--params",
                                  name],
        program="main_regression.py",
    )

GRIDS = {
    "empty": "",
    "no YAML": "a: [",
    "a list": "- 1",
    "no backbones": "name: x",
    "an unknown key": "name: x\nbackbones: [--model timm --model_arch test_vit]\nlearning: 1",
    "a key twice": "name: x\nname: y",
    "an unknown flag": "name: x\nflags: {colour: 1}\nbackbones: [--model timm --model_arch test_vit]",
    "a wrong value": "name: x\nflags: {epochs: ten}\nbackbones: [--model timm --model_arch test_vit]",
    "a path as a name": "name: ../x\nbackbones: [--model timm --model_arch test_vit]",
    "seeds of text": "name: x\nseeds: [a]\nbackbones: [--model timm --model_arch test_vit]",
    "one run twice": "name: x\nseeds: [0, 0]\nbackbones: [--model timm --model_arch test_vit]",
    "code": "name: !!python/object/apply:os.system ['touch MARK']\nbackbones: [a]",
    "another program": "name: x\nprogram: rm\nbackbones: [--model timm --model_arch test_vit]",
    "not UTF-8": b"\xff\xfe\xff",
    "anchors of anchors": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(12))
    + "name: x\nbackbones: *m",
    "an anchor of itself": "name: x\nbackbones: &a [*a]",
    "deep brackets": "name: " + "[" * 5000,
    "NUL": b"name: \0",
}
for name, text in GRIDS.items():

    def make(place: Place, text=text):
        place.marks.append(place.folder / "MARK")
        place.write("g.yaml", text)
        return ["--run", "g.yaml", "--dry_run"]

    TABLE.add(GRID, name, make, "g.yaml", program="compare.py", real=name == "code")
TABLE.add(GRID, "not there", lambda place: ["--run", "none.yaml", "--dry_run"], "none.yaml",
          program="compare.py")
TABLE.add(GRID, "a folder", lambda place: ["--run", ".", "--dry_run"], "--run", program="compare.py")

for name, files in {
    "not there": {},
    "an empty folder": {"a/x.txt": ""},
    "no JSON": {"a/run.json": "{", "a/metrics_test.json": "{", "a/predictions_test.csv": "x"},
    "empty files": {"a/run.json": "", "a/metrics_test.json": "", "a/predictions_test.csv": ""},
    "lists": {"a/run.json": "[]", "a/metrics_test.json": "[]", "a/predictions_test.csv": "index,path\n1"},
    "binary": {"a/run.json": b"\xff\0", "a/metrics_test.json": b"\xff",
               "a/predictions_test.csv": b"\xff\0\n"},
    "a file": {"a": "x"},
}.items():

    def make(place: Place, files=files):
        for file, content in files.items():
            place.write(file, content)
        return ["a"]

    TABLE.add(RUNS, name, make, "a", program="compare.py")


@TABLE.case(RUNS, "another figure", "luck", program="compare.py")
def _(place: Place):
    return [place.kit.best.parent, "--metric", "luck"]


@TABLE.case(RUNS, "a classification and a regression", program="compare.py")
def _(place: Place):
    return [place.kit.best.parent, place.kit.numbers.parent]


for name, words in {
    "not there": ["PAPILA", "none", "out"],
    "an empty folder": ["PAPILA", "empty", "out"],
    "an unknown set": ["EYES", "empty", "out"],
    "one in the other": ["PAPILA", "empty", "empty/out"],
    "shares above 1": ["PAPILA", "empty", "out", "--val", 0.6, "--test", 0.6],
    "a share of 0": ["PAPILA", "empty", "out", "--val", 0],
    "another set's files": ["IDRID", "other", "out"],
    "a file": ["MESSIDOR2", "file", "out"],
    "two ways": ["PAPILA", "empty", "out", "--copy", "--link"],
}.items():

    def make(place: Place, words=words):
        (place.folder / "empty").mkdir()
        place.write("other/Labels.csv", "x")
        place.write("file", "x")
        return words

    TABLE.add(PREPARE, name, make, program="util.prepare")

for name, place_of in {
    "no address": "what://",
    "an unknown database": "oracle://x/y",
    "a folder": "sqlite:////",
    "an image": "sqlite:///p.png",
    "no host": "postgresql://user:hidden_password@127.0.0.1:1/x",
    "a journal in a file": "p.png/journal",
}.items():

    def make(place: Place, place_of=place_of):
        place.write("p.png", "this is no database" * 99)
        return [
            *TRAINING,
            "--csv_file",
            place.kit.csv,
            "--targets",
            "depth",
            "--finetune",
            "",
            "--head_depth",
            1,
            "--task",
            "s",
            "--optuna_trials",
            1,
            "--optuna_storage",
            place_of,
        ]

    TABLE.add(STORAGE, name, make, program="main_regression.py")

for name, values in {
    "text": {"RANK": "x", "WORLD_SIZE": "2"},
    "size of text": {"RANK": "0", "WORLD_SIZE": "many"},
    "no size": {"RANK": "0", "WORLD_SIZE": "0"},
    "above the size": {"RANK": "5", "WORLD_SIZE": "2"},
    "below 0": {"RANK": "-1", "WORLD_SIZE": "2"},
    "local text": {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "gpu"},
    "local above": {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "1"},
    "empty": {"RANK": "", "WORLD_SIZE": ""},
}.items():

    def make(place: Place):
        return [place.data()] and train(place, "--data_path", "data")

    TABLE.add(RANKS, name, make, "WORLD_SIZE", environment=tuple(values.items()), real=name == "text")
TABLE.add(
    RANKS,
    "of Open MPI",
    lambda place: [place.data()] and train(place, "--data_path", "data", "--dist_on_itp"),
    "OMPI",
    environment=(("OMPI_COMM_WORLD_RANK", "x"), ("OMPI_COMM_WORLD_SIZE", "2")),
)
for value in ("soon", "-1", "nan"):
    TABLE.add(
        ENVIRONMENT,
        f"RETINA_HUB_SILENCE_S={value}",
        lambda place: [place.data()] and train(place, "--data_path", "data", "--finetune", "hf:a/b/c.pth"),
        "RETINA_HUB_SILENCE_S",
        environment=(("RETINA_HUB_SILENCE_S", value),),
    )
