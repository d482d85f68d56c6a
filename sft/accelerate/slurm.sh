#!/usr/bin/env bash
# Several nodes: sbatch --nodes 4 sft/accelerate/slurm.sh --recipe qwen3-4b --data runs/teacher
#SBATCH --job-name=sft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --output=runs/%x-%j.log
#SBATCH --requeue
set -euo pipefail
CONFIG=${CONFIG:-sft/accelerate/fsdp2.yaml}
GPUS=${GPUS_PER_NODE:-8}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HEAD CONFIG GPUS
# A requeued job goes on with its last checkpoint: add --resume last to the arguments.
srun bash -c 'accelerate launch --config-file "$CONFIG" --num_machines "$SLURM_NNODES" \
  --num_processes $((SLURM_NNODES * GPUS)) --machine_rank "$SLURM_NODEID" --main_process_ip "$HEAD" \
  --main_process_port 29500 --rdzv_backend c10d sft/train.py "$@"' sft "$@"
