#!/bin/sh
# What took the first bundled network further, taken apart at equal compute: on its own images (neither), on eight more sets (images), taught by
# EfficientNet-Lite0 (teacher), and both. Each goes on from the first bundled network, which bigtransfer/pretrained/bit-t-r26x1.safetensors is at
# commit 4b578bd, at 64 px for as much time of one CPU core; a step with the teacher takes longer, so that fewer fit.
# usage: recipes/bit-t/levers.sh FIRST IMAGES RUNS STEPS TAUGHT_STEPS [ARM ...]
#   IMAGES: what images.py unpacks, and tiny/, without what excluded.txt names. STEPS: of 128 images, without and with the teacher.
set -eu
first=$1 images=$2 runs=$3 steps=$4 taught=$5
shift 5
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
more="miniplaces miniimagenet food101 grocery monkeys rooms seedlings aerial"

arm() { # NAME STEPS "SETS" [FLAGS...]
  name=$1 wanted=$2 sets=$3
  shift 3
  folders=$(for set in $sets; do echo "$images/$set"; done)
  count=$(for set in $sets; do find "$images/$set/train/" -type f; done | wc -l)
  epochs=$(awk "BEGIN { print ($wanted + 0.5) * 128 / $count }")
  # shellcheck disable=SC2086
  bit pretrain $folders --model r26x1 --weights "$first" --name "levers-$name" --out "$runs/$name" \
    --epochs "$epochs" --batch-size 128 --learning-rate 0.02 --warmup 50 --schedule cosine --weight-decay 5e-4 \
    --crop 64 --min-area 0.35 --seed 2 --workers 0 --cache none --eval-every 100000 --checkpoint-every 5m "$@"
  bit convert "$runs/$name" "$runs/$name.safetensors" --to bit --dtype float16
}

for arm in "${@:-neither images teacher both}"; do
  for name in $arm; do
    case $name in
      neither) arm neither "$steps" tiny ;;
      images) arm images "$steps" "tiny $more" ;;
      teacher) arm teacher "$taught" tiny --teacher lite0 --teacher-size 128 ;;
      both) arm both "$taught" "tiny $more" --teacher lite0 --teacher-size 128 ;;
    esac
  done
done
