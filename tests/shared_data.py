"""The real data that the checkout does not hold: it lies beside the checkout, and tests that need it are left
out elsewhere."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "shared" / "data"  # beside the repository's root


def shared_data(name: str) -> Path:
    """A folder or file of shared/data; where it is not there, the test (or the module, at import) is left out
    and says why."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"real data not here: ../shared/data/{name} does not lie beside the "
                    "checkout", allow_module_level=True)
    return path
