"""Optuna's side of a search: proposals, the study, trials that are neither lost nor doubled, what comes out.

The main process alone talks to the storage. What a trial runs is handed in by the caller (jobs/search.py).

A trial's lease: Optuna's own heartbeat knows databases only, so the process that runs a trial writes into it
until when it may be believed to live, and renews that every epoch. A trial whose lease is over, or whose
process on this very machine is gone, was killed: it is marked failed and its parameters are put in the queue
again.
"""

import contextlib
import hashlib
import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
import pandas as pd
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from util.core.disk import append_whole, reason
from util.core.errors import InputError, RunError
from util.core.run_files import write_whole
from util.options.training import OneOf, Space
from util.report.charts import save_figure

LEASE_S, EPOCHS_A_LEASE = 300.0, 5  # a lease lasts at least so long, and so many of the longest epoch
NO_LEASE_S = 60.0  # a running trial without a lease was killed between two lines of ours
MOST_STARTS = 3  # of one set of parameters: what kills its process every time is not tried for ever
OPENING_TRIES = 6  # several processes may make a database's tables at once, and all but one of them then fail

optuna.logging.set_verbosity(optuna.logging.WARNING)


def proposals(trial: optuna.Trial, space: Space) -> dict[str, float | str | None]:
    """What is proposed to a trial, in the order of the space (util/options/training.py)."""
    found: dict[str, float | str | None] = {}
    for name, row in space.items():
        if isinstance(row, OneOf):
            if row.only_with is None or found.get(row.only_with[0], row.only_with[1]) == row.only_with[1]:
                found[name] = trial.suggest_categorical(name, row.values)
        elif row.whole:
            found[name] = trial.suggest_int(name, int(row.low), int(row.high), log=row.log)
        else:
            found[name] = trial.suggest_float(name, row.low, row.high, log=row.log)
    return found


def number_from(*parts: object) -> int:
    """A seed, 32 bits, from whatever it belongs to."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "little")


# ---- the study ---------------------------------------------------------------------------------------------

class WholeJournal(JournalFileBackend):
    """Optuna's journal file (a JSON object a line), whose lines are added whole or not at all. OSError where
    it can't be written; it is then as long as before.

    Optuna's own writer leaves half a line where the disk gets full, the next line is added to it, and the
    study can't be read any more.
    """

    def __init__(self, place: str) -> None:
        self._place, self._lines = Path(place), JournalFileSymlinkLock(place)
        super().__init__(place, self._lines)

    def append_logs(self, logs: list[dict]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._lines.acquire()
        try:
            append_whole(self._place, lines.encode())
        finally:
            self._lines.release()


def open_storage(place: str) -> optuna.storages.BaseStorage:
    """A storage from `--optuna_storage`: a database's URL (sqlite, PostgreSQL), or the path of a journal
    file. InputError."""
    if "://" not in place:
        with _written(place):
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            return optuna.storages.JournalStorage(WholeJournal(place))
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        url = make_url(place)
    except ArgumentError as error:
        raise InputError("--optuna_storage is no address of a database: write sqlite:///FILE or "
                         "postgresql://USER@HOST/NAME") from error
    shown = url.render_as_string(hide_password=True)
    if url.drivername == "postgresql":
        url = url.set(drivername=f"postgresql+{_postgres_driver(shown)}")
    engine: dict[str, object] = {"pool_pre_ping": True}
    if url.drivername.startswith("sqlite"):
        engine = {"connect_args": {"timeout": 60}}  # waits for another process's writing instead of failing
        with _written(place):
            Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
    for left in reversed(range(OPENING_TRIES)):
        try:
            return optuna.storages.RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=engine)
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0][:160]
            if not left:
                raise InputError(f"--optuna_storage {shown}: can't be opened ({reason})") from error
            time.sleep(0.5 * (1 + os.getpid() % 7 / 7))
        except ImportError as error:
            raise InputError(f"--optuna_storage {shown}: its driver is not installed ({error})") from error


@contextlib.contextmanager
def _written(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"--optuna_storage {place}: can't be written ({error.strerror})") from error


def _postgres_driver(shown: str) -> str:
    from importlib.util import find_spec

    found = list(filter(find_spec, ("psycopg", "psycopg2")))
    if not found:
        raise InputError(f"--optuna_storage {shown}: PostgreSQL needs a driver; run: pip install "
                         "'psycopg[binary]'")
    return found[0]


def open_study(storage: optuna.storages.BaseStorage, name: str, direction: str, job: dict, resume: bool,
               pruner: str) -> optuna.Study:
    """The study of that name, made where it is not there. job: what its values depend on, plain; a study made
    for another is an error. InputError also where it is there and `resume` was not asked for."""
    if name in optuna.get_all_study_names(storage) and not resume:
        raise InputError(f"a study named {name} is already in the storage: go on with it by --optuna_resume, "
                         "or name another with --optuna_study_name")
    pruners = {"none": optuna.pruners.NopPruner, "median": optuna.pruners.MedianPruner}
    study = optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True,
                                pruner=pruners[pruner]())
    if study.direction.name.lower() != direction:
        raise InputError(f"the study {name} is to be {study.direction.name.lower()}d, not {direction}d: name "
                         "another with --optuna_study_name")
    job = json.loads(json.dumps(job))  # as the storage gives it back
    made_for = study.user_attrs.get("job")
    if made_for is None:
        study.set_user_attr("job", job)
        return study
    made_for = {"folds": None} | made_for  # what studies of before don't say is not compared
    changed = [f"{key} {made_for[key]} -> {value}" for key, value in job.items()
               if key in made_for and made_for[key] != value]
    if changed:
        raise InputError(f"the study {name} was made for another job ({'; '.join(changed)}): its values "
                         "don't compare; name another with --optuna_study_name")
    return study


# ---- trials ------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Settings:
    """How a search goes about its trials."""

    total: int
    seed: int
    sampler: str
    space: Space
    ends_at: float | None = None  # by time.monotonic()


def process_start(pid: int) -> str:
    """When a process of this machine began, in the kernel's ticks: tells it from a later one of the same
    number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def lease(seconds: float) -> dict:
    return {"host": platform.node(), "pid": os.getpid(), "started": process_start(os.getpid()),
            "until": time.time() + seconds}


