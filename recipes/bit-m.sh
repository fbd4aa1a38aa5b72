#!/bin/sh
# BiT-M: ImageNet-21k (14.2 M images, 21,843 classes), 90 epochs, the paper's schedule. The paper does not state the loss for images
# with several labels; the authors' later code takes the sigmoid cross-entropy with the head's biases starting at -10, and so does this.
# usage: recipes/bit-m.sh DATA [RUN [BIT_PRETRAIN_FLAGS...]]
#   DATA: shards that `bit shard` wrote, in a folder or at an address (s3://..., https://...); without several labels per image
#   leave out --multi-label by giving --no-multi-label. --probe a small second set shows transfer on the way.
#   R152x4: recipes/bit-m.sh DATA runs/bit-m-r152x4 --model r152x4 --strategy fsdp
#   TORCHRUN: how to start the processes; default: one for each GPU of this machine. Several machines: recipes/slurm.sbatch.
set -eu
data=$1 run=${2:-runs/bit-m-r50x1}
shift; [ $# -gt 0 ] && shift
${TORCHRUN:-torchrun --standalone --nproc-per-node gpu --max-restarts 100} -m bigtransfer pretrain "$data" --out "$run" \
  --model r50x1 --upstream "ImageNet-21k" --multi-label --loss sigmoid \
  --epochs 90 --batch-size 4096 --warmup 5000 --decay-epochs 30 60 80 --weight-decay 1e-4 --crop 224 --crop-style tensorflow \
  --eval-every 20000 --checkpoint-every 10m "$@"
