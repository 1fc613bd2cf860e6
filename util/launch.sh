# shellcheck shell=sh
# Sourced by train.sh and eval.sh: what the two share, from their variables and flags to the started program.
# Functions only; they read the variables that stand at the top of the two scripts.

stop() {
    printf '%s\n' "$1" >&2
    exit 2
}

# given FLAG ARGUMENTS...: whether a flag is among the arguments, as "--flag" or "--flag=value".
given() (
    flag=$1
    shift
    for argument; do
        case $argument in
            "$flag" | "$flag"=*) exit 0 ;;
        esac
    done
    exit 1
)

asks_for_help() {
    given --help "$@" || given -h "$@"
}

# value_of FLAG ARGUMENTS...: prints the value that a flag has among the arguments (the last one counts), or nothing.
value_of() (
    flag=$1
    shift
    value=
    follows=no
    for argument; do
        if [ "$follows" = yes ]; then
            value=$argument
            follows=no
        else
            case $argument in
                "$flag") follows=yes ;;
                "$flag"=*) value=${argument#*=} ;;
            esac
        fi
    done
    printf '%s' "$value"
)

# Reads the data from variables and flags alike; ends with 2 where half of it is missing.
check_data() {
    DATA_PATH=$(value_of --data_path --data_path "$DATA_PATH" "$@")
    NUM_CLASS=$(value_of --nb_classes --nb_classes "$NUM_CLASS" "$@")
    CSV_FILE=$(value_of --csv_file "$@")
    if [ -z "$DATA_PATH$CSV_FILE" ] && [ -n "$NUM_CLASS" ]; then
        stop "NUM_CLASS=$NUM_CLASS is set but DATA_PATH is not: set it to the folder that holds train/, val/ and test/"
    elif [ -n "$DATA_PATH$CSV_FILE" ] && [ -z "$NUM_CLASS" ]; then
        stop "DATA_PATH=${DATA_PATH:-$CSV_FILE} is set but NUM_CLASS is not: set it to the number of classes"
    fi
}

# Fills in what the model's name and the data's place imply, and refuses another family's weights early.
complete_job() {
    MODEL=$(value_of --model --model "$MODEL" "$@")
    MODEL_ARCH=$(value_of --model_arch --model_arch "$MODEL_ARCH" "$@")
    ADAPTATION=$(value_of --adaptation --adaptation "$ADAPTATION" "$@")
    case $MODEL in
        RETFound_dinov2) MODEL_ARCH=${MODEL_ARCH:-retfound_dinov2} ;;
        RETFound_mae) MODEL_ARCH=${MODEL_ARCH:-retfound_mae} ;;
        RETFound_Green) MODEL_ARCH=${MODEL_ARCH:-retfound_green} ;;
        UrFound) MODEL_ARCH=${MODEL_ARCH:-urfound} ;;
        DERETFound) MODEL_ARCH=${MODEL_ARCH:-deretfound} ;;
        *) [ -n "$MODEL_ARCH" ] || stop "MODEL=$MODEL has several sizes: set MODEL_ARCH (README.md, table of weights)" ;;
    esac
    if [ -z "$DATASET" ]; then
        DATASET=${DATA_PATH:-${CSV_FILE%.*}}
        while [ "$DATASET" != "${DATASET%/}" ]; do DATASET=${DATASET%/}; done
        DATASET=${DATASET##*/}
    fi
    TASK=${TASK:-${MODEL_ARCH}_${DATASET}_${ADAPTATION}}
}

is_count() {
    case $1 in
        '' | *[!0-9]*) return 1 ;;
    esac
}

# Prints how many processes this machine gets. torch, which takes seconds to start, is asked only where it matters.
count_processes() (
    device=$(value_of --device "$@")
    if [ -n "$GPUS" ]; then
        is_count "$GPUS" || stop "GPUS=$GPUS is not a number of GPUs"
        [ "$GPUS" -gt 0 ] && echo "$GPUS" || echo 1
    elif [ "${device:-cuda}" != cuda ]; then
        echo 1
    elif [ -e /dev/kfd ] || [ "$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ')" -gt 1 ]; then
        visible=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())') || exit 1
        [ "$visible" -gt 0 ] && echo "$visible" || echo 1
    else
        echo 1
    fi
)

