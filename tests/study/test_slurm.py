"""util/study/slurm.py with programs in place of Slurm's: what is submitted, what is not, what is said.

tests/end_to_end/test_slurm.py has a real Slurm.
"""

import json
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

import compare
from tests.conftest import needs_package
from util.core.ending import exit_code_of
from util.core.errors import RunError
from util.options.table import own_values
from util.study import runs, slurm
from util.study.grid_file import read_grid

GRID = """\
name: study
flags: {data_path: images, nb_classes: 3}
backbones: [a: {model: timm, model_arch: test_vit}]
seeds: [0, 1, 2]
"""
NAMES = [f"a_finetune_ratio1_seed{seed}" for seed in range(3)]
# Keeps what it is given, and numbers it; refuses a partition `none`, and any job after the first `most` ones.
SBATCH = """\
#!/bin/sh
number=$(($(ls "$FAKE" | grep -c job) + 1))
if grep -q partition=none "$1" || [ "$number" -gt "$(cat "$FAKE/most")" ]; then
    echo 'sbatch: error: invalid partition specified: none' >&2; exit 1
fi
cp "$1" "$FAKE/job$number"
echo "Submitted batch job $number"
"""


class Cluster:
    """`frames`: what squeue shows, look by look; the last one stays. A function is called at its turn."""

    def __init__(self, folder: Path):
        self.folder, self.frames = folder, [{}]

    def queue(self) -> dict[str, str]:
        frame = self.frames.pop(0) if len(self.frames) > 1 else self.frames[0]
        return frame() if callable(frame) else frame

    def jobs(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("job*"))


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Cluster:
    needs_package("submitit")
    place = tmp_path / "fake"
    place.mkdir()
    (place / "most").write_text("99")
    for name, text in (("sbatch", SBATCH), ("srun", "#!/bin/sh\n"), ("squeue", "#!/bin/sh\n")):
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    monkeypatch.setenv("FAKE", str(place))
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    found = Cluster(place)
    monkeypatch.setattr(slurm, "queue", found.queue)
    monkeypatch.setattr(slurm, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(compare, "compare_folders", lambda _, folders, *rest: print("compared", *folders))
    (tmp_path / "grid.yaml").write_text(GRID)
    return found


@pytest.fixture
def start(cluster, capsys):
    """start(*words of --slurm, more=…) -> (exit code, stdout, stderr)."""
    def run(*words, more=()):
        capsys.readouterr()
        code = exit_code_of(compare.main, ["--run", "grid.yaml", *more, "--slurm", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def finish(number: int, ended: dict[str, str]) -> dict[str, str]:
    """Leave what the run of a seed leaves -> what squeue shows then."""
    cell = read_grid("grid.yaml").cells[number]
    (cell.folder / "run.json").write_text(json.dumps({"options": own_values(cell.options), "processes": 1}))
    for name in ("metrics_test.json", "predictions_test.csv"):
        (cell.folder / name).touch()
    return ended


def test_one_job_per_run_and_a_comparison_at_the_end(start, cluster, tmp_path):
    cluster.frames = [{}, {"1": "RUNNING", "2": "PENDING", "3": "PENDING"},
                      lambda: finish(0, {"2": "RUNNING", "3": "PENDING"}),
                      lambda: finish(1, {"3": "RUNNING"}), lambda: finish(2, {})]
    code, out, err = start("time=90", "cpus_per_task=3", "exclusive=true", more=("--nproc", "2"))
    assert (code, err) == (0, "") and cluster.jobs() == ["job1", "job2", "job3"]
    assert "3 runs submitted, 0 are in the queue already; jobs: 1 2 3; logs: output_dir/study/RUN/" in out
    said = [line for line in out.splitlines() if line.startswith(("jobs: ", "compared"))]
    folders = [f"output_dir/study/{name}" for name in NAMES]
    assert said == ["jobs: 1 running, 2 pending, 0 ended", "jobs: 1 running, 1 pending, 1 ended",
                    "jobs: 1 running, 0 pending, 2 ended", "jobs: 0 running, 0 pending, 3 ended",
                    f"compared {' '.join(folders)}"]
    script = (cluster.folder / "job2").read_text()
    for line in ("#SBATCH --time=90", "#SBATCH --cpus-per-task=3", "#SBATCH --signal=USR1@120",
                 "#SBATCH --exclusive\n", "#SBATCH --requeue\n", f"#SBATCH --job-name=study/{NAMES[1]}",
                 "--cpus-per-task=3 ", "SUBMITIT_PREEMPT_SIGNAL=USR1", f"PYTHONPATH={runs.ROOT}",
                 f"#SBATCH --output={tmp_path}/{folders[1]}/slurm/%j_0_log.out"):
        assert line in script, script
    training = pickle.loads((tmp_path / folders[1] / "slurm/2_submitted.pkl").read_bytes()).function
    grid = read_grid("grid.yaml")
    assert training.words == runs.command(grid, grid.cells[1], 2) and training.folder == tmp_path / folders[1]
    code, out, _ = start("time=90")
    assert code == 0 and "3 finished" in out and "0 runs submitted" in out and len(cluster.jobs()) == 3


def test_what_is_queued_trained_or_finished_is_not_submitted_again(start, cluster, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    cluster.frames = [{}, interrupt, {"1": "RUNNING", "2": "PENDING", "3": "PENDING"}]
    code, out, err = start("time=90")
    assert code == 130 and "compared" not in out
    assert err == ("the jobs stay in the queue: the same command waits for them again and compares; to end "
                   "them: scancel 1 2 3\n")
    finish(0, {})
    cluster.frames = [{"2": "PENDING"}]  # job 3 has ended without results
    code, out, _ = start("time=90", more=("--dry_run",))
    assert code == 0 and len(cluster.jobs()) == 3
    assert "1 runs would be submitted, one job each: time=90 signal_delay_s=120" in out
    assert f"{NAMES[1]} is in the queue already: job 2\n" in out and f"{NAMES[2]}  new" in out
    cluster.frames = [{"2": "PENDING"}, lambda: finish(1, {"4": "RUNNING"}), {}]
    code, out, err = start("time=90")
    assert "1 runs submitted, 1 are in the queue already; jobs: 2 4;" in out and len(cluster.jobs()) == 4
    log = f"output_dir/study/{NAMES[2]}/slurm/4_0_log.out"
    assert (code, err) == (1, f"{NAMES[2]} failed, see {log}: the same command tries it again\n")
    assert f"compared output_dir/study/{NAMES[0]} output_dir/study/{NAMES[1]}\n" in out
    with runs.locked(tmp_path / "output_dir/study" / NAMES[2]):
        code, out, err = start("time=90")
    assert code == 1 and "0 runs submitted" in out and "is trained by another process" in err
    with runs.locked(tmp_path / "output_dir/study"):
        code, out, err = start("time=90")
    assert code == 2 and "another compare.py submits this study" in err and len(cluster.jobs()) == 4


@pytest.mark.parametrize("words, says", [
    (["time"], "--slurm time: not KEY=VALUE, such as --slurm time=1440"),
    (["time="], "--slurm time=: not KEY=VALUE"),
    (["=3"], "--slurm =3: not KEY=VALUE"),
    (["time=3", "time=4"], "--slurm gives time twice"),
    (["partition=gpu"], "--slurm needs time=NUMBER, the minutes that a job may take"),
    (["time=24:00:00"], "--slurm needs time=NUMBER"),
    (["time=3", "signal_delay_s=-1"], "--slurm needs signal_delay_s=NUMBER"),
    (["time=3", "nodes=2"], "--slurm nodes=2: nodes can't be set"),
    (["time=3", "partion=gpu", "account=me"], "--slurm partion: no parameter of submitit; known are account"),
    (["time=3", "folder=x"], "--slurm folder: no parameter of submitit"),
    (["time=3", "partition=none"], f"Slurm did not take {NAMES[0]}: sbatch: error: invalid partition"),
])
def test_wrong_parameters_are_one_line(start, cluster, words, says):
    code, out, err = start(*words)
    assert code == 2 and err.startswith(f"error: {says}") and err.count("\n") == 1, err
    assert cluster.jobs() == [] and "nodes" not in err.partition("known are")[2]


def test_a_limit_of_jobs_keeps_those_that_were_taken(start, cluster):
    (cluster.folder / "most").write_text("2")
    code, _, err = start("time=3")
    assert code == 2 and "(2 runs before it are queued; the same command goes on)" in err
    assert cluster.jobs() == ["job1", "job2"]


def test_without_slurm_or_submitit_it_is_one_line(start, cluster, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    for more in ((), ("--dry_run",)):
        code, out, err = start("time=3", more=more)
        assert (code, out) == (2, "")
        assert err == ("error: --slurm needs submitit, which is not installed: pip install -r "
                       "requirements-slurm.txt\n")
    monkeypatch.setenv("PATH", "/nowhere")
    code, out, err = start("time=3")
    assert (code, out) == (2, "")
    assert err == ("error: --slurm: sbatch, srun, squeue not on the PATH: start it on a login node\n")


def test_a_controller_that_does_not_answer_is_asked_again(start, cluster):
    def silent():
        raise RunError("squeue: Unable to contact slurm controller")

    def ended():
        return [finish(number, {}) for number in range(3)][0]

    cluster.frames = [{}, {"1": "RUNNING"}, silent, silent, ended]
    code, out, _ = start("time=3")
    assert code == 0 and out.count("squeue: Unable to contact slurm controller: asking again\n") == 1


def test_the_queue_is_what_squeue_says(cluster, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{cluster.folder}:{os.environ['PATH']}")
    (cluster.folder / "squeue").write_text("#!/bin/sh\nprintf '12 RUNNING\\n7 PENDING\\n'\n")
    assert slurm.queue() == {"12": "RUNNING", "7": "PENDING"}
    (cluster.folder / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: down' >&2; exit 1\n")
    with pytest.raises(RunError, match="^squeue: slurm_load_jobs error: down$"):
        slurm.queue()


# ---- inside the job ----------------------------------------------------------------------------------------

PROGRAM = """\
import pathlib, signal, sys, time
def end(*_):
    time.sleep(0.5)
    pathlib.Path("saved").touch()
    sys.exit(99)
signal.signal(signal.SIGUSR1, end)
pathlib.Path("ready").touch()
time.sleep(60)
"""


def test_a_job_that_is_asked_to_end_waits_for_the_checkpoint(tmp_path, monkeypatch):
    """As submitit's signal handler does it, while the job waits for its run."""
    needs_package("submitit")
    monkeypatch.chdir(tmp_path)
    training, again = slurm.Training([sys.executable, "-c", PROGRAM], Path("run")), []

    def handler(*_):
        again.append(training.checkpoint())
        assert Path("saved").exists()
        raise SystemExit(-1)

    def ask():
        deadline = time.monotonic() + 60
        while not Path("ready").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, handler)
    try:
        threading.Thread(target=ask).start()
        with pytest.raises(SystemExit):
            training()
    finally:
        signal.signal(signal.SIGUSR2, before)
    job = pickle.loads(pickle.dumps(again[0].function))
    assert (job.words, job.folder, job.pid) == (training.words, tmp_path / "run", 0)


def test_a_run_that_fails_fails_its_job(tmp_path):
    slurm.Training([sys.executable, "-c", ""], tmp_path)()
    with pytest.raises(RuntimeError, match="the run ended with exit code 3"):
        slurm.Training([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)()
    with runs.locked(tmp_path), pytest.raises(RuntimeError, match="another process trains this run"):
        slurm.Training([sys.executable, "-c", ""], tmp_path)()
