#!/usr/bin/env bash
# The ensemble that a generator learns from: mixture of counts and texts, sequential models of several seeds, recent popularity.
#   reads   $DATA_ROOT/$DATASET (01), its sids/$SIDS (for SID-level metrics), configs/$PAPER/sequential_$SEQUENTIAL.yaml
#   writes  $OUTPUT_ROOT/$RUN/baselines/{mixture,trend,$NAME}, $OUTPUT_ROOT/$RUN-s<seed>/baselines/$SEQUENTIAL, eval/*.valid
#   takes   a sequential model per seed, and seconds; the fit of its weights or their scale looks at valid rows alone
# Edit the variables, or override: SEQUENTIAL=sasrec TEACHER_SEEDS=0 bash scripts/train_teacher.sh
# Its weights: mixture 1/2, the sequential models 1 together, recent popularity 1/2, times one scale; WEIGHTS=likelihood fits each. Trailing flags go to infer.fuse.
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
SIDS=${SIDS:-rqkmeans}
RUN=${RUN:-$PAPER-$DATASET}
NAME=${NAME:-teacher}
SEQUENTIAL=${SEQUENTIAL:-text}      # text | companions (items without titles) | hstu | ...
TEACHER_SEEDS=${TEACHER_SEEDS:-0 1}
WEIGHTS=${WEIGHTS:-}                # likelihood: of all members, fitted to valid; empty: 1/2, 1, 1/2 and one fitted scale
TREND=${TREND-trend}                # empty: without recent popularity, where train rows have no times
source "$(dirname "$0")/env.sh"
export PAPER DATASET SIDS
share_flags "infer.run_baselines train.train_sequential infer.fuse" "$@"
need_sids

case $WEIGHTS in
    "" | likelihood) ;;
    *)
        echo "ERROR 2: WEIGHTS=$WEIGHTS -> likelihood, or empty for 1/2, 1, 1/2; others by flag: --weights '[...]'" >&2
        exit 2
        ;;
esac
members=mixture weights=0.5
MODELS="mixture${TREND:+ trend}" SPLIT=valid RUN=$RUN bash scripts/train_baselines.sh ${SHARED[@]+"${SHARED[@]}"}
read -r -a seeds <<<"$TEACHER_SEEDS"
for seed in "${seeds[@]}"; do
    NAME=$SEQUENTIAL RUN=$RUN-s$seed SPLITS=valid bash scripts/train_sequential.sh --seed "$seed" ${SHARED[@]+"${SHARED[@]}"}
    members=$members,$OUTPUT_ROOT/$RUN-s$seed/baselines/$SEQUENTIAL
    weights=$weights,$(awk "BEGIN {print 1 / ${#seeds[@]}}")
done
scale=()
if [ -z "$WEIGHTS" ]; then WEIGHTS="[$weights${TREND:+,0.5}]" scale=(--scale fitted); fi
WEIGHTS=$WEIGHTS MEMBERS=$members${TREND:+,trend} NAME=$NAME SPLIT= SPLITS=valid RUN=$RUN bash scripts/fuse.sh ${scale[@]+"${scale[@]}"} "$@"
