#!/usr/bin/env bash
# HiD-VAE's comparison on Amazon 2014 Beauty: SASRec with full cross-entropy and TIGER on the rows of its table.
#   reads   $RAW: items, interactions, sequences as parquet (configs/minionerec/beauty14/prepare.yaml)
#   writes  configs/hidvae/results/beauty14.json, the table of configs/hidvae/README.md; $OUTPUT_ROOT/minionerec-beauty14{,-s0,...}
#   takes   2 minutes for semantic IDs and the baselines, beside three other programs; the other rows were not run
# Edit the variables, or override; scripts/reproduce/rows.sh has all of them:
#   RAW=/path/to/tables ROWS=sasrec bash scripts/reproduce/hidvae_beauty14.sh
# Published: TIGER .0648 / .0384, SASRec with cross-entropy .0859 / .0503, HiD-VAE .0698 / - (SID level, no suffix). HiD-VAE itself needs
# category paths, which these tables lack: hidvae_scientific.sh.
set -euo pipefail

PAPER=minionerec
TABLE=hidvae
DATASET=beauty14
ROWS=${ROWS:-baselines sasrec tiger}
source "$(dirname "$0")/rows.sh"

prepare
make_rows
