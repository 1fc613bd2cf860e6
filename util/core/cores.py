"""How many CPU cores there are to use."""

import os


def usable_cores() -> int:
    """CPU cores that this process may use; all of the machine's on systems that don't say (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
