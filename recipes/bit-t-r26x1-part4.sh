#!/bin/sh
# BiT-T, part 4: R26x1 goes on from part 3 on seven sets (338,000 images), at 64 and then at 96 px, taught by EfficientNet-Lite0, on one
# GPU that also holds the decoded images (10 GB). 107 seconds of an H100 after half a minute of decoding; the host was the limit there, not
# the GPU (benchmarks/results/gpu_h100_2026-11-26.md): a larger batch with --compile would see more images in the time.
# usage: recipes/bit-t-r26x1-part4.sh IMAGES [RUN [BIT_PRETRAIN_FLAGS...]]
#   IMAGES: what recipes/bit-t/smaller.py makes, and CLASSES, a folder of tab-separated class names. START: part 3's model, which
#   recipes/bit-t/part3.safetensors is at commit 6cb05b3 (default: IMAGES/part3.safetensors). Needs pip install 'bigtransfer[teachers]'.
set -eu
images=$1 run=${2:-runs/bit-t-r26x1-part4}
shift; [ $# -gt 0 ] && shift
classes="$images/${CLASSES:-classes}"

bit pretrain "$images/${TINY:-tiny}" "$images/${MINIPLACES:-miniplaces}" "$images/${MINIIMAGENET:-miniimagenet}" \
  "$images/${IMAGENETTE:-imagenette}" "$images/${CATSDOGS:-catsdogs}" "$images/more" "$images/loose" \
  --set-weights 30 28 20 6 7 12 12 \
  --model r26x1 --weights "${START:-$images/part3.safetensors}" --name bit-t-r26x1-part4 --out "$run" --class-names "$classes"/*.tsv \
  --upstream "Tiny-ImageNet-200, MiniPlaces, mini-ImageNet, Imagenette, cats and dogs, 67,000 further photographs; taught by EfficientNet-Lite0 (ImageNet-1k)" \
  --teacher lite0 --teacher-size 128 \
  --epochs 5 --batch-size 512 --learning-rate 0.15 --warmup 200 --schedule cosine --weight-decay 5e-4 --mixup-alpha 0.2 \
  --crop 96 --crop-from 64 --crop-ramp 0.55 0.5501 --min-area 0.2 --seed 4 --cache device --checkpoint-every 60m "$@"
bit convert "$run" "$run/bit-t-r26x1-part4-float16.safetensors" --to bit --dtype float16
