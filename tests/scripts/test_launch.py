"""train.sh, eval.sh and util/launch.sh, in copies of the clone, with a PYTHON that writes down how it is
called."""

import os
import shutil
import socket
import subprocess
import sys

import pytest

import models_vit
from tests.clone import copy_scripts, executable, in_every_shell, refused
from tests.conftest import ROOT


@pytest.fixture
def clone(tmp_path):
    return copy_scripts(tmp_path)


@pytest.fixture
def stub(clone, tmp_path):
    """A PYTHON that prepares like the real one and otherwise writes down how it was called."""
    text = f'''
case "$1 $2" in
    *"import torch"*) echo "${{STUB_GPUS:-0}}"; exit ;;
    -c*|-P*) exec "{sys.executable}" "$@" ;;
esac
printf '%s\\n' call $$ "$(pwd)" "${{CUDA_VISIBLE_DEVICES-unset}}" "$@" >> "$STUB_RECORD"
case "$*" in
    *demo_data.*) exit 0 ;;
    *--dry_run) exit "${{STUB_DRY_RUN:-0}}" ;;
esac
exit "${{STUB_EXIT:-0}}"
'''
    return executable(tmp_path / "stub" / "python", text)


class Run:
    """A finished script: its exit code, what it printed, and each call of PYTHON: process, folder, GPUs,
    arguments."""

    def __init__(self, clone, stub, script, *arguments, shell=("sh",), folder=None, **variables):
        record = stub.with_name("record")
        record.unlink(missing_ok=True)
        executable(stub.with_name("nvidia-smi"), "printf '%b' \"${STUB_NVIDIA:-}\"\n")
        known = {"PYTHON": str(stub), "STUB_RECORD": str(record),
                 "PATH": f"{stub.parent}:{os.environ['PATH']}"}
        command = [shutil.which(shell[0]), *shell[1:], str(clone / script), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, env=known | variables, cwd=folder or clone, **pipes)
        self.stdout, self.stderr = process.communicate()
        self.returncode, self.process = process.returncode, str(process.pid)
        blocks = record.read_text().split("call\n")[1:] if record.exists() else []
        self.processes, self.folders, self.devices = [
            [block.split("\n")[at] for block in blocks] for at in range(3)
        ]
        calls = [block.split("\n")[3:-1] for block in blocks]
        # what restarts one process is called with the number of restarts, the program and its arguments
        self.restarts = [int(call[1]) if call[0] == str(clone / "util/core/restarting.py") else 0
                         for call in calls]
        self.calls = [call[2:] if restarts else call
                      for call, restarts in zip(calls, self.restarts, strict=True)]


DOCUMENTED = """--model RETFound_dinov2 --model_arch retfound_dinov2 --finetune RETFound_dinov2_meh --savemodel
    --global_pool --batch_size 24 --world_size 1 --epochs 50 --nb_classes 5 --data_path {data}
    --input_size 224 --task {task} --adaptation finetune"""


def options(arguments):
    """The flags of an argument list with their values, a repeated flag's last value counting, as argparse has
    it."""
    found, flag = {}, None
    for argument in arguments:
        if argument.startswith("--"):
            flag = argument
            found[flag] = []
        else:
            found[flag].append(argument)
    return found


def launcher_options(run: Run) -> dict[str, list[str]]:
    """The launcher's, of a job of several processes."""
    started = run.calls[1]
    return options(started[1:next(at for at, word in enumerate(started)
                                  if word.endswith("main_finetune.py"))])


