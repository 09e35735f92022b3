#!/usr/bin/env bash
# What shield.c says of the core's shield, proved by CBMC. With --mutants: that it fails where the shield is broken.
#   kernel/proof/prove.sh            # a minute
#   kernel/proof/prove.sh --mutants
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Copies of the core as shield.c wants them.
prepare() {
    cp ../core/*.h "$work"
    sed -i -E 's/^#define (L4S_SEEN|L4S_LATENCY_BINS|L4S_ASKS|L4S_MODEL_NODES) [0-9]+/#define \1 1/' "$work/l4s_core.h"
    sed -i 's/^l4s_clock(/real_l4s_clock(/' "$work/l4s_internal.h"
    sed -E -e 's/\[(packet|d)->queue\]/[QUEUE]/' -e 's/([a-z>._-]+_us) \* 1000/ns(\1)/' -e 's/^(likelihood|earn|may_drop|note_latency|ask_model|by_model|take_answer)\(/real_\1(/' ../core/l4s_outside.c >"$work/l4s_outside.c"
}

prove() { # NAME QUEUE
    local wraps=(--unsigned-overflow-check)
    [ "$1" = answer ] && wraps=() # answers are numbered modulo 256
    cbmc shield.c -I "$work" -DQUEUE="$2" --function "prove_$1" --unwind 9 --unwinding-assertions \
        --bounds-check --pointer-check --div-by-zero-check --signed-overflow-check "${wraps[@]}" \
        --slice-formula >"$work/log" 2>&1
}

break_it() { # SED NAME QUEUE
    prepare
    cp "$work/l4s_outside.c" "$work/whole"
    sed -i -E "$1" "$work/l4s_outside.c"
    cmp -s "$work/whole" "$work/l4s_outside.c" && { echo "prove.sh: nothing to break by $1" >&2; exit 1; }
    if prove "$2" "$3"; then
        echo "prove.sh: $2 holds of a shield that is broken by $1" >&2
        exit 1
    fi
    # One of the promises has to fail, not the checker.
    grep -q '^\[prove_.*: FAILURE' "$work/log" || { tail "$work/log" >&2; exit 1; }
    echo "broken by $1: $(grep -m 1 '^\[prove_.*: FAILURE' "$work/log")"
}

if [ "${1:-}" = --mutants ]; then
    break_it 's/now_ns < q->held_until_ns/now_ns > q->held_until_ns/' arrival 0
    break_it 's/delay_ns <= ns\(limit_us\)/delay_ns <= 2 * ns(limit_us)/' arrival 0
    break_it 's/now_ns \+ ns\(c->bounds.hold_us\)/now_ns + ns(c->bounds.hold_us) \/ 2/' arrival 1
    break_it 's/^(.*)if \(q->held_until_ns != 0\)$/\1if (false)/' answer 0
    break_it 's/q->hit_credit < L4S_ONE/q->hit_credit == 0/' departure 1
    break_it 's/uint64_t drops = q->window_drops \+ 1;/uint64_t drops = q->window_drops;/' drops 0
    break_it 's/\*credit > L4S_MOST_CREDIT/*credit > 2 * L4S_MOST_CREDIT/' credit 0
    exit
fi
prepare
for name in arrival answer drops likelihood; do
    for queue in 0 1; do
        prove "$name" "$queue" || { grep -E ": FAILURE|rror" "$work/log" >&2 || tail "$work/log" >&2; exit 1; }
        echo "proved: $name, queue $queue"
    done
done
for name in departure credit bounds taking; do
    prove "$name" 1 || { grep -E ": FAILURE|rror" "$work/log" >&2 || tail "$work/log" >&2; exit 1; }
    echo "proved: $name"
done
