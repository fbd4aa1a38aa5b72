#!/bin/sh
# The bundled bit-t-r26x1: R26x1 on Tiny-ImageNet-200, a first version that one CPU core trains within an hour.
# usage: recipes/bit-t-r26x1.sh TINY_IMAGENET [RUN]
#   TINY_IMAGENET holds train/<wnid>/*.JPEG, val/<wnid>/*.JPEG and classes.tsv (wnid, name).
set -eu
run=${2:-runs/bit-t-r26x1}
bit pretrain "$1" --model r26x1 --name bit-t-r26x1 --out "$run" \
  --class-names "$1/classes.tsv" --upstream "Tiny-ImageNet-200 (100,000 images of 64 px, 200 classes)" \
  --epochs 4.5 --batch-size 128 --learning-rate 0.015 --warmup 100 --schedule cosine --weight-decay 1e-4 \
  --crop 48 --min-area 0.25 --eval-every 1500
bit convert "$run" bigtransfer/pretrained/bit-t-r26x1.safetensors --to bit --dtype float16
