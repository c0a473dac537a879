#!/usr/bin/env bash
# SIDReasoner on the generated store of beads, behind scripts/quickstart.sh (its set-up is all that is needed): a recorded teacher, alignment,
# thoughts before answers, GRPO on thoughts, and four ways to answer beside a model that was only taught to answer at once.
#   reads   nothing
#   writes  $DATA_ROOT/beads, $OUTPUT_ROOT/$RUN/{sft_align,sft_direct,sft_think,grpo_beams,eval}, its report/index.html,
#           $OUTPUT_ROOT/compare/beads.test/compare.md
#   takes   what configs/sidreasoner/README.md says, 2 cores, no GPU
# Every stage that is finished is kept: run it again after an interruption and it goes on where it was. SEED=1 RUN=reasoning1: another seed.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/flags.sh
no_flags "$@"

# A shell's own settings are not the quickstart's.
unset MODEL EXAMPLES STAGE NAME SPLIT MODE CONFIG TASKS TIDS REASONING TEACHER NUM_GPUS NUM_NODES NODE_RANK ACCELERATE_CONFIG SIZE CARD TRACKER ASK_ARGS HISTORY_ARGS NARRATIVE_ARGS EXPAND_ARGS EVALUATE_ARGS IMPORT_ARGS RUNS REFERENCE
SEED=${SEED:-0}
export PAPER=sidreasoner DATASET=beads SIDS=published RUN=${RUN:-reasoning} PUBLISHED=
source scripts/env.sh
export PYTHON DATA_ROOT OUTPUT_ROOT
export RAW=$DATA_ROOT/beads/raw

"$PYTHON" -m data.toy --size beads --output_dir "$RAW"
FROM=sidreasoner bash scripts/import_release.sh
# The answers are in the store. A few hundred rows have a reasoning: a teacher costs money, rewards do not.
RECORDED="--ask.client.backend recorded --ask.client.model= --ask.client.base_url= --ask.client.recording $RAW/teacher"
# shellcheck disable=SC2086
HISTORY_ARGS="$RECORDED/histories.jsonl --max_samples 600" NARRATIVE_ARGS=$RECORDED/narratives.jsonl \
    bash scripts/06_enrich_texts.sh $RECORDED/items.jsonl
TASKS=align bash scripts/07_build_examples.sh --registry "$RAW/general/registry.json" --corpora '[sums]'
TASKS=think bash scripts/07_build_examples.sh
TASKS=think EXAMPLES=prompts bash scripts/07_build_examples.sh --only_taught false
TASKS=think EXAMPLES=direct bash scripts/07_build_examples.sh --only_taught false --reasoning '[]'
bash scripts/08_expand_vocab.sh --seed "$SEED"
STAGE=align EXAMPLES=align bash sft.sh --seed "$SEED"
STAGE=direct EXAMPLES=direct MODEL=$OUTPUT_ROOT/$RUN/sft_align/final bash sft.sh --seed "$SEED"
STAGE=think EXAMPLES=think bash sft.sh --seed "$SEED"
STAGE=think EXAMPLES=prompts NAME=grpo_beams bash rl.sh --seed "$SEED"

THINK="--max_rows 1000 --think.max_tokens 64 --think.batch_size 128"
SEVERAL="$THINK --think.thoughts 4 --think.temperature 1"
TRAINED=$OUTPUT_ROOT/$RUN/grpo_beams/final
export EXAMPLES=prompts
NAME=sft_direct bash evaluate.sh --max_rows 1000
# shellcheck disable=SC2086
NAME=sft_think MODE=think bash evaluate.sh $THINK
NAME=grpo_beams bash evaluate.sh --max_rows 1000
# shellcheck disable=SC2086
NAME=grpo_beams MODE=think bash evaluate.sh $THINK
# shellcheck disable=SC2086
NAME=several MODEL=$TRAINED MODE=think bash evaluate.sh $SEVERAL
# shellcheck disable=SC2086
NAME=several MODEL=$TRAINED MODE=race bash evaluate.sh $SEVERAL --thoughts "$OUTPUT_ROOT/$RUN/eval/several.test.think"
RUNS=$RUN REFERENCE=sft_think.think bash scripts/compare.sh --lists '[coverage,gini,diversity_1,unfinished_rate,invalid_rate]'
echo "table: $OUTPUT_ROOT/compare/beads.test/compare.md; ten users with thought, recommendation and truth: $OUTPUT_ROOT/$RUN/report/index.html"
