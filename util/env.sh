# shellcheck shell=sh
# Sourced by the commands at the top, in plain sh: sets PYTHON to an interpreter that satisfies requirements.txt.
#
#   ROOT=...the clone...; . "$ROOT/util/env.sh"; "$PYTHON" main_finetune.py
#
# PYTHON from the environment is taken as it is, or refused. Otherwise the active Python (python3, then python) is used
# where it satisfies requirements.txt, else .venv in the clone, which util/environment.py makes. Nothing is ever
# installed into a Python that the user made. Ends with 2 for what the user can mend, 1 where the installation failed.

stop() {
    printf '%s\n' "$1" >&2
    exit 2
}

# environment PYTHON ARGUMENTS...: runs util/environment.py; 3 where that Python is too old to read it. One start, since
# every command begins with it; it runs without the folder of the file on sys.path, where util's rooms would be found.
environment() {
    interpreter=$1
    shift
    "$interpreter" -c 'import sys
if sys.version_info < (3, 11):
    sys.exit(3)
import runpy
sys.path[:] = [folder for folder in sys.path if folder]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")' "$ROOT/util/environment.py" "$@"
}

if [ -n "${PYTHON:-}" ]; then
    case $PYTHON in
        /*) ;;
        */*) PYTHON=$PWD/$PYTHON ;; # stays right when a script changes folder
    esac
    if ! lacking=$(environment "$PYTHON" unmet "$ROOT/requirements.txt" 2>/dev/null); then
        [ -n "$lacking" ] || stop "PYTHON=$PYTHON is not a Python of 3.11 or newer; name another or unset PYTHON"
        stop "PYTHON=$PYTHON lacks $lacking; install requirements.txt there, or unset PYTHON to have a .venv made"
    fi
else
    # The active one; where that is too old, one that stands beside it can still make a .venv.
    active=
    for name in python3 python python3.13 python3.12 python3.11 python3.14; do
        if lacking=$(environment "$name" unmet "$ROOT/requirements.txt" 2>/dev/null); then
            PYTHON=$name
            break
        elif [ -n "$lacking" ]; then
            active=$name
            break
        fi
    done
    if [ -z "${PYTHON:-}" ]; then
        PYTHON=$ROOT/.venv/bin/python
        if [ -x "$PYTHON" ] && environment "$PYTHON" ready "$ROOT" 2>/dev/null; then
            printf '%s\n' "Python: $PYTHON" >&2
        elif [ -n "$active" ]; then
            printf '%s\n' "$active lacks $lacking" >&2
            environment "$active" make "$ROOT" || exit $?
        else
            found=$(python3 --version 2>&1) || found="no python3"
            stop "Python 3.11 or newer is needed, found: $found; install one, or name it: PYTHON=/path/to/python3.11"
        fi
    fi
fi
