#!/usr/bin/env bash
# Runs a recipe with `resources.executor: ray` and `ray.address: auto` on the nodes of a Slurm job:
#
#   sbatch --nodes 2 --gpus-per-node 8 slurm.sh my.yaml runs/my
#
# After its time limit, submit it again to resume. The environment with crosspref must be on the path of every node, and
# all nodes must see the run directory.
#SBATCH --job-name=crosspref
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
set -euo pipefail
recipe=$1 run=$2
nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}'):6379
export RAY_USAGE_STATS_ENABLED=0

srun --nodes=1 --ntasks=1 -w "$head" ray start --head --port=6379 --block &
for _ in $(seq 60); do ray status --address "$address" >/dev/null 2>&1 && break; sleep 2; done
if ((${#nodes[@]} > 1)); then
    srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude="$head" \
        ray start --address "$address" --block &
fi
RAY_ADDRESS=$address crosspref run "$recipe" --out "$run"
