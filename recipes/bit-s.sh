#!/bin/sh
# BiT-S: ILSVRC-2012 (1.28 M images, 1,000 classes), 90 epochs, as in the paper: batch 4,096, learning rate 0.48 (0.03 x 4,096 / 256)
# after 5,000 steps of warm-up, a tenth at epochs 30, 60 and 80, weight decay 1e-4, 224 px.
# usage: recipes/bit-s.sh DATA [RUN [BIT_PRETRAIN_FLAGS...]]
#   DATA: the class folders (train/, val/), or better the shards that `bit shard ILSVRC2012 DATA --resize 256` makes of them.
#   The network is R50x1 unless told otherwise: recipes/bit-s.sh DATA runs/bit-s-r101x3 --model r101x3 --strategy fsdp
#   TORCHRUN: how to start the processes; default: one for each GPU of this machine.
set -eu
data=$1 run=${2:-runs/bit-s-r50x1}
shift; [ $# -gt 0 ] && shift
${TORCHRUN:-torchrun --standalone --nproc-per-node gpu --max-restarts 100} -m bigtransfer pretrain "$data" --out "$run" \
  --model r50x1 --upstream "ILSVRC-2012" \
  --epochs 90 --batch-size 4096 --warmup 5000 --decay-epochs 30 60 80 --weight-decay 1e-4 --crop 224 --crop-style tensorflow \
  --eval-every 5000 --checkpoint-every 10m "$@"
