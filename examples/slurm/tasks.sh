#!/bin/sh
# One task per GPU, without a launcher. From the clone: sbatch examples/slurm/tasks.sh --task NAME ...
#SBATCH --nodes=1 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=4 --time=24:00:00
#SBATCH --requeue --signal=USR1@120 --open-mode=append
export WORLD_SIZE="$SLURM_NTASKS" LOCAL_WORLD_SIZE="$SLURM_NTASKS_PER_NODE"
export MASTER_PORT="${MASTER_PORT:-$((10000 + SLURM_JOB_ID % 20000))}"
export MASTER_ADDR="${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}"
code=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" sh -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID \
    exec "${PYTHON:-python}" main_finetune.py --resume same "$@"' sh "$@" || code=$?
# 99: asked to end by USR1, two minutes before the time limit. The job goes on from the checkpoint.
[ "$code" -ne 99 ] || scontrol requeue "$SLURM_JOB_ID"
exit "$code"
