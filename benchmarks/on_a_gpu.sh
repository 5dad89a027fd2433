#!/usr/bin/env bash
# What a GPU is wanted for, in three commands of less than ten minutes each:
#
#   benchmarks/on_a_gpu.sh FILE.npz OUT a   # does everything run; speeds; which levers pay (8.5 minutes)
#   benchmarks/on_a_gpu.sh FILE.npz OUT b   # five models at full width, PGD, AutoAttack as far as it gets (9.5)
#   benchmarks/on_a_gpu.sh FILE.npz OUT c   # the AutoAttack engine beside its authors' code; what b left undone (6.5)
#
# Environment: PYTHON, WIDTH (64), EPOCHS (20), DEVICE (cuda), LIMIT (575 seconds a command). A part that fails or
# runs out of time does not stop the others. Numbers, cards, records and logs are in OUT; b and c go on where they stopped.
set -uo pipefail
[ $# -eq 3 ] || { sed -n '2,9p' "$0" >&2; exit 2; }
data=$(realpath "$1") && mkdir -p "$2/logs" && out=$(realpath "$2") || exit 2
part=$3
python=${PYTHON:-python3} width=${WIDTH:-64} epochs=${EPOCHS:-20} device=${DEVICE:-cuda} limit=${LIMIT:-575}
here=$(dirname "$(realpath "$0")")
root=$(dirname "$here")
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export TORCHINDUCTOR_CACHE_DIR=$out/inductor TRITON_CACHE_DIR=$out/triton
cd "$out" || exit 2
failed=0

within() { # SECONDS NAME COMMAND...: at most so long, and no longer than the whole; output in OUT/logs
    local most=$1 name=$2 left=$((limit - SECONDS)) code
    shift 2
    [ "$left" -ge 20 ] || { echo "-- $name: no time left"; return; }
    [ "$most" -le "$left" ] || most=$left
    echo "== $name (at most $most s) at $SECONDS s: $*"
    timeout --signal=TERM --kill-after=15 "$most" "$@" >"logs/$name.txt" 2>"logs/$name.err"
    code=$?
    tail -n "${TAIL:-12}" "logs/$name.txt"
    [ "$code" = 0 ] || { failed=1; echo "!! $name: exit code $code"; tail -n 6 "logs/$name.err"; }
}
models() { # SECONDS
    within "$1" models "$python" "$here/what_they_buy.py" --data "$data" --folder "$out/models" --json "$out/models.json" \
        --width "$width" --epochs "$epochs" --limit-train "${LIMIT_TRAIN:-0}" --jobs "${JOBS:-2}" --threads 4 \
        --precision auto --compile auto --n-pgd "${N_PGD:-10000}" --n-autoattack "${N:-500}" \
        --methods "${ROWS:-standard,at,sam-0.1,n-fgsm-1,sam-0.4}"
}

case $part in
a)
    [ "$device" = cpu ] || nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,power.limit --format=csv
    within 40 doctor "$python" -m sam_bench doctor
    [ ! -d "$root/tests" ] || within 75 tests "$python" -m pytest -q -p no:cacheprovider --rootdir "$root" -c "$root/pyproject.toml" \
        "$root/tests/test_device.py" "$root/tests/test_energy.py" "$root/tests/training/test_optimizers.py" \
        "$root/tests/training/test_metrics.py" "$root/tests/evaluation/test_batch_size.py"
    export SAM_BENCH_ZOO=$out/smoke-zoo
    within 90 smoke-train "$python" -m sam_bench train --recipe sam-at --dataset "$data" --width 16 --epochs 1 --limit-train "${SMOKE:-3000}" \
        --validation 256 --compile on --precision auto --device "$device" --name smoke
    for attack in pgd pgd-margin autoattack autoattack-bf16; do
        within 45 "smoke-$attack" "$python" -m sam_bench evaluate smoke --dataset "$data" --attack "$attack" --eps 4/255 \
            --n-examples "${SMOKE_N:-64}" --device "$device"
    done
    within 60 smoke-compiled "$python" -m sam_bench evaluate smoke --dataset "$data" --attack autoattack --eps 4/255 \
        --n-examples "${SMOKE_N:-128}" --compile on --batch-size 128 --device "$device" --output "$out/compiled.json"
    within 170 speed "$python" "$here/train_speed.py" --width "$width" --data "$data" --steps "${STEPS:-100}" --rounds 5 \
        --workers "${WORKERS:-12}" --device "$device" --json "$out/train_speed.json"
    TAIL=60 within 220 levers "$python" "$here/levers.py" --seconds 180 --width "$width" --device "$device" --json "$out/levers.json"
    ;;
b)
    models 570
    ;;
c)
    within 200 autoattack "$python" "$here/autoattack_engines.py" "at-prn18-w$width" --zoo "$out/models/model_zoo" --dataset "$data" \
        --n 512 --engines fast,bf16,compiled,reference --batch-size 512 --device "$device" --json "$out/autoattack.json"
    models 330
    ;;
*)
    echo "$part is none of a, b, c" >&2
    exit 2
    ;;
esac
exit "$failed"
