"""Feature vectors on the disk: an .npz of numpy, or a .parquet table; written whole or not at all, read back
by anybody."""

import os
from pathlib import Path

import numpy as np

from util.core.disk import replacing
from util.core.errors import InputError

ROWS_A_GROUP = 4096  # of a parquet file: what is in memory at once
FACTS = "facts"


def require_parquet() -> None:
    """InputError where .parquet can't be written here."""
    try:
        import pyarrow.parquet  # noqa: F401  (60 MB: only where it is asked for)
    except ImportError:
        raise InputError("a .parquet file needs pyarrow, which is not installed: pip install -r "
                         "requirements-parquet.txt, or name the --output FILE.npz") from None


def write_features(path: str | os.PathLike, paths: list[str], arrays: dict[str, np.ndarray],
                   facts: str) -> None:
    """paths (N,) and arrays {name: (N, D) float32, possibly mapped from the disk} -> FILE.npz or
    FILE.parquet.

    facts: a JSON text, stored as the array "facts" or as the table's metadata of that name. OSError where the
    disk is full.
    """
    write = _write_parquet if Path(path).suffix.lower() == ".parquet" else _write_npz
    with replacing(path) as temporary:
        write(temporary, paths, arrays, facts)


def _write_npz(path: Path, paths: list[str], arrays: dict[str, np.ndarray], facts: str) -> None:
    with open(path, "wb") as file:
        # copies 16 MB at a time
        np.savez(file, paths=np.array(paths, dtype=np.str_), **arrays, **{FACTS: np.array(facts)})


def _write_parquet(path: Path, paths: list[str], arrays: dict[str, np.ndarray], facts: str) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    columns = [pyarrow.field(name, pyarrow.list_(pyarrow.float32(), values.shape[1]))
               for name, values in arrays.items()]
    schema = pyarrow.schema([pyarrow.field("paths", pyarrow.string()), *columns], metadata={FACTS: facts})
    with ParquetWriter(path, schema) as writer:
        for start in range(0, len(paths), ROWS_A_GROUP):
            part = slice(start, start + ROWS_A_GROUP)
            vectors = [pyarrow.FixedSizeListArray.from_arrays(
                           pyarrow.array(np.ascontiguousarray(values[part]).reshape(-1)), values.shape[1])
                       for values in arrays.values()]
            names = pyarrow.array(paths[part], pyarrow.string())
            writer.write_table(pyarrow.Table.from_arrays([names, *vectors], schema=schema))
