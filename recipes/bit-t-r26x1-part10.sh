#!/bin/sh
# BiT-T, part 10: R26x1 goes on from part 7 on eight sets (436,000 images), at 64 and then at 96 px, taught by EfficientNet-Lite0, on one
# GPU that also holds the decoded images. 5,882 of these 5,965 steps were taken, in five and a half minutes of an H200, in two starts; the
# network was taken as it then was, at a learning rate of 0.00016.
# usage: recipes/bit-t-r26x1-part10.sh IMAGES [RUN [BIT_PRETRAIN_FLAGS...]]
#   IMAGES: what recipes/bit-t/smaller.py and further.py make, and CLASSES, a folder of tab-separated class names. START: part 7's model,
#   which recipes/bit-t/part7.safetensors is at commit 19fb625 (default: IMAGES/part7.safetensors). Needs pip install
#   'bigtransfer[teachers]'.
set -eu
images=$1 run=${2:-runs/bit-t-r26x1-part10}
shift; [ $# -gt 0 ] && shift
classes="$images/${CLASSES:-classes}"

# (torch.backends.cudnn.benchmark was on; `bit` leaves it off, as a resumed run could choose other kernels.)
bit pretrain "$images/${TINY:-tiny}" "$images/${MINIPLACES:-miniplaces}" "$images/${MINIIMAGENET:-miniimagenet}" \
  "$images/${IMAGENETTE:-imagenette}" "$images/${CATSDOGS:-catsdogs}" "$images/more" "$images/finer" "$images/loose" \
  --set-weights 30 28 20 6 7 12 11 28 \
  --model r26x1 --weights "${START:-$images/part7.safetensors}" --name bit-t-r26x1-part10 --out "$run" --class-names "$classes"/*.tsv \
  --upstream "Tiny-ImageNet-200, MiniPlaces, mini-ImageNet, Imagenette, cats and dogs, 166,000 further photographs; taught by EfficientNet-Lite0 (ImageNet-1k)" \
  --teacher lite0 --teacher-size 128 \
  --epochs 13.996 --batch-size 1024 --micro-batch 1024 --learning-rate 0.3 --warmup 300 --schedule cosine --weight-decay 5e-4 --mixup-alpha 0.2 \
  --crop 96 --crop-from 64 --crop-ramp 0.5 0.5001 --min-area 0.2 --seed 11 --cache device --checkpoint-every 60m "$@"
bit convert "$run" "$run/bit-t-r26x1-part10-float16.safetensors" --to bit --dtype float16
