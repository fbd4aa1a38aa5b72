#!/bin/sh
# The first thing to run when a GPU is at hand: correctness, speed beside timm, memory, the commands under NCCL.
#
#     benchmarks/gpu.sh                                  # all, within 540 s, into benchmarks/results/gpu
#     GPU_SECONDS=100 OUT=/tmp/gpu benchmarks/gpu.sh     # less time: what is left out is named
#     benchmarks/gpu.sh --device cpu --quick             # proves the script on a CPU; any option of `python -m benchmarks.gpu run`
#
# The package need not be installed; its dependencies, timm and triton must be. PYTHON names another interpreter than python3.
# Writes results.jsonl, results.md and log.txt as it goes, and prints a short table last.
set -eu
cd "$(dirname "$0")/.."
seconds=${GPU_SECONDS:-540}
out=${OUT:-benchmarks/results/gpu}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# Processes are killed at the end; what they leave to clean up goes with them.
export PYTHONWARNINGS="ignore::UserWarning:multiprocessing.resource_tracker"
# The run keeps to its limit by itself; this is for the case that it cannot.
exec timeout -k 5 "$((${seconds%.*} + 20))" "${PYTHON:-python3}" -m benchmarks.gpu run --out "$out" --seconds "$seconds" "$@"
