#!/usr/bin/env bash
# What a GPU is wanted for, in one command: speed of training, models at full width, AutoAttack on them.
#
#   benchmarks/on_a_gpu.sh cifar10-jpeg.npz OUT                  # everything, each part for at most its minutes
#   benchmarks/on_a_gpu.sh cifar10-jpeg.npz OUT speed            # or parts of it: speed, methods, models, autoattack
#   MINUTES=9 EPOCHS=30 ROWS=standard,sam-0.1,at benchmarks/on_a_gpu.sh cifar10-jpeg.npz OUT models
#
# A part that fails or runs out of time does not stop the others; `models` goes on where it stopped. Every
# result names device, versions and precision; numbers, cards, records and logs are below OUT.
set -uo pipefail
[ $# -ge 2 ] || { sed -n '2,9p' "$0" >&2; exit 2; }
data=$(realpath "$1") && here=$(dirname "$(realpath "$0")") && mkdir -p "$2" && out=$(realpath "$2") || exit 2
shift 2
python=${PYTHON:-python3}
minutes=${MINUTES:-9}
width=${WIDTH:-64}
failed=0

part() { # NAME COMMAND...: its output in OUT/NAME.log, too
    local name=$1
    shift
    echo "== $name: $*" >&2
    timeout --signal=TERM "$((minutes * 60))" "$@" 2>"$out/$name.log" | tee "$out/$name.txt"
    local code=${PIPESTATUS[0]}
    [ "$code" = 0 ] || { failed=1; echo "$name ended with exit code $code; see $out/$name.log" >&2; }
}

speed() {
    part train_speed "$python" "$here/train_speed.py" --width "$width" --data "$data" --json "$out/train_speed.json"
}
methods() {
    part methods "$python" "$here/methods.py" --width "$width" --json
}
models() {
    part models "$python" "$here/what_they_buy.py" --data "$data" --folder "$out/models" --json "$out/models.json" \
        --width "$width" --epochs "${EPOCHS:-30}" --limit-train "${LIMIT_TRAIN:-0}" --jobs 1 --threads 0 \
        --precision auto --compile auto --n-pgd "${N_PGD:-10000}" --n-autoattack "${N:-1000}" \
        --methods "${ROWS:-standard,sam-0.1,sam-0.2,sam-0.4,at}"
}
autoattack() {
    part autoattack "$python" "$here/autoattack.py" "at-prn18-w$width" --zoo "$out/models/model_zoo" \
        --dataset "$data" --n "${N:-1000}" --engines reference,fast,compiled,bf16 --batch-size 512 --json "$out/autoattack.json"
}

for name in "${@:-speed methods models autoattack}"; do
    for each in $name; do
        case $each in
            speed | methods | models | autoattack) "$each" ;;
            *) echo "$each is none of speed, methods, models, autoattack" >&2; exit 2 ;;
        esac
    done
done
exit "$failed"
