"""Every case of the table in tests/bad_input: one clear line with the remedy, or a counted skip, or it simply works."""

import resource
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.bad_input.judge import judge, run_case
from tests.bad_input.place import Kit, Place
from tests.bad_input.table import all_cases
from util import hpo

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
    shutil.rmtree(folder)


@pytest.fixture
def bounded(monkeypatch):
    """A case that would fill the machine's memory fails instead; a database that can't be opened is not tried for long."""
    monkeypatch.setattr(hpo, "OPENING_TRIES", 1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case(case, place, bounded):
    judge(case, place, run_case(case, place))


@pytest.mark.parametrize("case", [case for case in CASES if case.real], ids=lambda case: case.id)
def test_case_through_a_real_start(case, place):
    judge(case, place, run_case(case, place, real=True))