# launch PROGRAM ARGUMENTS...: becomes the program, so that its exit code and the user's signals reach the right one.
# One process is plain Python, started again where a signal kills it. Several are checked once by a dry run, so that a mistake
# is said before any is started. What watches over them takes this shell's place: a signal to this script (Ctrl-C, a
# scheduler's USR1) reaches it, none is lost.
launch() {
    program=$1
    shift
    if given --dry_run "$@" || asks_for_help "$@"; then
        exec "$PYTHON" "$program" "$@"
    fi
    is_count "$NNODES" && [ "$NNODES" -gt 0 ] || stop "NNODES=$NNODES is not a number of nodes"
    is_count "$NODE_RANK" && [ "$NODE_RANK" -lt "$NNODES" ] ||
        stop "NODE_RANK=$NODE_RANK is not one of 0 to $((NNODES - 1)): each of the NNODES=$NNODES nodes has its own"
    is_count "$MASTER_PORT" || stop "MASTER_PORT=$MASTER_PORT is not a port's number"
    processes=$(count_processes "$@") || exit $?
    if [ "$GPUS" = 0 ]; then
        export CUDA_VISIBLE_DEVICES=
    fi
    # a restart helps only where the program finds its own last checkpoint, or its study
    restarts=0
    case $(value_of --resume "$@") in same | auto) restarts=3 ;; esac
    if given --optuna_resume "$@"; then
        restarts=3
    fi
    if [ "$NNODES" -eq 1 ] && [ "$processes" -eq 1 ]; then
        if [ "$restarts" -gt 0 ]; then
            exec "$PYTHON" "$ROOT/util/core/restarting.py" "$restarts" "$program" "$@"
        fi
        exec "$PYTHON" "$program" "$@"
    fi
    if [ "$NNODES" -gt 1 ] && [ -z "$MASTER_ADDR" ]; then
        stop "NNODES=$NNODES needs MASTER_ADDR: the address of node 0, the same on all nodes"
    fi
    NODE_WAIT=${NODE_WAIT:-900}
    is_count "$NODE_WAIT" || stop "NODE_WAIT=$NODE_WAIT is not a number of seconds"
    export NODE_WAIT
    holds_store=false # of the nodes: node 0, unless it is elsewhere
    if [ -z "${RDZV_ENDPOINT:-}" ] && [ "$NODE_RANK" -eq 0 ]; then
        holds_store=true
    fi
    if [ "$holds_store" = true ] && ! port_is_free; then
        stop "port $MASTER_PORT of this machine is taken, perhaps by another job: set MASTER_PORT to another number"
    fi
    code=0
    "$PYTHON" "$program" "$@" --world_size $((NNODES * processes)) --dry_run >/dev/null || code=$?
    case $code in
        0) ;;
        2) exit 2 ;;
        *) exit 1 ;;
    esac
    MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
    exec "$PYTHON" "$ROOT/util/parallel/torchrun.py" --nnodes "$NNODES" --node-rank "$NODE_RANK" --nproc-per-node "$processes" \
        --master-addr "$MASTER_ADDR" --rdzv-backend "${RDZV_BACKEND:-c10d}" \
        --rdzv-endpoint "${RDZV_ENDPOINT:-$MASTER_ADDR:$MASTER_PORT}" --rdzv-id "${RDZV_ID:-retina}" \
        --rdzv-conf "join_timeout=$NODE_WAIT,is_host=$holds_store" \
        --max-restarts "$restarts" --signals-to-handle SIGTERM,SIGINT,SIGUSR1 "$program" "$@"
}

port_is_free() {
    "$PYTHON" -c '
import socket, sys
with socket.socket() as listener:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("", int(sys.argv[1])))
    except (OSError, OverflowError):
        sys.exit(1)' "$MASTER_PORT"
}

# The demos: their images, the model that train.sh trains and eval.sh scores, and the one that search.sh searches with.
DEMO_DATA=$ROOT/demo_data
DEMO_MODEL="--model timm --model_arch efficientvit_m0 --input_size 128 --nb_classes 5"
DEMO_TARGETS="vessel_width disc_radius lesion_area lesion_count disc_x brightness"
DEMO_REGRESSION="--model timm --model_arch test_resnet --input_size 128 --batch_size 32 --accum_iter 1 --warmup_epochs 1
    --aa none --reprob 0 --hflip 0"
