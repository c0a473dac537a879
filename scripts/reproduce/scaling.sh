#!/usr/bin/env bash
# The scaling curve: one recommender by its width and by the share of the training data it sees.
#   reads   $DATA_ROOT/$DATASET (01), its sids/$SIDS (04), examples/$SIDS (07)
#   writes  $OUTPUT_ROOT/scaling-$DATASET-s<seed>, $OUTPUT_ROOT/compare/scaling.$DATASET
#   takes   a training for every width, share and seed: about 100 CPU seconds each at width 128 and all of Industrial
# Edit the variables, or override:
#   WIDTHS="64 128" SHARES="0.5 1" SEEDS=0 bash scripts/reproduce/scaling.sh
#   PAPER=toy DATASET=toystore bash scripts/reproduce/scaling.sh
# A share below 1 keeps whole users, drawn by seed; the recipe's epochs stay, so that fewer rows are fewer updates. The semantic IDs are those
# of all train rows at every share. Valid, unless SPLIT says test.
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
SPLIT=${SPLIT:-valid}               # valid | test
WIDTHS=${WIDTHS:-32 64 128 256}
SHARES=${SHARES:-0.1 0.25 0.5 1}
ROWS=
source "$(dirname "$0")/rows.sh"

for width in $WIDTHS; do
    for share in $SHARES; do
        for seed in "${seeds[@]}"; do
            act NAME="compact_w${width}_d$share" RUN="scaling-$DATASET-s$seed" SPLITS="$SPLIT" bash scripts/train_compact.sh \
                --seed "$seed" --model.hidden "$width" --user_share "$share"
        done
    done
done
runs=()
for seed in "${seeds[@]}"; do runs+=("$OUTPUT_ROOT/scaling-$DATASET-s$seed"); done
act "$PYTHON" -m infer.compare --runs "$(list_of "${runs[@]}")" --split "$SPLIT" --intervals true --metrics '[hr@10,ndcg@10]' \
    --output_dir "$OUTPUT_ROOT/compare/scaling.$DATASET"
