# Sourced by scripts/chain.sh with SUBMIT=slurm: a stage becomes a job that waits for the one before. Not a program.
SUBMITTED=""

# stage SCRIPT: submit it with the environment as it is now; with DRY_RUN say so, and the commands that the job would run.
stage() {
    local kind=cpu size=() job
    case $1 in
        *02_embed_items.sh | *sft.sh | *rl.sh | *evaluate.sh | *12_instruct.sh | *13_generate_images.sh | *14_generate_videos.sh)
            kind=gpu
            size=(--nodes "${NUM_NODES:-1}" --gpus-per-node "${NUM_GPUS:-1}")
            ;;
    esac
    job=(sbatch --parsable --job-name "$(basename "$1" .sh)" ${size[@]+"${size[@]}"}
        ${SUBMITTED:+"--dependency=afterok:$SUBMITTED"} --kill-on-invalid-dep=yes "scripts/slurm/$kind.sbatch" "$1")
    if [ -n "${DRY_RUN:-}" ]; then
        printf '%q ' "${job[@]}"
        echo
        NODE_RANK=0 LAUNCH_ID=JOB MASTER_ADDR=${MASTER_ADDR:-FIRST_MACHINE} bash "$1" | sed 's/^/    /'
        SUBMITTED=JOB_OF_$(basename "$1" .sh)
        return
    fi
    mkdir -p outputs/slurm
    SUBMITTED=$("${job[@]}")
    SUBMITTED=${SUBMITTED%%;*}
    echo "$1: job $SUBMITTED"
}
