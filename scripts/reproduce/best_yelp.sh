#!/usr/bin/env bash
# Our recipe (configs/best) on Yelp (2019), beside floors and SASRec with full cross-entropy on the same rows.
#   reads   $RAW: items, interactions, sequences as parquet (configs/minionerec/yelp/prepare.yaml)
#   writes  configs/best/results/yelp.json, the table of configs/best/README.md; $OUTPUT_ROOT/best-yelp{,-s0,...}
#   takes   70 minutes beside one to two other programs for one seed (all rows but SASRec with cross-entropy and `compact`), 8.3 GiB; a seed more costs two models more
# Edit the variables, or override; scripts/reproduce/rows.sh has all of them:
#   RAW=/path/to/tables SEEDS=0 bash scripts/reproduce/best_yelp.sh
# Published: TIGER .0384 / .0203, HG-Rec .0445 / .0233 (HR@10 / NDCG@10).
set -euo pipefail

PAPER=best
DATASET=yelp
export PLAN_MINUTES=${PLAN_MINUTES:-30}   # of one generator with its teachers, by forecast, as chain.sh has it
# A row of the table is a recipe, not what this machine has time for: no probe. One sequential model of 5 epochs, 7 of the generator, the least there is.
export PLAN_SPEED=${PLAN_SPEED:-1.0}
ROWS=${ROWS:-baselines itemknn_text mixture sasrec text compact compact_distilled fusion}
source "$(dirname "$0")/rows.sh"

prepare
make_rows
