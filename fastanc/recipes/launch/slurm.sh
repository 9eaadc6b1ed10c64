#!/bin/bash
# sbatch fastanc/recipes/launch/slurm.sh --recipe imagenet_resnet152_resnet18 --data.root FOLDER
# One launcher a node, one process a GPU. Two minutes before the time is over the run saves itself and is queued again.
#SBATCH --job-name=fastanc
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
export OMP_NUM_THREADS=1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
processes=$((SLURM_NNODES * SLURM_GPUS_ON_NODE))

srun --kill-on-bad-exit=1 bash -c 'accelerate launch --multi_gpu --num_machines "$SLURM_NNODES" \
  --machine_rank "$SLURM_NODEID" --num_processes "$0" --main_process_ip "$1" --main_process_port 29500 \
  --rdzv_backend static --mixed_precision no -m fastanc.train --run.resume latest "${@:2}"' \
  "$processes" "$head" "$@" &
step=$!
requeue() {
  # The launchers hand SIGTERM to their processes, which save and end together.
  scancel --signal=TERM "$SLURM_JOB_ID.0"
  wait "$step"
  scontrol requeue "$SLURM_JOB_ID"
}
trap requeue USR1
wait "$step"
