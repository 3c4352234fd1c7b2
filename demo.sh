#!/usr/bin/env bash
# The whole way on a small drawn world: raw files, shards, SFT, DPO, three evaluations, one comparison.
# Usage: demo.sh [FOLDER] [SEED]
set -euo pipefail
out=${1:-demo}
seed=${2:-0}
export HF_HUB_OFFLINE=1
# Threads that wait without spinning: on a machine that has other work too, spinning ones are many times slower.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

if [ -e "$out" ]; then
  echo "demo: $out is already there; remove it (rm -r $out) or choose another folder (make demo DEMO=demo2)" >&2
  exit 2
fi
started=$SECONDS

run() {
  printf '\n\033[1m$ %s\033[0m\n' "$*"
  "$@"
}

run vlmdata sample --out "$out/raw" --seed "$seed"
run vlmdata convert the_cauldron "$out/raw/the_cauldron" --config shapes --out "$out/shards/shapes"
run vlmdata convert rlaif_v "$out/raw/rlaif_v" --out "$out/shards/rlaif_v"
run vlmdata convert food101 "$out/raw/food101" --split train --out "$out/shards/food101"
run vlmdata convert football "$out/raw/football" --out "$out/shards/football"
run vlmdata convert ocr_json "$out/raw/ocr_json/plates.json" --out "$out/shards/plates"

run vlmdata stats "$out/shards/shapes"
run vlmdata preview "$out/shards/rlaif_v" --out "$out/rlaif_v.html"

run vlmtrain sft --recipe tiny-sft --data "$out/shards/shapes" --model vlmtrain:tiny --seed "$seed" --out "$out/runs/sft"
run vlmtrain dpo --recipe tiny-dpo --data "$out/shards/rlaif_v" --adapter "$out/runs/sft" --seed "$seed" --out "$out/runs/dpo"

run vlmeval amber --model vlmtrain:tiny --data "$out/raw/amber" --out "$out/evals/base"
run vlmeval amber --adapter "$out/runs/sft" --data "$out/raw/amber" --out "$out/evals/sft"
run vlmeval amber --adapter "$out/runs/dpo" --data "$out/raw/amber" --out "$out/evals/dpo"

run vlmeval compare "$out/evals/base" "$out/evals/sft" "$out/evals/dpo" \
  --name base --name SFT --name SFT+DPO --markdown "$out/report.md" --html "$out/report.html"

printf '\n%s: made in %d s; open %s/report.html\n' "$out" $((SECONDS - started)) "$out"
