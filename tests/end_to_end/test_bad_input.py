"""Every case of the table in tests/bad_input: one clear line with the remedy, or a counted skip, or it simply
works."""

import os
import resource
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.bad_input import flags
from tests.bad_input.judge import judge, run_case
from tests.bad_input.place import Kit, Place, predicting, started, train
from tests.bad_input.table import all_cases
from util.study import optuna_study

CASES = all_cases()
MEMORY = 6 * 2**30  # address space that a case may take beside what is taken already


@pytest.fixture(scope="module")
def kit():
    """Not below pytest's own folder, which other users may not enter: some cases start as another one."""
    folder = Path(tempfile.mkdtemp(prefix="bad-input-"))
    folder.chmod(0o755)
    (folder / "kit").mkdir()
    yield Kit(folder / "kit")
    shutil.rmtree(folder)


@pytest.fixture
def place(kit, request):
    folder = Path(tempfile.mkdtemp(dir=kit.folder.parent))
    folder.chmod(0o777)
    yield Place(folder, kit)
    for above, names, _ in os.walk(folder):
        for name in names:
            if not os.path.islink(os.path.join(above, name)):
                os.chmod(os.path.join(above, name), 0o700)  # some cases take their rights away
    shutil.rmtree(folder)


@pytest.fixture
def bounded(monkeypatch):
    """A case that would fill the machine's memory fails instead; a database that can't be opened is not tried
    for long."""
    monkeypatch.setattr(optuna_study, "OPENING_TRIES", 1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case(case, place, bounded):
    judge(case, place, run_case(case, place))


REAL = [case for case in CASES if case.real]


@pytest.mark.parametrize("case", [REAL[0], *(pytest.param(case, marks=pytest.mark.slow) for case in REAL[1:])],
                         ids=lambda case: case.id)
def test_case_through_a_real_start(case, place):
    judge(case, place, run_case(case, place, real=True))


LONG, ODD = "x" * 3000, "\udcff\n\x1b[31m"  # no file, no name of anything


def odd_words(program: str):
    """(flag, words) of a program's flags, each with values that its parser may take and nobody means."""
    known = (
        set() if program == "main_finetune.py" else {flag for flag, _ in flags.flags_of("main_finetune.py")}
    )
    for flag, action in flags.flags_of(program):
        if flag in known or flag in ("--finetune", "--device", "--dist_url"):
            continue
        for word in [str(10**30)] if flags.is_number(action) else [] if action.choices else [LONG, ODD, ""]:
            yield flag, flags.spoken(action, word)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["main_finetune.py", "main_regression.py", "predict.py",
                                     "latent_feature.py"])
def test_no_value_of_a_flag_ends_in_a_traceback(program, kit, place, bounded, monkeypatch):
    """Also of flags that will be: whatever a parser lets through is refused in a line, or does no harm."""
    monkeypatch.chdir(place.folder)
    place.data()
    place.some_pictures()
    ends = {"main_finetune.py": train(place, "--data_path", "data"),
            "predict.py": predicting(place, "pictures"),
            "main_regression.py": train(place, "--csv_file", kit.csv, "--targets", "depth", "--finetune", ""),
            "latent_feature.py": flags.DATA_FREE["latent_feature.py"]}
    for flag, words in odd_words(program):
        ended = started(program, [*ends[program], flag, *words])
        assert ended.code in (0, 1, 2) and "Traceback" not in ended.err, (flag, words[0][:40], ended)
        assert ended.code == 0 or ended.err.startswith("error: ") and ended.err.count("\n") == 1, (
            flag,
            ended.err,
        )
