#!/usr/bin/env bash
# Runs a command and passes a scheduler's notice on: SLURM sends SIGUSR1 to the task itself, this script, and to nothing below it.
#   reads   the command
#   writes  nothing
#   takes   what the command takes; every process below that has a handler for SIGUSR1 gets it (launchers ignore it). Linux
#   bash scripts/slurm/notice.sh bash sft.sh
set -uo pipefail

WOKEN=""
# the processes below $CHILD, it included, that catch SIGUSR1 (bit 9 of SigCgt)
listeners() {
    # a process that ends meanwhile is no error of cat's, as it is of awk's
    cat /proc/[0-9]*/status 2>/dev/null | awk -v root="$CHILD" '
        /^Pid:/ { pid = $2 }
        /^PPid:/ { parent[pid] = $2 }
        /^SigCgt:/ { caught[pid] = index("2367abef", substr($2, length($2) - 2, 1)) > 0 }
        END {
            for (pid in parent) {
                for (up = pid; up != root && up in parent && up > 1; up = parent[up]) continue
                if (up == root && caught[pid]) print pid
            }
        }'
}
pass_on() {
    WOKEN=yes
    # shellcheck disable=SC2046
    kill -USR1 $(listeners) 2>/dev/null
}
trap pass_on USR1

"$@" &
CHILD=$!
while :; do
    wait "$CHILD"
    code=$?
    if [ -z "$WOKEN" ]; then break; fi
    WOKEN=""
done
exit "$code"
