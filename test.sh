#!/bin/sh
# Runs the checks and the tests. Arguments go to pytest: sh test.sh tests/test_metrics.py -k kappa
set -eu
ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
. "$ROOT/util/env.sh"
cd "$ROOT"

# pytest and ruff are the developers' needs: they go into a folder of their own, never into the user's environment.
if ! environment "$PYTHON" unmet requirements-test.txt >/dev/null; then
    environment "$PYTHON" target "$ROOT/.test-packages" "$ROOT/requirements-test.txt"
    PYTHONPATH=$ROOT/.test-packages${PYTHONPATH:+:$PYTHONPATH}
    export PYTHONPATH
fi

"$PYTHON" -m ruff check
exec "$PYTHON" -m pytest "$@"
