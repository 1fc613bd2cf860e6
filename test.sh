#!/bin/sh
# Runs the checks and the tests.
#   sh test.sh          all but the slow ones
#   sh test.sh quick    the short ones alone: no whole runs, no models at full size
#   sh test.sh -m slow  what else .ci/run runs; arguments go to pytest: sh test.sh tests/metrics -k kappa
set -eu
ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
. "$ROOT/util/env.sh"
cd "$ROOT"

# pytest and ruff are the developers' needs: they go into a folder of their own, never into the user's
# environment.
if ! environment "$PYTHON" unmet requirements-test.txt >/dev/null; then
    environment "$PYTHON" target "$ROOT/.test-packages" "$ROOT/requirements-test.txt"
    PYTHONPATH=$ROOT/.test-packages${PYTHONPATH:+:$PYTHONPATH}
    export PYTHONPATH
fi

"$PYTHON" -m ruff check
"$PYTHON" -c "from importlinter.cli import lint_imports_command; lint_imports_command()" --no-cache
cores=$(getconf _NPROCESSORS_ONLN)
case "$#${1:-}" in
    0) chosen="not slow" processes=$((cores + 1)) ;;  # many of the tests wait
    1quick) chosen="not slow and not long" processes=$cores ;;
    *) chosen= ;;
esac
if [ -n "$chosen" ]; then # files beside each other, with one thread each
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    export OMP_NUM_THREADS
    set -- -m "$chosen" -n "$processes" --maxprocesses 5 \
        --dist loadfile --no-loadscope-reorder
fi
exec "$PYTHON" -m pytest "$@"
