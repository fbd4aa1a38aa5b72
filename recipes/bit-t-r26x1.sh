#!/bin/sh
# BiT-T: the bundled bit-t-r26x1, R26x1 on Tiny-ImageNet-200, on one core of a CPU, in three parts, as the time for it was found: 4.5 epochs
# from random weights (41 minutes), 18 more at four times the learning rate, with crops that grow from 32 to 48 px (114 minutes), and 16
# more at half of that rate with larger parts of the images (109 minutes).
# usage: recipes/bit-t-r26x1.sh TINY_IMAGENET [RUN [BIT_PRETRAIN_FLAGS...]]
#   TINY_IMAGENET holds train/<wnid>/*.JPEG, val/<wnid>/*.JPEG and classes.tsv (wnid, name).
# docs/lab-notes.md tells what else was tried, benchmarks/results/upstream_bit-t-r26x1_*.md what came out, from which commit.
set -eu
data=$1 run=${2:-runs/bit-t-r26x1}
shift; [ $# -gt 0 ] && shift
first=$run-first second=$run-second
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

bit pretrain "$data" --model r26x1 --name bit-t-r26x1-first --out "$first" --class-names "$data/classes.tsv" \
  --epochs 4.5 --batch-size 128 --learning-rate 0.015 --warmup 100 --schedule cosine --weight-decay 1e-4 \
  --crop 48 --min-area 0.25 --eval-every 1500 "$@"
bit convert "$first" "$first/model-float16.safetensors" --to bit --dtype float16

bit pretrain "$data" --model r26x1 --weights "$first/model-float16.safetensors" --name bit-t-r26x1-second --out "$second" \
  --class-names "$data/classes.tsv" \
  --epochs 18 --batch-size 128 --learning-rate 0.06 --warmup 200 --schedule cosine --weight-decay 5e-4 \
  --crop 48 --crop-from 32 --min-area 0.25 --eval-every 2000 "$@"
bit convert "$second" "$second/model-float16.safetensors" --to bit --dtype float16

bit pretrain "$data" --model r26x1 --weights "$second/model-float16.safetensors" --name bit-t-r26x1 --out "$run" \
  --class-names "$data/classes.tsv" --upstream "Tiny-ImageNet-200 (100,000 images of 64 px, 200 classes)" \
  --epochs 16 --batch-size 128 --learning-rate 0.03 --warmup 200 --schedule cosine --weight-decay 5e-4 \
  --crop 48 --crop-from 32 --min-area 0.35 --eval-every 2000 "$@"
bit convert "$run" "$run/bit-t-r26x1.safetensors" --to bit --dtype float16
