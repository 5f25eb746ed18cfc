#!/usr/bin/env bash
# Training on every GPU of one machine. Run it again to go on after a stop.
#
#   DATA='shards/{00000..01242}.tar' OUT=runs/cc12m recipes/launch/torchrun.sh
#   RECIPE=finetune_roco DATA=ROCO CHECKPOINT=runs/cc12m OUT=runs/roco GPUS=2 \
#     recipes/launch/torchrun.sh --set training.seed=1
#
# What follows on the line goes to grrcoca. The exit code is grrcoca's own (75: stopped and saved), which torchrun
# hides.
set -uo pipefail

RECIPE=${RECIPE:-pretrain_cc12m}
DATA=${DATA:?where the data lie}
OUT=${OUT:?the run folder}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

if [ -n "${CHECKPOINT:-}" ]; then
  words=(finetune --dataset "${RECIPE#finetune_}" --checkpoint "$CHECKPOINT")
else
  words=(pretrain)
fi

mkdir -p "$OUT" && touch "$OUT/.started" || exit 5
torchrun --standalone --nproc-per-node="${GPUS:-gpu}" --max-restarts=0 -m grrcoca_cli \
  "${words[@]}" --recipe "$RECIPE" --data "$DATA" --out "$OUT" "$@"
code=$?

# A status of an earlier start says nothing about this one.
if [ "$OUT/status.json" -nt "$OUT/.started" ]; then
  code=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["exit_code"] or sys.argv[2])' \
    "$OUT/status.json" "$code") || code=1
fi
exit "$code"
