"""The study: proposals, totals, killed trials taken back, results; with a storage of each kind."""

import json
import os
import time
from functools import partial

import optuna
import pytest
from optuna.trial import TrialState

from tests.conftest import needs_package
from util.core.errors import InputError
from util.options.flag import FINETUNE, REGRESSION
from util.options.table import FLAGS
from util.options.training import SPACES
from util.study import optuna_study

JOB = {"metric": "r2", "epochs": 3}


def settings(total=3, seed=0, sampler="tpe", program=REGRESSION):
    return optuna_study.Settings(total, seed, sampler, SPACES[program])


@pytest.fixture(params=["sqlite", "journal"])
def place(request, tmp_path):
    return f"sqlite:///{tmp_path}/o.db" if request.param == "sqlite" else str(tmp_path / "journal.log")


def study_in(place, resume=False, direction="maximize", job=JOB, pruner="none"):
    return optuna_study.open_study(optuna_study.open_storage(place), "s", direction, job, resume, pruner)


def run_all(study, settings, value=lambda trial, params: -abs(params["lr"] - 1e-3)):
    """Run the search with a function in the place of training -> [(number, parameters, seed)]."""
    done, lines = [], []
    while (found := optuna_study.next_trial(study, settings, lines.append)) is not None:
        trial, params = found
        done.append((trial.number, params, optuna_study.trial_seed(settings, trial)))
        study.tell(trial, value(trial, params))
    return done, lines


def test_spaces_are_the_contracts():
    real, log, one_of = (optuna.distributions.FloatDistribution, {"log": True},
                         optuna.distributions.CategoricalDistribution)
    trial = optuna.create_study().ask()
    assert list(optuna_study.proposals(trial, SPACES[REGRESSION])) == list(SPACES[REGRESSION])
    assert trial.distributions == {
        "lr": real(5e-5, 5e-3, **log), "weight_decay": real(1e-6, 0.1, **log), "layer_decay": real(0.4, 0.95),
        "drop_path": real(0.0, 0.4), "head_dropout": real(0.0, 0.5), "head_mlp_ratio": real(1.0, 4.0),
        "head_depth": optuna.distributions.IntDistribution(1, 4), "huber_beta": real(0.5, 2.0),
        "head_num_heads": one_of((2, 4, 8))}
    study = optuna.create_study()
    study.enqueue_trial({"class_weights": "none"})
    trial = study.ask()
    assert list(optuna_study.proposals(trial, SPACES[FINETUNE])) == list(SPACES[FINETUNE])
    assert trial.distributions == {
        "blr": real(5e-4, 5e-3, **log), "weight_decay": real(1e-6, 5e-2, **log), "drop_path": real(0.0, 0.4),
        "layer_decay": real(0.5, 1.0), "smoothing": real(0.0, 0.15), "accum_iter": one_of((1, 2)),
        "class_weights": one_of(("none", "balanced")), "balanced_sampling": one_of((False, True))}


def test_classes_are_never_evened_out_twice():
    asked = settings(30, sampler="random", program=FINETUNE)
    done, _ = run_all(optuna.create_study(), asked, lambda trial, params: trial.number)
    together = [(params["class_weights"], params.get("balanced_sampling")) for _, params, _ in done]
    assert set(together) == {("balanced", None), ("none", True), ("none", False)}


@pytest.mark.parametrize("program", SPACES)
def test_every_proposal_is_what_its_flag_takes(program):
    for row, name in ((row, name) for name, row in SPACES[program].items()):
        flag = FLAGS[name].in_program(program)
        ends = getattr(row, "values", None) or (row.low, row.high)
        assert all(flag.accepts(end) for end in ends), name


def test_total_is_of_the_study_and_the_same_whoever_asks(place, tmp_path):
    whole, _ = run_all(study_in(place), settings(5))
    assert [number for number, _, _ in whole] == [0, 1, 2, 3, 4]
    assert run_all(study_in(place, resume=True), settings(5))[0] == []
    other = f"sqlite:///{tmp_path}/other.db"
    first, _ = run_all(study_in(other), settings(2))
    rest, _ = run_all(study_in(other, resume=True), settings(5))  # a second start adds what is missing
    assert first + rest == whole
    different, _ = run_all(study_in(f"sqlite:///{tmp_path}/third.db"), settings(2, seed=1))
    assert different[0][1] != whole[0][1] and different[0][2] != whole[0][2]


def test_a_study_is_not_continued_by_accident_or_for_another_job(place):
    study_in(place)
    with pytest.raises(InputError, match="--optuna_resume"):
        study_in(place)
    with pytest.raises(InputError, match="epochs 3 -> 4"):
        study_in(place, resume=True, job=JOB | {"epochs": 4})
    with pytest.raises(InputError, match="folds None -> 5"):  # there were no folds before it said so
        study_in(place, resume=True, job=JOB | {"folds": 5})
    study_in(place, resume=True, job=JOB | {"--crop_scale": (0.3, 1.0)})  # what it does not say
    cropped = JOB | {"--crop_scale": (0.3, 1.0)}
    opened = partial(optuna_study.open_study, optuna_study.open_storage(place), "t", "maximize", pruner="none")
    opened(job=cropped, resume=False)
    opened(job=cropped, resume=True)
    with pytest.raises(InputError, match=r"--crop_scale \[0.3, 1.0\] -> \[0.08, 1.0\]"):
        opened(job=cropped | {"--crop_scale": (0.08, 1.0)}, resume=True)
    with pytest.raises(InputError, match="maximized, not minimized"):
        study_in(place, resume=True, direction="minimize")