@in_every_shell
def test_nothing_set_is_the_demo(clone, stub, shell, tmp_path):
    run = Run(clone, stub, "train.sh", "--epochs", "1", shell=shell, folder=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    assert "demo" in run.stdout and "DATA_PATH=" in run.stdout and "NUM_CLASS=" in run.stdout
    drawing, training = run.calls
    assert drawing == ["-m", "util.demo_data", "demo_data"] and run.folders[0] == str(clone)
    assert (
        training[0] == str(clone / "main_finetune.py")
        and run.folders[1] == str(tmp_path)
        and run.restarts == [0, 3]
    )
    assert Run(clone, stub, "train.sh", "--resume", "a.pth",
               shell=shell).restarts == [0, 0], "it would begin there again"
    given = options(training[1:])
    assert given["--data_path"] == [f"{clone}/demo_data"] and given["--output_dir"] == [f"{clone}/output_dir"]
    assert given["--resume"] == ["same"] and given["--crop_scale"] == ["0.8", "1"]
    assert given["--epochs"] == ["1"], "the user's flag wins"


@in_every_shell
def test_data_and_classes_make_the_documented_job(clone, stub, shell, tmp_path):
    data = tmp_path / "my images" / "APTOS 2019"
    own = ["--output_dir", "my results"]
    run = Run(clone, stub, "train.sh", *own, shell=shell, folder=tmp_path, DATA_PATH=f"{data}//",
              NUM_CLASS="5")
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    ((program, *arguments),) = run.calls
    assert program == str(clone / "main_finetune.py") and run.folders[0] == str(tmp_path)
    documented = options(DOCUMENTED.format(data="DATA", task="TASK").split())
    documented["--data_path"] = [f"{data}//"]
    documented["--task"] = ["retfound_dinov2_APTOS 2019_finetune"]
    assert options(arguments) == documented | {"--resume": ["same"], "--output_dir": ["my results"]}


@pytest.mark.parametrize("model", [row for row in models_vit.BACKBONES if [
    other.model for other in models_vit.BACKBONES].count(row.model) == 1], ids=lambda row: row.arch)
def test_a_models_one_architecture_and_its_own_size_need_not_be_named(clone, stub, model):
    run = Run(clone, stub, "train.sh", DATA_PATH="d", NUM_CLASS="3", MODEL=model.model, FINETUNE="w.pth")
    given = options(run.calls[0][1:])
    assert given["--model_arch"] == [model.arch]
    assert given.get("--input_size", [str(model.input_size)]) == [str(model.input_size)]


def test_every_variable_reaches_its_flag(clone, stub):
    names = {"MODEL": "Dinov3", "MODEL_ARCH": "dinov3_vits16", "FINETUNE": "w.pth", "ADAPTATION": "lp",
             "DATASET": "X"}
    run = Run(clone, stub, "train.sh", DATA_PATH="d", NUM_CLASS="3", **names)
    given = options(run.calls[0][1:])
    assert given["--model"] == ["Dinov3"] and given["--model_arch"] == ["dinov3_vits16"]
    assert (
        given["--finetune"] == ["w.pth"]
        and given["--adaptation"] == ["lp"]
        and given["--nb_classes"] == ["3"]
    )
    assert given["--task"] == ["dinov3_vits16_X_lp"]
    run = Run(clone, stub, "train.sh", DATA_PATH="d", NUM_CLASS="3", TASK="mine", **names)
    assert options(run.calls[0][1:])["--task"] == ["mine"]


def test_flags_stand_for_variables(clone, stub):
    run = Run(clone, stub, "train.sh", "--csv_file", "data/eyes.v2.csv", "--nb_classes=4", "--adaptation",
              "lp")
    given = options(run.calls[0][1:])
    assert given["--task"] == ["retfound_dinov2_eyes.v2_lp"] and "--data_path" not in given


@pytest.mark.parametrize("own", [["--resume", "x.pth"], ["--resume="], ["--eval"], ["--dry_run"]],
                         ids=" ".join)
def test_the_users_own_resume_is_respected(clone, stub, own):
    run = Run(clone, stub, "train.sh", *own, DATA_PATH="d", NUM_CLASS="3")
    assert "same" not in run.calls[0] and run.calls[0][-len(own) :] == own


WRONG = {
    "data alone": ({"DATA_PATH": "d"}, "NUM_CLASS is not"),
    "classes alone": ({"NUM_CLASS": "5"}, "DATA_PATH is not"),
    "another family's weights": ({"DATA_PATH": "d", "NUM_CLASS": "5", "MODEL": "RETFound_mae"},
                                 "set FINETUNE"),
    "no size": ({"DATA_PATH": "d", "NUM_CLASS": "5", "MODEL": "Dinov2", "FINETUNE": "w.pth"},
                "set MODEL_ARCH"),
    "GPUs": ({"DATA_PATH": "d", "NUM_CLASS": "5", "GPUS": "all"}, "GPUS=all"),
    "nodes": ({"DATA_PATH": "d", "NUM_CLASS": "5", "NNODES": "0"}, "NNODES=0"),
    "rank": ({"DATA_PATH": "d", "NUM_CLASS": "5", "NNODES": "2", "NODE_RANK": "2"}, "0 to 1"),
    "address": ({"DATA_PATH": "d", "NUM_CLASS": "5", "NNODES": "2"}, "MASTER_ADDR"),
    "waiting": ({"DATA_PATH": "d", "NUM_CLASS": "5", "NNODES": "2", "MASTER_ADDR": "a", "NODE_WAIT": "long"},
                "NODE_WAIT=long"),
    "port": ({"DATA_PATH": "d", "NUM_CLASS": "5", "GPUS": "2", "MASTER_PORT": "x"}, "MASTER_PORT=x"),
}


@pytest.mark.parametrize("variables, message", WRONG.values(), ids=WRONG)
def test_wrong_variables_are_one_line(clone, stub, variables, message):
    run = Run(clone, stub, "train.sh", **variables)
    assert message in refused(run)
    assert run.calls == []


@pytest.mark.parametrize("code", [0, 1, 2])
def test_one_process_keeps_the_exit_code(clone, stub, code):
    run = Run(clone, stub, "train.sh", DATA_PATH="d", NUM_CLASS="5", GPUS="1", STUB_EXIT=str(code))
    assert run.returncode == code and run.processes[0] == run.process, "Python takes the shell's place"


@in_every_shell
def test_several_processes_are_checked_then_started(clone, stub, shell):
    run = Run(clone, stub, "train.sh", "--lr", "1", shell=shell, DATA_PATH="d", NUM_CLASS="5", GPUS="2",
              STUB_EXIT="1")
    check, started = run.calls
    program = str(clone / "main_finetune.py")
    assert check[0] == program and check[-3:] == ["--world_size", "2",
                                                  "--dry_run"], "planned for both processes"
    at = started.index(program)
    launcher = options(started[1:at])
    assert started[0] == str(clone / "util/parallel/torchrun.py") and started[at:] == check[:-3]
    assert launcher["--nproc-per-node"] == ["2"] and launcher["--rdzv-endpoint"] == ["127.0.0.1:48766"]
    assert launcher["--nnodes"] == ["1"] and launcher["--max-restarts"] == ["3"]
    assert launcher["--signals-to-handle"] == ["SIGTERM,SIGINT,SIGUSR1"]
    assert run.returncode == 1 and run.processes[1] == run.process, "a signal to the script reaches torchrun"


def test_a_run_that_would_not_find_its_checkpoint_is_not_restarted(clone, stub):
    run = Run(clone, stub, "train.sh", "--resume=", DATA_PATH="d", NUM_CLASS="5", GPUS="2")
    assert options(run.calls[1][1:])["--max-restarts"] == ["0"]


@pytest.mark.parametrize("code, mapped", [(1, 1), (2, 2), (139, 1)])
def test_a_failed_check_starts_nothing(clone, stub, code, mapped):
    run = Run(clone, stub, "train.sh", DATA_PATH="d", NUM_CLASS="5", GPUS="2", STUB_DRY_RUN=str(code))
    assert run.returncode == mapped and len(run.calls) == 1


def test_several_nodes(clone, stub):
    nodes = {"NNODES": "3", "NODE_RANK": "2", "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29501", "GPUS": "1"}
    launcher = launcher_options(Run(clone, stub, "train.sh", DATA_PATH="d", NUM_CLASS="5", NODE_WAIT="60",
                                    **nodes))
    assert launcher == {
        "--nnodes": ["3"], "--node-rank": ["2"], "--nproc-per-node": ["1"], "--master-addr": ["10.0.0.7"],
        "--rdzv-backend": ["c10d"], "--rdzv-endpoint": ["10.0.0.7:29501"], "--rdzv-id": ["retina"],
        "--rdzv-conf": ["join_timeout=60,is_host=false"], "--max-restarts": ["3"],
        "--signals-to-handle": ["SIGTERM,SIGINT,SIGUSR1"]}
    nodes["NODE_RANK"] = "0"
    first = launcher_options(Run(clone, stub, "train.sh", DATA_PATH="d", NUM_CLASS="5", **nodes))
    assert first["--rdzv-conf"] == ["join_timeout=900,is_host=true"], "node 0 holds the store"
    elsewhere = {"RDZV_ENDPOINT": "store:2379", "RDZV_BACKEND": "etcd-v2", "RDZV_ID": "job 7"}
    first = launcher_options(Run(clone, stub, "train.sh", DATA_PATH="d", NUM_CLASS="5", **nodes, **elsewhere))
    assert (first["--rdzv-backend"], first["--rdzv-endpoint"], first["--rdzv-id"]) == (
        ["etcd-v2"],
        ["store:2379"],
        ["job 7"],
    )
    assert first["--rdzv-conf"] == ["join_timeout=900,is_host=false"]


def test_a_taken_port_is_one_line(clone, stub):
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        run = Run(clone, stub, "train.sh", DATA_PATH="d", NUM_CLASS="5", GPUS="2", MASTER_PORT=port)
    assert port in refused(run) and run.calls == []


def test_visible_gpus_are_counted(clone, stub):
    job = {"DATA_PATH": "d", "NUM_CLASS": "5", "STUB_NVIDIA": "GPU 0: A\\nGPU 1: B\\n", "STUB_GPUS": "2"}
    assert options(Run(clone, stub, "train.sh", **job).calls[1][1:])["--nproc-per-node"] == ["2"]
    assert len(Run(clone, stub, "train.sh", **(job | {"STUB_GPUS": "1"})).calls) == 1
    assert len(Run(clone, stub, "train.sh", "--device", "cpu", **job).calls) == 1
    hidden = Run(clone, stub, "train.sh", GPUS="0", **job)
    assert len(hidden.calls) == 1 and hidden.devices == [""]


def test_help_draws_and_starts_nothing_else(clone, stub):
    run = Run(clone, stub, "train.sh", "--help")
    assert len(run.calls) == 1 and run.calls[0][-1] == "--help"


@in_every_shell
def test_eval_scores_the_checkpoint(clone, stub, shell):
    (clone / "best.pth").touch()
    run = Run(clone, stub, "eval.sh", shell=shell, CKPT="best.pth", DATA_PATH="d/A", NUM_CLASS="5",
              TASK="mine")
    ((_, *arguments),) = run.calls
    given = {"--batch_size": ["128"], "--eval": [], "--resume": ["best.pth"], "--data_path": ["d/A"],
             "--nb_classes": ["5"],
             "--task": ["mine"]}
    assert (run.returncode, options(arguments)) == (0, given), "the checkpoint says its model"
    named = {"MODEL": "Dinov3", "MODEL_ARCH": "dinov3_vits16", "ADAPTATION": "lp"}
    run = Run(clone, stub, "eval.sh", shell=shell, CKPT="best.pth", DATA_PATH="d/A", NUM_CLASS="5",
              TASK="mine", **named)
    given |= {"--model": ["Dinov3"], "--model_arch": ["dinov3_vits16"], "--adaptation": ["lp"]}
    assert options(run.calls[0][1:]) == given


def test_eval_without_its_needs_is_one_line(clone, stub):
    assert "CKPT" in refused(Run(clone, stub, "eval.sh"))
    assert "CKPT is not set" in refused(Run(clone, stub, "eval.sh", DATA_PATH="d", NUM_CLASS="5"))
    assert "gone.pth" in refused(Run(clone, stub, "eval.sh", CKPT="gone.pth", DATA_PATH="d", NUM_CLASS="5"))
    (clone / "best.pth").touch()
    assert "DATA_PATH and NUM_CLASS" in refused(Run(clone, stub, "eval.sh", CKPT="best.pth"))


def test_eval_finds_the_demo(clone, stub):
    (clone / "demo_data").mkdir()
    (clone / "output_dir" / "demo").mkdir(parents=True)
    best = clone / "output_dir" / "demo" / "checkpoint-best.pth"
    best.touch()
    trained, scored = Run(clone, stub, "train.sh").calls[1], Run(clone, stub, "eval.sh").calls[0]
    trained, scored = options(trained[1:]), options(scored[1:])
    assert scored["--resume"] == [str(best)] and "--eval" in scored
    for flag in ("--model", "--model_arch", "--input_size", "--nb_classes", "--data_path", "--task",
                 "--output_dir"):
        assert scored[flag] == trained[flag]


@in_every_shell
def test_a_search_and_then_its_final_run(clone, stub, shell, tmp_path):
    names = {"CSV_FILE": "my data/r.csv", "TARGETS": "tc ldl", "TRIALS": "7", "ADAPTATION": "lp",
             "STORAGE": "sqlite:///x y.db"}
    run = Run(clone, stub, "search.sh", "--batch_size", "16", shell=shell, folder=tmp_path, **names)
    assert (run.returncode, run.stderr) == (0, "")
    (program, *searching), (_, *final) = run.calls
    assert program == str(clone / "main_regression.py")
    searching, final = options(searching), options(final)
    shared = {"--csv_file": ["my data/r.csv"], "--targets": ["tc", "ldl"], "--adaptation": ["lp"],
              "--batch_size": ["16"],
              "--model": ["RETFound_dinov2"], "--finetune": ["RETFound_dinov2_meh"]}
    assert searching == shared | {"--task": ["r_search"], "--optuna_trials": ["7"], "--optuna_epochs": ["10"],
                                  "--optuna_resume": [], "--optuna_storage": ["sqlite:///x y.db"]}
    assert final == shared | {"--task": ["r_search_final"], "--epochs": ["40"], "--resume": ["same"],
                              "--params": ["./output_dir/r_search/optuna_best.json"]}


def test_a_search_of_a_classification(clone, stub):
    run = Run(clone, stub, "search.sh", CSV_FILE="d.csv", LABEL="grade of dr", TRIALS="7")
    assert (run.returncode, run.stderr) == (0, "")
    (program, *searching), (other, *final) = run.calls
    assert program == other == str(clone / "main_finetune.py")
    assert options(searching)["--label_col"] == ["grade of dr"] == options(final)["--label_col"]
    assert options(searching)["--optuna_trials"] == ["7"] and "--targets" not in options(final)
    assert options(final)["--params"] == ["./output_dir/d_search/optuna_best.json"]
    for names, says in (({"LABEL": "a", "TARGETS": "b", "CSV_FILE": "d.csv"}, "set one of the two"),
                        ({"LABEL": "a"}, "CSV_FILE is not")):
        run = Run(clone, stub, "search.sh", **names)
        assert run.returncode == 2 and says in run.stderr and not run.calls


def test_a_failed_search_has_no_final_run(clone, stub):
    run = Run(clone, stub, "search.sh", CSV_FILE="r.csv", STUB_EXIT="2")
    assert run.returncode == 2 and len(run.calls) == 1


def test_nothing_set_is_the_demo_search(clone, stub):
    run = Run(clone, stub, "search.sh")
    drawing, searching, final = run.calls
    assert drawing == ["-m", "util.demo_data", "demo_data"] and "demo" in run.stdout
    assert (
        options(searching[1:])["--csv_file"]
        == [f"{clone}/demo_data/demo.csv"]
        == options(final[1:])["--csv_file"]
    )
    assert len(options(searching[1:])["--targets"]) == 6 and options(searching[1:])["--optuna_trials"] == [
        "6"
    ]
    assert options(final[1:])["--params"] == [f"{clone}/output_dir/demo_search/optuna_best.json"]


@pytest.mark.parametrize("program", ["main_finetune", "main_regression", "predict", "latent_feature",
                                     "compare",
                                     "util.prepare"])
def test_windows_is_told_of_wsl_in_one_line(program):
    found = subprocess.run([sys.executable, "-c", "import sys; sys.platform = 'win32'; import "
                                                  f"{program}"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2 and found.stderr.count("\n") == 1 and "WSL" in found.stderr, found.stderr
