"""Speed and memory, each against the plain way of doing the same, in one run. Start with
benchmarks/speed.py."""

import os
from pathlib import Path


def project_environment(**variables: str) -> dict[str, str]:
    """The environment of a program of the project that a benchmark starts: the project in front of the
    folders of packages that this Python was given by PYTHONPATH, which the program needs as well."""
    folders = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))} | variables