def lease_length(longest_epoch: float) -> float:
    return max(LEASE_S, EPOCHS_A_LEASE * longest_epoch)


def is_alive(trial: FrozenTrial) -> bool:
    """Whether a running trial's process can still be believed to live."""
    held, begun = trial.user_attrs.get("lease"), trial.datetime_start
    if held is None:
        return begun is not None and time.time() - begun.timestamp() < NO_LEASE_S
    if held["host"] == platform.node() and Path("/proc").is_dir():
        return bool(held["started"]) and process_start(held["pid"]) == held["started"]
    return time.time() < held["until"]


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of the study's total: ended by itself, or running."""
    if trial.state == TrialState.RUNNING:
        return is_alive(trial)
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or bool(reason_of(trial))


def reason_of(trial: FrozenTrial) -> str:
    """Why a trial is marked failed for good; '' for any other, also one whose parameters are queued again."""
    starts = trial.user_attrs.get("starts", 1)
    was_killed = (trial.state == TrialState.FAIL and starts >= MOST_STARTS
                  and "surplus" not in trial.user_attrs)
    return trial.user_attrs.get("reason", f"its process was killed {starts} times" if was_killed else "")


def take_back_killed(study: optuna.Study) -> list[str]:
    """Put the parameters of killed trials in the queue again; lines for the user. Of several processes that
    see the same one, only that which marks it failed queues it."""
    lines = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if is_alive(trial):
            continue
        starts = trial.user_attrs.get("starts", 1)
        try:
            study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, RuntimeError):  # another process was quicker
            continue
        if starts >= MOST_STARTS:
            lines.append(f"trial {trial.number} was killed {starts} times: it is marked failed and not tried "
                         "again")
            continue
        if trial.params:
            origin = trial.user_attrs.get("origin", trial.number)
            study.enqueue_trial(trial.params, user_attrs={"origin": origin, "starts": starts + 1})
        lines.append(f"trial {trial.number} was left running by a process that is gone: its parameters are "
                     "in the queue again")
    return lines


