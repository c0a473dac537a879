#!/usr/bin/env bash
# Our recipe (configs/best) on Amazon 2014 Beauty, beside floors and SASRec with full cross-entropy on the same rows.
#   reads   $RAW: items, interactions, sequences as parquet (configs/minionerec/beauty14/prepare.yaml)
#   writes  configs/best/results/beauty14.json, the table of configs/best/README.md; $OUTPUT_ROOT/best-beauty14{,-s0,...}
#   takes   70 minutes beside two to five other programs for one seed (all rows but SASRec with cross-entropy and `compact`, when histories were made too), 4.8 GiB; a seed more costs two models more
# Edit the variables, or override; scripts/reproduce/rows.sh has all of them:
#   RAW=/path/to/tables SEEDS=0 bash scripts/reproduce/best_beauty14.sh
# Published: TIGER .0648 / .0384, SASRec with cross-entropy .0859 / .0503 (HR@10 / NDCG@10). The 2014 sets keep the day's source order, which
# simple transitions exploit: `last` and `recent` are that floor.
set -euo pipefail

PAPER=best
DATASET=beauty14
export PLAN_MINUTES=${PLAN_MINUTES:-30}   # of one generator with its teachers, by forecast, as chain.sh has it
# A row of the table is a recipe, not what this machine has time for: no probe. Two sequential models of 7 epochs, 7 of the generator.
export PLAN_SPEED=${PLAN_SPEED:-1.1}
ROWS=${ROWS:-baselines itemknn_text mixture sasrec text compact compact_distilled fusion}
source "$(dirname "$0")/rows.sh"

prepare
make_rows
