#!/usr/bin/env bash
# HiD-VAE on Amazon 2018 Industrial_and_Scientific over all years: its retriever on IDs with tags, TIGER's recipe on the same codes.
#   reads   $RAW: items, interactions, sequences as parquet (configs/hidvae/scientific/prepare.yaml)
#   writes  configs/hidvae/results/scientific.json, the table of configs/hidvae/README.md; $OUTPUT_ROOT/hidvae-scientific{,-s0,...}
#   takes   5 minutes for semantic IDs and the baselines, beside three other programs; the other rows were not run
# Edit the variables, or override; scripts/reproduce/rows.sh has all of them:
#   RAW=/path/to/tables ROWS=retriever bash scripts/reproduce/hidvae_scientific.sh
# No number is published on this data. The test rows overlap with those of Industrial: no model of one is reported on the other.
set -euo pipefail

PAPER=hidvae
DATASET=scientific
SIDS=hidvae
ROWS=${ROWS:-baselines sasrec tiger retriever}
export EMBEDDINGS=text_no_categories
source "$(dirname "$0")/rows.sh"

prepare "02"
act -u EMBEDDINGS bash scripts/03_complete_tags.sh
act bash scripts/04_build_sids.sh --tags "$DATA_ROOT/$DATASET/tags/categories"
act bash scripts/07_build_examples.sh
act "$PYTHON" -m rq.tokenize_items --data "$DATA_ROOT/$DATASET" --sids "$DATA_ROOT/$DATASET/sids/hidvae" \
    --output_dir "$DATA_ROOT/$DATASET/sids/hidvae_concatenated" --layout concatenated
for row in $ROWS; do
    if [ "$row" = retriever ]; then SIDS=hidvae_concatenated; else SIDS=hidvae; fi
    make_row "$row"
done
show_table
