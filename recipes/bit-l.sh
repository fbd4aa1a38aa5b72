#!/bin/sh
# BiT-L's schedule (JFT-300M, never released): 40 epochs, a tenth at epochs 10, 23, 30 and 37, the rest as for BiT-M. For any set of
# hundreds of millions of images with several labels each. docs/scale.md says what that takes.
# usage: recipes/bit-l.sh DATA [RUN [BIT_PRETRAIN_FLAGS...]]
#   DATA: shards that `bit shard` wrote, in a folder or at an address. TORCHRUN: how to start the processes.
set -eu
data=$1 run=${2:-runs/bit-l-r152x4}
shift; [ $# -gt 0 ] && shift
${TORCHRUN:-torchrun --standalone --nproc-per-node gpu --max-restarts 100} -m bigtransfer pretrain "$data" --out "$run" \
  --model r152x4 --strategy fsdp --multi-label --loss sigmoid \
  --epochs 40 --batch-size 4096 --warmup 5000 --decay-epochs 10 23 30 37 --weight-decay 1e-4 --crop 224 --crop-style tensorflow \
  --eval-every 50000 --checkpoint-every 10m "$@"
