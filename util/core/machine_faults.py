"""What a machine does to a run, told in one line: a loader process that was killed, shared memory or memory
that is full, too many open files, a GPU that fails, output that nobody reads."""

import atexit
import contextlib
import os
import re
import sys
from collections.abc import Iterator
from types import TracebackType

from util.core.errors import RunError

SHARED_MEMORY = ("the shared memory of this machine (/dev/shm) is too small for the loader processes: give "
                 "it more (docker run --shm-size=8g), or pass --num_workers 0, which needs none")
MEMORY = "the machine's memory is full: lower --batch_size or --num_workers"
DEVICE_MEMORY = ("the device's memory is full: lower --batch_size (in a training raise --accum_iter alike, "
                 "which keeps the effective batch; --batch_size auto finds the largest, --dry_run estimates "
                 "the need), or see with nvidia-smi what else runs there")
# What torch's and Python's messages say -> what we say. The first that is found counts.
KNOWN = (
    (r"DataLoader worker.*killed by signal: Bus error|"
     r"unable to (allocate|write|open|mmap|resize).*(shm|torch_|shared memory)|out of shared memory",
     SHARED_MEMORY),
    (r"DataLoader worker.*killed by signal: Killed",
     "a loader process was killed, as Linux does where the machine's memory is full: lower --num_workers "
     "(each has a copy of what it reads), or --batch_size"),
    (r"DataLoader worker.*killed by signal: ([^.]*)\.",
     r"a loader process was ended by a signal (\1): pass --num_workers 0 to see whether an image does it"),
    (r"DataLoader worker.*exited unexpectedly",
     "a loader process ended without a word, as where the machine's memory is full: lower --num_workers, or "
     "pass 0 to see what it says"),
    (r"Too many open files|received \d+ items of ancdata",
     "too many open files: raise the limit (ulimit -n 65536), or lower --num_workers"),
    (r"(\S+) does not have a deterministic implementation",
     r"--deterministic: this model needs \1, which gives other bits each time: leave the flag out"),
    (r"can't allocate memory|not enough memory|Cannot allocate memory", MEMORY),
    (r"CU(BLAS|DNN)_STATUS_ALLOC_FAILED|CUDA error: out of memory|MPS backend out of memory", DEVICE_MEMORY),
    (r"no kernel image is available",
     "this PyTorch has no code for this GPU: install a build that has (pytorch.org/get-started), or pass "
     "--device cpu"),
    (r"driver (version is insufficient|on your system is too old)",
     "the NVIDIA driver is older than this PyTorch needs: bring it up to date, or install a PyTorch for it "
     "(pytorch.org/get-started); --device cpu runs without it"),
    (r"ECC error",
     "the GPU reports that its memory is faulty (ECC): have it looked at (nvidia-smi -q -d ECC), and choose "
     "another one (CUDA_VISIBLE_DEVICES)"),
    (r"device(s|\(s\))? (is|are|is/are) busy or unavailable",
     "another process has the GPU for itself: wait for it, or choose another one (CUDA_VISIBLE_DEVICES)"),
    (r"(CUBLAS_STATUS|CUDNN_STATUS|CUDA error|cuda runtime error)(?!.*device-side assert)[ :]*([^\n]*)",
     r"the GPU's own software failed (\1 \2): start again to go on; if it comes back, bring the driver up to "
     r"date, or see with nvidia-smi what else the machine does"),
)


def explain(error: BaseException | None) -> str | None:
    """The line for an error that the machine is to blame for; None for any other."""
    if isinstance(error, MemoryError):
        return MEMORY
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which this module does without
        return DEVICE_MEMORY
    for pattern, line in KNOWN:
        found = re.search(pattern, str(error), re.DOTALL)
        if found:
            return found.expand(line)
    return None


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns such an error into a RunError of one line.

    torch raises the end of a loader's process wherever the main one is just then, so also inside the writing
    of a file, which takes it for the disk's fault.
    """
    try:
        yield
    except (RunError, RuntimeError, MemoryError, OSError) as error:
        cause = error.__cause__ if isinstance(error, RunError) else error
        line = explain(cause)
        if line is None or (cause is not error and not str(cause).startswith("DataLoader worker")):
            raise
        raise RunError(f"{line}; what was saved stays: start again to go on") from error


def unraisable(found: "sys.UnraisableHookArgs") -> None:
    """For sys.unraisablehook. torch tells of a loader's dead worker wherever Python is at that moment; in the
    middle of a finalizer nobody hears it, and the loader says it again at its next batch."""
    if explain(found.exc_value) is None:
        sys.__unraisablehook__(found)


def unanswered(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For sys.excepthook of a loader's process, whose thread for handing over tensors calls it. A connection
    that breaks there means that the main process was killed: who killed it knows."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def speak_utf8() -> None:
    """Start this program again in Python's UTF-8 mode where the locale's encoding is another: names of files
    are bytes in UTF-8 nearly everywhere, and what we write is UTF-8 whatever the locale."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def keep_standard_streams() -> None:
    """Make the standard streams usable whatever a program was started with.

    One that is closed is opened on nothing: else the next file, a checkpoint perhaps, would get its number
    and the warnings of libraries into it. Characters that its encoding lacks are written as escapes. What
    cannot be written at the very end, since nobody reads a pipe any more, is forgotten.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - to the end
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    atexit.unregister(forget_unread)
    atexit.register(forget_unread)


def forget_unread() -> None:
    """Leave nothing in the buffer of a stream that fails: Python would say so once more at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except ValueError:
            continue  # closed
