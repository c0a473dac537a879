#!/usr/bin/env bash
# Does thinking before answering help? SIDReasoner's three stages on the generated store of beads, where the next item follows from a rule
# that descriptions state, beside a model that was only taught to answer at once. Needs the set-up of scripts/quickstart.sh
# (bash scripts/setup.sh), not its store or its models.
#   reads   nothing
#   writes  $DATA_ROOT/beads, $OUTPUT_ROOT/$RUN/{base,vocab,sft_align,sft_direct,sft_think,grpo_beams,eval}, its report/index.html,
#           $OUTPUT_ROOT/compare/beads.test/compare.md
#   takes   6 min 31 s of CPU on one thread (configs/sidreasoner/README.md says how that was measured), 2 cores, no GPU
#   expect  NDCG@10 on 1,000 test rows, seed 0: .57 at once, .69 behind one thought, .87 behind one thought after GRPO
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
if ! "$PYTHON" -c "import sys, importlib.util as i; sys.exit(not all(map(i.find_spec, ('torch', 'transformers', 'trl'))))"; then
    echo "ERROR 3: $PYTHON lacks the packages of this repository -> bash scripts/setup.sh" >&2
    exit 3
fi

# The store, in the form of a published folder: rows, semantic IDs, a teacher's answers, a corpus of sums.
"$PYTHON" -m data.toy --size beads --output_dir "$RAW"
FROM=sidreasoner bash scripts/import_release.sh
# 06  The teacher's texts, checked as those of a chat model are: of every item, and of 600 of the 4,000 train rows, as a teacher costs money.
RECORDED="--ask.client.backend recorded --ask.client.model= --ask.client.base_url= --ask.client.recording $RAW/teacher"
# shellcheck disable=SC2086
HISTORY_ARGS="$RECORDED/histories.jsonl --max_samples 600" NARRATIVE_ARGS=$RECORDED/narratives.jsonl \
    bash scripts/06_enrich_texts.sh $RECORDED/items.jsonl
# 07  Examples: align = the tasks of stage 1, think = the 600 rows with a thought, prompts = all rows for GRPO and evaluation (valid and test rows
#     have no thought: models write theirs), direct = all rows without one.
TASKS=align bash scripts/07_build_examples.sh --registry "$RAW/general/registry.json" --corpora '[sums]'
TASKS=think bash scripts/07_build_examples.sh
TASKS=think EXAMPLES=prompts bash scripts/07_build_examples.sh --only_taught false
TASKS=think EXAMPLES=direct bash scripts/07_build_examples.sh --only_taught false --reasoning '[]'
# 08  A random model of two layers with a token per code. 09: stage 1, the model without thoughts, stage 2. 10: stage 3.
bash scripts/08_expand_vocab.sh --seed "$SEED"
STAGE=align EXAMPLES=align bash sft.sh --seed "$SEED"
STAGE=direct EXAMPLES=direct MODEL=$OUTPUT_ROOT/$RUN/sft_align/final bash sft.sh --seed "$SEED"
STAGE=think EXAMPLES=think bash sft.sh --seed "$SEED"
STAGE=think EXAMPLES=prompts NAME=grpo_beams bash rl.sh --seed "$SEED"

# 11  The same 1,000 test rows every time: without a thought, behind one, behind four (averaged), and a race of those four with the answer at once.
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
# Rows of the table: sft_direct was only taught to answer at once; sft_think.think is before GRPO, grpo_beams.think after it (grpo_beams: the same
# model without a thought), several.think and several.race are four thoughts of it. p-values are those against sft_think.think.
RUNS=$RUN REFERENCE=sft_think.think bash scripts/compare.sh --lists '[coverage,gini,diversity_1,unfinished_rate,invalid_rate]'
echo "table: $OUTPUT_ROOT/compare/beads.test/compare.md; ten users with thought, recommendation and truth: $OUTPUT_ROOT/$RUN/report/index.html"
