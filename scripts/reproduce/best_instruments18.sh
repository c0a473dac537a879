#!/usr/bin/env bash
# Our recipe (configs/best) on Amazon 2018 Musical_Instruments, beside floors and SASRec with full cross-entropy on the same rows.
#   reads   $RAW: items, interactions, sequences as parquet (configs/minionerec/instruments18/prepare.yaml)
#   writes  configs/best/results/instruments18.json, the table of configs/best/README.md; $OUTPUT_ROOT/best-instruments18{,-s0,...}
#   takes   53 minutes beside two to three other programs for one seed (all rows but SASRec with cross-entropy and `compact`, when histories were made too), 1.5 GiB; a seed more costs two models more
# Edit the variables, or override; scripts/reproduce/rows.sh has all of them:
#   RAW=/path/to/tables SEEDS=0 bash scripts/reproduce/best_instruments18.sh
# Published: TIGER .1214 / .0886, HG-Rec .1315 / .0945 (HR@10 / NDCG@10). Items have no text: the plan leaves all of it out.
set -euo pipefail

PAPER=best
DATASET=instruments18
export PLAN_MINUTES=${PLAN_MINUTES:-30}   # of one generator with its teachers, by forecast, as chain.sh has it
# A row of the table is a recipe, not what this machine has time for: no probe. Two sequential models of 7 epochs, 7 of the generator.
export PLAN_SPEED=${PLAN_SPEED:-0.93}
ROWS=${ROWS:-baselines mixture sasrec companions compact compact_distilled fusion}
source "$(dirname "$0")/rows.sh"

prepare
make_rows