def kill(study, hold):
    """Leave a trial running as a process that was killed leaves it."""
    trial = study.ask()
    params = optuna_study.proposals(trial, SPACES[REGRESSION])
    if hold is not None:
        trial.set_user_attr("lease", hold)
    return trial.number, params


def test_killed_trials_are_run_again_neither_lost_nor_doubled(place):
    study = study_in(place)
    dead = optuna_study.lease(1000) | {"started": "1"}  # this machine's, of a process that is no more
    over = {"host": "elsewhere", "pid": 1, "started": "1", "until": time.time() - 1}
    left = [kill(study, dead), kill(study, over)]
    done, lines = run_all(study, settings(4))
    assert len(done) == 4 and sum("was left running" in line for line in lines) == 2
    assert [params for _, params, _ in done[:2]] == [params for _, params in left]
    assert [seed for _, _, seed in done[:2]] == [optuna_study.number_from("trial", 0, number)
                                                 for number, _ in left]
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.COMPLETE) == 4 and states.count(TrialState.FAIL) == 2
    assert sum(map(optuna_study.counts, study.trials)) == 4


def test_a_trial_that_lives_elsewhere_counts_and_is_left_alone(place):
    study = study_in(place)
    alive = {"host": "elsewhere", "pid": 1, "started": "1", "until": time.time() + 1.0}
    number, params = kill(study, alive)
    begun = time.monotonic()
    done, lines = run_all(study, settings(2))  # waits for it, and runs it when its lease is over
    assert len(done) == 2 and time.monotonic() - begun >= 0.9
    assert "waiting for 1 trials" in lines[0] and done[1][1] == params


def test_what_kills_its_process_every_time_is_given_up(place):
    study = study_in(place)
    for _ in range(optuna_study.MOST_STARTS):
        optuna_study.take_back_killed(study)
        kill(study, optuna_study.lease(1000) | {"started": "1"})
    assert "not tried again" in optuna_study.take_back_killed(study)[0]
    assert sum(map(optuna_study.counts,
                   study.trials)) == 1 and not study.get_trials(states=(TrialState.WAITING,))
    reasons = optuna_study.trials_table(study)["reason"].tolist()
    assert reasons == [
        *[""] * (optuna_study.MOST_STARTS - 1),
        f"its process was killed {optuna_study.MOST_STARTS} times",
    ]


def test_own_running_trial_is_alive():
    held = optuna_study.lease(0)
    assert held["pid"] == os.getpid() and held["started"] == optuna_study.process_start(os.getpid())
    study = optuna.create_study()
    trial = study.ask()
    trial.set_user_attr("lease", held)
    assert optuna_study.is_alive(study.trials[0])


@pytest.mark.parametrize("pruner, expected", [("none", False), ("median", True)])
def test_none_never_prunes(place, pruner, expected):
    study = study_in(place, pruner=pruner)
    for _ in range(6):
        trial = study.ask()
        trial.report(1.0, 0)
        study.tell(trial, 1.0)
    trial = study.ask()
    trial.report(0.0, 0)
    assert bool(trial.should_prune()) is expected


def test_results(place, tmp_path):
    study = study_in(place)
    done, _ = run_all(study, settings(4))
    failed = study.ask()
    failed.set_user_attr("reason", "diverged")
    study.tell(failed, state=TrialState.FAIL)
    optuna_study.write_results(study, tmp_path, "r2", 3)
    best = json.loads((tmp_path / "optuna_best.json").read_text())
    assert best["params"] == max(done, key=lambda entry: -abs(entry[1]["lr"] - 1e-3))[1]
    assert {name: best[name] for name in ("metric", "direction", "epochs", "study")} == {
        "metric": "r2", "direction": "maximize", "epochs": 3, "study": "s"}
    table = optuna_study.trials_table(study)
    assert list(table["state"]) == ["complete"] * 4 + ["fail"] and table["reason"][4] == "diverged"
    assert optuna_study.draw(study, tmp_path, "r2") == []
    for name in ("history", "importances", "slices"):
        assert (tmp_path / f"optuna_{name}.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "place, says",
    [
        ("postgresql://u:secret@127.0.0.1:1/x", "can't be opened"),
        ("nonsense://", "no address of a database|can't be opened"),
        ("/proc/nothing/j.log", "can't be written"),
        ("sqlite:////proc/nothing/o.db", "can't be"),
    ],
)
def test_a_storage_that_does_not_open_is_one_line_without_the_password(place, says, monkeypatch):
    needs_package("psycopg") if place.startswith("postgresql") else None
    monkeypatch.setattr(optuna_study, "OPENING_TRIES", 1)
    with pytest.raises(InputError, match=says) as caught:
        optuna_study.open_storage(place)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_no_trial_is_begun_when_the_time_is_over(place):
    late = optuna_study.Settings(3, 0, "random", SPACES[REGRESSION], ends_at=time.monotonic() - 1)
    study = study_in(place)
    assert run_all(study, late) == ([], []) and study.trials == []
