#!/bin/sh
# Searches settings, of a regression or of a classification, then trains with what it found. With nothing set it is a
# demo on drawn images; for your own:
#
#   CSV_FILE=/data/retina.csv TARGETS="tc ldl hdl" sh search.sh                 all GPUs of this machine, or its CPU
#   CSV_FILE=/data/retina.csv TARGETS="tc ldl hdl" sh search.sh --batch_size 16  flags of main_regression.py may follow
#   CSV_FILE=/data/retina.csv LABEL=grade sh search.sh                          classes; flags of main_finetune.py
#
# Started again it goes on where it was interrupted: trials that are done are not done again.
set -eu
ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)

# ---- What to search on. Edit here, or set in the environment. ----
CSV_FILE=${CSV_FILE:-}                        # a CSV with the columns path, split and the targets or the label
TARGETS=${TARGETS:-}                          # the numeric columns to predict; empty: tc ldl hdl tg apoa apob
LABEL=${LABEL:-}                              # instead of TARGETS, for a classification: the column of classes
MODEL=${MODEL:-RETFound_dinov2}               # a name of README.md's table of weights, timm or a name of timm
MODEL_ARCH=${MODEL_ARCH:-}                    # its architecture, where the model has several
FINETUNE=${FINETUNE-RETFound_dinov2_meh}      # weights: a name or a file; set but empty: train from scratch
ADAPTATION=${ADAPTATION:-finetune}            # finetune: all weights learn; lp: the head alone, in seconds a trial; lora
TRIALS=${TRIALS:-20}                          # of the whole study, also over several starts
TRIAL_EPOCHS=${TRIAL_EPOCHS:-10}              # of a trial
EPOCHS=${EPOCHS:-40}                          # of the final run
STORAGE=${STORAGE:-}                          # empty: a file in the results; or sqlite:///..., postgresql://..., a journal file
TASK=${TASK:-}                                # results go to output_dir/TASK and output_dir/TASK_final

# ---- Where. As in train.sh. ----
GPUS=${GPUS:-}
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-}
MASTER_PORT=${MASTER_PORT:-48767}

. "$ROOT/util/launch.sh"
CSV_FILE=$(value_of --csv_file --csv_file "$CSV_FILE" "$@")
LABEL=$(value_of --label_col --label_col "$LABEL" "$@")
[ -z "$LABEL" ] || [ -z "$TARGETS" ] ||
    stop "LABEL=$LABEL is for a classification and TARGETS=$TARGETS for a regression: set one of the two"
[ -z "$LABEL" ] || [ -n "$CSV_FILE" ] || stop "LABEL=$LABEL is set but CSV_FILE is not: set it to the CSV that has this column"
demo=no
if [ -z "$CSV_FILE" ]; then
    demo=yes
    echo "This is a demo: drawn images whose drawing decides six numbers, and a small model trained from scratch."
    echo "For your own set two variables: CSV_FILE=/path/to/retina.csv TARGETS=\"tc ldl hdl\" sh search.sh"
    GPUS=${GPUS:-1} # a small job whose recipe is made for one process
fi

. "$ROOT/util/env.sh"

if [ "$demo" = yes ]; then
    asks_for_help "$@" || (cd "$ROOT" && "$PYTHON" -m util.demo_data demo_data)
    TASK=${TASK:-demo_search}
    TARGETS=$DEMO_TARGETS TRIALS=6 TRIAL_EPOCHS=5 EPOCHS=20
    # shellcheck disable=SC2086 # a list of flags
    set -- $DEMO_REGRESSION --csv_file "$DEMO_DATA/demo.csv" --output_dir "$ROOT/output_dir" --log_dir "$ROOT/output_logs" "$@"
else
    TASK=${TASK:-$(basename -- "${CSV_FILE%.*}")_search}
    [ -z "$MODEL_ARCH" ] || set -- --model_arch "$MODEL_ARCH" "$@"
    case $MODEL in
        RETFound_dinov2) set -- --finetune "$FINETUNE" "$@" ;;
        *) [ "$FINETUNE" = RETFound_dinov2_meh ] || set -- --finetune "$FINETUNE" "$@" ;;
    esac
    set -- --model "$MODEL" --adaptation "$ADAPTATION" --csv_file "$CSV_FILE" "$@"
fi
[ -z "$STORAGE" ] || storage=$STORAGE

program=$ROOT/main_regression.py
if [ -n "$LABEL" ]; then
    program=$ROOT/main_finetune.py
    set -- --label_col "$LABEL" "$@"
else
    # shellcheck disable=SC2086 # TARGETS is a list of column names
    set -- --targets ${TARGETS:-tc ldl hdl tg apoa apob} "$@"
fi
if given --dry_run "$@" || asks_for_help "$@"; then
    launch "$program" "$@" --task "$TASK" --optuna_trials "$TRIALS" --optuna_epochs "$TRIAL_EPOCHS"
fi
# in shells of their own: launch takes the place of the one that calls it
(launch "$program" "$@" --task "$TASK" --optuna_trials "$TRIALS" --optuna_epochs "$TRIAL_EPOCHS" \
    --optuna_resume ${storage:+--optuna_storage "$storage"}) || exit $?
folder=$(value_of --output_dir --output_dir ./output_dir "$@")
echo "the final run, with the settings of the best trial"
launch "$program" "$@" --task "${TASK}_final" --epochs "$EPOCHS" --params "$folder/$TASK/optuna_best.json" \
    --resume same
