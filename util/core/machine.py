"""This machine: cores and memory that a process may take, and what its allocator does with what is freed."""

import ctypes
import os
from pathlib import Path


def usable_cores() -> int:
    """CPU cores that this process may use (macOS doesn't say, and all count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_bytes() -> int:
    """Memory of this machine that a process may still take: what Linux calls available, at most what the
    container's limit leaves; elsewhere half of the machine's."""
    lines = _numbers("/proc/meminfo")
    if "MemAvailable:" not in lines:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    found = 1024 * lines["MemAvailable:"]
    for limit, used in (("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
                        ("/sys/fs/cgroup/memory/memory.limit_in_bytes",
                         "/sys/fs/cgroup/memory/memory.usage_in_bytes")):
        most, taken = _numbers(limit).get(""), _numbers(used).get("")
        if most is not None and taken is not None:  # "max": no limit
            found = min(found, max(0, most - taken))
    return found


def _numbers(path: str) -> dict[str, int]:
    """{first word: number that follows} of a file's lines, "" for a line that is a number; {} where there is
    no such file."""
    try:
        words = [line.split() for line in Path(path).read_text(encoding="ascii").splitlines()]
    except OSError:
        return {}
    words = [["", *line] if len(line) == 1 else line for line in words]
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdecimal()}


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed instead of giving it back to the system; False where there is no
    glibc.

    A layer's output is larger than what malloc keeps by itself, so that each is mapped, cleared page by page
    and given back: a third of a forward pass on CPUs. The most memory that a process takes stays the same.
    """
    return _set_malloc(trim_threshold=2**31 - 1, mmap_threshold=2**30)


def give_back_freed_memory() -> bool:
    """The contrary, for a sharded model: blocks that are gathered and freed leave holes, into which the next
    does not fit."""
    return _set_malloc(trim_threshold=2**20, mmap_threshold=2**20)


def _set_malloc(trim_threshold: int, mmap_threshold: int) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
    return bool(mallopt(m_trim_threshold, ctypes.c_int(trim_threshold))
                and mallopt(m_mmap_threshold, ctypes.c_int(mmap_threshold)))
