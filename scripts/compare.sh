#!/usr/bin/env bash
# Runs and published numbers in one table (Markdown, LaTeX, JSON) with paired-bootstrap p-values.
#   reads   $OUTPUT_ROOT/{$RUNS}/eval/*.$SPLIT/metrics, configs/*/published.csv
#   writes  $OUTPUT_ROOT/compare/$DATASET.$SPLIT/{compare.md,compare.tex,compare.json}
#   takes   seconds
# Edit the variables, or override: RUNS=seed1,seed2,seed3 REFERENCE=itemknn_tuned bash scripts/compare.sh
set -euo pipefail

PAPER=${PAPER:-minionerec}
DATASET=${DATASET:-industrial}
RUNS=${RUNS:-$PAPER-$DATASET}       # run folders, separated by commas; one model name in several of them: seeds
REFERENCE=${REFERENCE:-null}        # the row to test against: pop | itemknn_tuned | sft_recommend | ... | null
PUBLISHED=${PUBLISHED-default}      # papers whose published.csv joins in where it has this data set, separated by commas; empty: none
SPLIT=${SPLIT:-test}                # test | valid
source "$(dirname "$0")/env.sh"
if [ "$PUBLISHED" = default ]; then if [ -f "configs/$PAPER/published.csv" ]; then PUBLISHED=$PAPER; else PUBLISHED=; fi; fi

folders=() files=()
IFS=, read -ra names <<< "$RUNS"
for name in "${names[@]}"; do folders+=("$OUTPUT_ROOT/$name"); done
IFS=, read -ra names <<< "$PUBLISHED"
for name in ${names[@]+"${names[@]}"}; do files+=("configs/$name/published.csv"); done

"$PYTHON" -m infer.compare --runs "$(list_of "${folders[@]}")" --published "$(list_of ${files[@]+"${files[@]}"})" \
    --dataset "$DATASET" --split "$SPLIT" --reference "$REFERENCE" \
    --output_dir "$OUTPUT_ROOT/compare/$DATASET.$SPLIT" "$@"
