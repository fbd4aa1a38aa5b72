#!/bin/sh
# BiT-T, the second network: R26x1 goes on from the bundled bit-t-r26x1 at 64 px on five sets at once (270,000 images), each with classes
# of its own, and from the answers of EfficientNet-Lite0, which sees the same crops of the original pixels at 128 px. About 110 minutes of
# one core of a CPU.
# usage: recipes/bit-t-r26x1-part2.sh SHARDS [RUN [BIT_PRETRAIN_FLAGS...]]
#   SHARDS holds a folder for each set (names: TINY, MINIPLACES, MINIIMAGENET, IMAGENETTE, CATSDOGS), written by `bit shard`, with val/
#   parts, and CLASSES, a folder of tab-separated class names. Needs pip install 'bigtransfer[teachers]'.
#   START: the model to go on from, for further parts.
# docs/lab-notes.md tells what its numbers rest on.
set -eu
shards=$1 run=${2:-runs/bit-t-r26x1-part2}
shift; [ $# -gt 0 ] && shift
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
classes="$shards/${CLASSES:-classes}"

bit pretrain "$shards/${TINY:-tiny}" "$shards/${MINIPLACES:-miniplaces}" "$shards/${MINIIMAGENET:-miniimagenet}" \
  "$shards/${IMAGENETTE:-imagenette}" "$shards/${CATSDOGS:-catsdogs}" --set-weights 3 3 2 1 1 \
  --model r26x1 --weights "${START:-bit-t-r26x1}" --name bit-t-r26x1-part2 --out "$run" --class-names "$classes"/*.tsv \
  --upstream "Tiny-ImageNet-200, MiniPlaces, mini-ImageNet, Imagenette, cats and dogs; taught by EfficientNet-Lite0 (ImageNet-1k)" \
  --teacher lite0 --teacher-size 128 \
  --epochs 1.95 --batch-size 128 --learning-rate 0.02 --warmup 200 --schedule cosine --weight-decay 5e-4 \
  --crop 64 --min-area 0.35 --seed 2 --workers 0 --cache none --eval-every 2000 --checkpoint-every 5m "$@"
bit convert "$run" "$run/bit-t-r26x1-part2-float16.safetensors" --to bit --dtype float16