def next_trial(study: optuna.Study, settings: Settings,
               say: Callable[[str], object]) -> tuple[optuna.Trial, dict] | None:
    """The next trial and its parameters; None where the total is reached or the time is over. Waits while
    other processes run the last ones, since one of them may be killed."""
    said = False
    while True:
        for line in take_back_killed(study):
            say(line)
        trials = study.get_trials(deepcopy=False)
        if settings.ends_at is not None and time.monotonic() > settings.ends_at:
            return None
        if sum(map(counts, trials)) >= settings.total:
            running = sum(trial.state == TrialState.RUNNING for trial in trials)
            if not running:
                return None
            if not said:
                say(f"waiting for {running} trials that other processes run")
            said = True
            time.sleep(2.0)
            continue
        trial = study.ask()
        trial.set_user_attr("lease", lease(LEASE_S))
        before = [other for other in study.get_trials(deepcopy=False) if other.number < trial.number
                  and counts(other)]
        if len(before) >= settings.total:  # two processes asked for the last one together
            trial.set_user_attr("surplus", True)
            study.tell(trial, state=TrialState.FAIL)
            continue
        study.sampler = sampler_of(settings, trial.number)
        # "origin" stands in a trial that was put in the queue again: what is drawn for it is drawn as the
        # first time
        return trial, proposals(trial, settings.space)


def sampler_of(settings: Settings, number: int) -> optuna.samplers.BaseSampler:
    """A sampler for one trial: what it proposes depends on the study's seed, the trial's number and the
    trials before, not on which process asks or on how often a search was launched."""
    seed = number_from("sampler", settings.seed, number)
    if settings.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def trial_seed(settings: Settings, trial: optuna.Trial) -> int:
    return number_from("trial", settings.seed, trial.user_attrs.get("origin", trial.number))


# ---- what comes out ----------------------------------------------------------------------------------------

def best_of(study: optuna.Study) -> FrozenTrial | None:
    sign = 1 if study.direction.name == "MAXIMIZE" else -1
    return max(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)), default=None,
               key=lambda trial: (sign * trial.value, -trial.number))


def write_results(study: optuna.Study, folder: Path, metric: str, epochs: int,
                  folds: int | None = None) -> None:
    """optuna_best.json, in a form that --params takes back, and optuna_trials.csv. RunError where the disk is
    full."""
    best = best_of(study)
    try:
        if best is not None:
            content = {"value": best.value, "params": best.params, "metric": metric,
                       "direction": study.direction.name.lower(), "trial": best.number, "epochs": epochs,
                       "study": study.study_name} | ({"folds": folds} if folds else {})
            write_whole(folder / "optuna_best.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        write_whole(folder / "optuna_trials.csv",
                    trials_table(study).to_csv(index=False, lineterminator="\n"))
    except OSError as error:
        raise RunError(f"{folder} can't be written ({reason(error)}): the trials are safe in the storage; "
                       "make room and go on with --optuna_resume") from error


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """A row a trial: number, state, value, seconds, reason, then its parameters and, if scored, its metrics
    of test."""
    return pd.DataFrame([
        {"trial": trial.number, "state": trial.state.name.lower(), "value": trial.value,
         "seconds": trial.duration.total_seconds() if trial.duration else None,
         "best_epoch": trial.user_attrs.get("best_epoch"), "reason": reason_of(trial),
         **trial.params, **trial.user_attrs.get("test", {})} for trial in study.get_trials(deepcopy=False)])


def draw(study: optuna.Study, folder: Path, value: str) -> list[str]:
    """optuna_history.png, optuna_importances.png, optuna_slices.png by Optuna's own plots; lines about what
    lacks. value: what a trial's is, in words."""
    import matplotlib
    from matplotlib.ticker import NullFormatter

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < 2:
        return [f"{len(done)} finished trials: too few for images of the search"]
    notes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, plot in (("history", plots.plot_optimization_history),
                           ("importances", plots.plot_param_importances),
                           ("slices", plots.plot_slice)):
            try:
                axes = plot(study, target=lambda trial: trial.value, target_name=value)
            # importances of trials that all came to the same value
            except (ValueError, RuntimeError) as error:
                notes.append(f"no image of the {name}: {str(error).splitlines()[0]}")
                continue
            figure = axes.flat[0].figure if hasattr(axes, "flat") else axes.figure
            if name == "slices":
                figure.set_size_inches(2.6 * len(axes), 3.2)
                for axis in axes.flat:
                    axis.xaxis.set_minor_formatter(NullFormatter())  # of logarithmic axes: they would overlap
            notes += save_figure(figure, folder / f"optuna_{name}.png")
            pyplot.close(figure)
    return notes
