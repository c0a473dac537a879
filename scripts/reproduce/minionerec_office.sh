#!/usr/bin/env bash
# MiniOneRec's table on Amazon 2018 Office_Products. Only about a quarter of the published train rows could be reconstructed: the
# floors of the same rows stand beside every number.
#   reads   $RAW: items, interactions, sequences, users as parquet (configs/minionerec/office/prepare.yaml)
#   writes  configs/minionerec/results/office.json, the table of configs/minionerec/README.md; $OUTPUT_ROOT/minionerec-office{,-s0,...}
#   takes   half of Industrial's
# Edit the variables, or override; scripts/reproduce/rows.sh has all of them:
#   RAW=/path/to/tables ROWS="sasrec text" bash scripts/reproduce/minionerec_office.sh
# Published: MiniOneRec .1634 / .1242 (HR@10 / NDCG@10, SID level, full train).
set -euo pipefail

PAPER=minionerec
DATASET=office
ROWS=${ROWS:-baselines itemknn_text mixture sasrec text compact compact_distilled fusion sft_recommend tiger}
export EVALUATE_ARGS=${EVALUATE_ARGS:---group_columns [category]}
source "$(dirname "$0")/rows.sh"

prepare
make_rows
