#!/bin/sh
# Scores a checkpoint on the test split. With nothing set it scores the demo that train.sh trained; for your own:
#
#   CKPT=output_dir/NAME/checkpoint-best.pth DATA_PATH=/data/APTOS2019 NUM_CLASS=5 TASK=NAME sh eval.sh
#
# Flags of main_finetune.py may follow and win.
set -eu
ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)

# ---- What to score. Edit here, or set in the environment. ----
CKPT=${CKPT:-}                                # the checkpoint, ours or one of the original scripts
DATA_PATH=${DATA_PATH:-}                      # a folder with train/, val/ and test/, a folder a class in each
EXTERNAL=${EXTERNAL:-}                        # more folders, blanks between them: external test sets
NUM_CLASS=${NUM_CLASS:-}                      # the number of classes
MODEL=${MODEL:-}                              # the model that was trained; empty: as the checkpoint says
MODEL_ARCH=${MODEL_ARCH:-}                    # its architecture; empty: as the checkpoint says
ADAPTATION=${ADAPTATION:-}                    # finetune, lp or lora, as it was trained; empty: as the checkpoint says
TASK=${TASK:-}                                # results go to output_dir/TASK; empty: the name of the checkpoint's folder

# ---- Where to score it. ----
GPUS=${GPUS:-1}                               # processes on this machine; 0: the CPU
NNODES=${NNODES:-1}                           # machines, as in train.sh
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-}
MASTER_PORT=${MASTER_PORT:-48766}

. "$ROOT/util/launch.sh"
check_data "$@"
demo=no
if [ -z "$CKPT$DATA_PATH$CSV_FILE" ]; then
    demo=yes
    CKPT=$ROOT/output_dir/${TASK:-demo}/checkpoint-best.pth
    if [ ! -f "$CKPT" ] || [ ! -d "$DEMO_DATA" ]; then
        stop "nothing to score: set CKPT, DATA_PATH and NUM_CLASS (or train the demo first: sh train.sh)"
    fi
    echo "Scoring the demo. For your own: CKPT=FILE DATA_PATH=/path/to/images NUM_CLASS=5 sh eval.sh"
else
    [ -n "$CKPT" ] || stop "CKPT is not set: set it to the checkpoint to score, output_dir/NAME/checkpoint-best.pth"
    [ -f "$CKPT" ] || stop "CKPT=$CKPT is not a file: set it to the checkpoint to score"
    [ -n "$DATA_PATH$CSV_FILE" ] || stop "DATA_PATH and NUM_CLASS are not set: the images to score $CKPT on"
    TASK=${TASK:-$(basename -- "$(cd -- "$(dirname -- "$CKPT")" && pwd)")}
fi

. "$ROOT/util/env.sh"

if [ "$demo" = yes ]; then
    # shellcheck disable=SC2086 # a list of flags
    set -- $DEMO_MODEL --task "${TASK:-demo}" --data_path "$DEMO_DATA" --output_dir "$ROOT/output_dir" \
        --log_dir "$ROOT/output_logs" "$@"
else
    if [ -n "$DATA_PATH" ]; then
        set -- --data_path "$DATA_PATH" "$@"
    fi
    if [ -n "$EXTERNAL" ]; then
        # shellcheck disable=SC2086 # a list of folders
        set -- --external $EXTERNAL "$@"
    fi
    for_model=
    [ -z "$MODEL" ] || for_model="--model $MODEL"
    [ -z "$MODEL_ARCH" ] || for_model="$for_model --model_arch $MODEL_ARCH"
    [ -z "$ADAPTATION" ] || for_model="$for_model --adaptation $ADAPTATION"
    # shellcheck disable=SC2086 # a list of flags without blanks in them
    set -- $for_model --nb_classes "$NUM_CLASS" --task "$TASK" "$@"
fi
launch "$ROOT/main_finetune.py" --batch_size 128 --eval --resume "$CKPT" "$@"
