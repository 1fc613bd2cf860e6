#!/bin/sh
# Trains a classifier of retinal images. With nothing set it is a demo on drawn images; for your own images:
#
#   DATA_PATH=/data/APTOS2019 NUM_CLASS=5 sh train.sh                  all GPUs of this machine, or its CPU
#   DATA_PATH=/data/APTOS2019 NUM_CLASS=5 sh train.sh --epochs 5       flags of main_finetune.py may follow and win
#
# Started again with the same options it goes on where it was interrupted.
set -eu
ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)

# ---- What to train. Edit here, or set in the environment. ----
DATA_PATH=${DATA_PATH:-}                      # a folder with train/, val/ and test/, a folder a class in each
NUM_CLASS=${NUM_CLASS:-}                      # the number of classes
MODEL=${MODEL:-RETFound_dinov2}               # a name of README.md's table of weights, or timm
MODEL_ARCH=${MODEL_ARCH:-}                    # may be empty where MODEL has one architecture alone
FINETUNE=${FINETUNE-RETFound_dinov2_meh}      # weights: a name or a file; set but empty: train from scratch
ADAPTATION=${ADAPTATION:-finetune}            # finetune: all weights learn; lp: the head alone, a linear probe;
                                              # lora: small adapters (pip install -r requirements-lora.txt)
DATASET=${DATASET:-}                          # a name for the results; empty: the last part of DATA_PATH
TASK=${TASK:-}                                # results go to output_dir/TASK; empty: made of model, data, adaptation

# ---- Where to train it. ----
GPUS=${GPUS:-}                                # processes on this machine; empty: all visible GPUs; 0: the CPU
NNODES=${NNODES:-1}                           # machines; start this script on each, with its own NODE_RANK
NODE_RANK=${NODE_RANK:-0}                     # 0 to NNODES - 1
MASTER_ADDR=${MASTER_ADDR:-}                  # address of node 0, where there are several
MASTER_PORT=${MASTER_PORT:-48766}             # a free port there
NODE_WAIT=${NODE_WAIT:-900}                   # seconds to wait for a machine that is missing

# ---- The demo's recipe: small and from scratch, done in minutes on two CPU cores. ----
DEMO_RECIPE="--epochs 8 --batch_size 32 --lr 2e-3 --warmup_epochs 1 --layer_decay 1.0 --drop_path 0
    --aa none --reprob 0 --crop_scale 0.8 1"

. "$ROOT/util/launch.sh"
check_data "$@"
demo=no
if [ -z "$DATA_PATH$CSV_FILE" ]; then
    demo=yes
    echo "This is a demo: drawn images in 5 grades and a small model of its own, trained from scratch."
    echo "For your own images set two variables: DATA_PATH=/path/to/images NUM_CLASS=5 sh train.sh"
    GPUS=${GPUS:-1} # a small job whose recipe is made for one process
else
    complete_job "$@"
    FINETUNE=$(value_of --finetune --finetune "$FINETUNE" "$@")
    if [ "$FINETUNE" = RETFound_dinov2_meh ] && [ "$MODEL" != RETFound_dinov2 ]; then
        stop "MODEL=$MODEL needs its own weights: set FINETUNE to their name or file, or FINETUNE= to train from scratch"
    fi
fi

. "$ROOT/util/env.sh"

if ! given --resume "$@" && ! given --eval "$@" && ! given --dry_run "$@"; then
    set -- --resume same "$@"
fi
if [ "$demo" = yes ]; then
    if ! asks_for_help "$@"; then
        (cd "$ROOT" && "$PYTHON" -m util.demo_data demo_data)
    fi
    # shellcheck disable=SC2086 # lists of flags
    set -- $DEMO_MODEL $DEMO_RECIPE --task "${TASK:-demo}" --data_path "$DEMO_DATA" --output_dir "$ROOT/output_dir" \
        --log_dir "$ROOT/output_logs" "$@"
else
    if [ -n "$DATA_PATH" ]; then
        set -- --data_path "$DATA_PATH" "$@"
    fi
    case $MODEL in
        timm | RETFound_Green) ;; # have sizes of their own
        *) set -- --input_size 224 "$@" ;;
    esac
    set -- --model "$MODEL" --model_arch "$MODEL_ARCH" --finetune "$FINETUNE" --savemodel --global_pool \
        --batch_size 24 --world_size 1 --epochs 50 --nb_classes "$NUM_CLASS" --task "$TASK" --adaptation "$ADAPTATION" "$@"
fi
launch "$ROOT/main_finetune.py" "$@"
