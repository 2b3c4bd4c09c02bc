#!/usr/bin/env bash
# Every check and benchmark that wants a GPU, in about ten minutes on one: tests of models and batches, scoring in both precisions, a
# preference step (full, LoRA, rankings), an online step, growth. One log; every ratio also goes to benchmarks/results.jsonl.
#
#     benchmarks/gpu.sh                     on a GPU
#     DEVICE=cpu benchmarks/gpu.sh          the same commands at toy sizes on a processor: that they start, not how fast they are
set -uo pipefail
cd "$(dirname "$0")/.."
DEVICE=${DEVICE:-cuda} PYTHON=${PYTHON:-python} LOG=${LOG:-gpu.log}
if [ "$DEVICE" = cpu ]; then
  size="--size tiny" dtype=float32 pairs=8 batch=4 steps=3 threads=1
else
  size="--size 0.5B" dtype=bfloat16 pairs=512 batch=16 steps=8 threads=4
  $PYTHON -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || { echo "no CUDA device; DEVICE=cpu for a dry run"; exit 2; }
fi
common="$size --device $DEVICE --threads $threads"
failed=()
run() { # NAME SECONDS COMMAND…: one step, stopped at its limit; the rest goes on
  local name=$1 limit=$2; shift 2
  [ "$DEVICE" = cpu ] && limit=$((4 * limit))
  echo "== $name"
  timeout "$limit" "$@" || failed+=("$name")
}
main() {
  if [ "$DEVICE" = cuda ]; then
    run "memory and device" 20 nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
    run "tests that a GPU changes" 150 $PYTHON -m pytest -q -m "not slow" tests/models tests/exact/test_batching.py tests/references
    run "scoring, 135M, bfloat16" 60 $PYTHON benchmarks/scoring.py --size 135M --device cuda --dtype bfloat16 --pairs 512 --case gsm8k
  fi
  run "scoring, HH-style" 90 $PYTHON benchmarks/scoring.py $common --dtype $dtype --pairs $pairs --repeats 1 --case hh
  run "adapter as reference" 60 $PYTHON benchmarks/scoring.py $common --dtype float32 --pairs $pairs --repeats 1 --case adapter
  for kind in "" "--lora 8" "--rankings 4"; do
    run "preference step $kind" 60 $PYTHON benchmarks/preference.py $common --dtype $dtype --batch $batch --steps $steps \
      --token-budget 0 --repeats 0 $kind
  done
  run "online step" 90 $PYTHON benchmarks/online.py $size --device $DEVICE --lora 8 --prompts-per-step 2 --group 4 --tokens 8 \
    --steps 1 --repeats 1 --threads $threads
  run "growth" 60 $PYTHON benchmarks/growth.py $common --dtype $dtype --quick
  [ ${#failed[@]} -eq 0 ] && echo "all started and ended" || { printf 'failed: %s\n' "${failed[@]}"; return 1; }
}
main 2>&1 | tee "$LOG"
