#!/bin/sh
# train.sh on each node, with the GPUs that the job has there. From the clone: sbatch examples/slurm/nodes.sh
#SBATCH --nodes=1 --ntasks-per-node=1 --gpus-per-node=4 --cpus-per-task=16 --time=24:00:00
#SBATCH --requeue --signal=USR1@120 --open-mode=append
export NNODES="$SLURM_JOB_NUM_NODES" MASTER_PORT="${MASTER_PORT:-$((10000 + SLURM_JOB_ID % 20000))}"
export MASTER_ADDR="${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}"
code=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    sh -c 'NODE_RANK=$SLURM_NODEID exec sh train.sh "$@"' sh "$@" || code=$?
# 99: asked to end by USR1, two minutes before the time limit. The job goes on from the checkpoint.
[ "$code" -ne 99 ] || scontrol requeue "$SLURM_JOB_ID"
exit "$code"
