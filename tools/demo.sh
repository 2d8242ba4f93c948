#!/usr/bin/env bash
# From nothing to a trained model: sets up .venv, renders a small data set, trains and tests a model on it, and draws what
# it finds. `--task det` (the default): Faster R-CNN with RedNet-50 and the involution FPN; `--task seg`: Semantic FPN with
# both; `--task cls`: RedNet-26. It can be interrupted and run again at any time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { echo 'usage: bash tools/demo.sh [--task cls|det|seg]' >&2; exit 2; }
task=det
if [ $# -gt 0 ]; then
    [ $# = 2 ] && [ "$1" = --task ] || usage
    task=$2
fi
case $task in
    cls) toolbox=mmpretrain config=configs/mmpretrain/rednet26_demo.py duration='3 minutes' ;;
    det) toolbox=mmdet config=configs/mmdet/faster_rcnn_rednet50_invfpn_demo.py duration='8 minutes' ;;
    seg) toolbox=mmseg config=configs/mmseg/semantic_fpn_rednet50_invfpn_demo.py duration='8 minutes' ;;
    *) usage ;;
esac
work=work_dirs/demo_$task

bash tools/setup.sh
source .venv/bin/activate
say() { printf '\n[demo] %s\n' "$*"; }

if [ ! -f data/demo/done ]; then
    say 'Rendering 800 training and 64 validation scenes to data/demo (seconds)'
    python tools/make_demo_data.py
    touch data/demo/done
fi
if [ ! -f "$work/done" ]; then
    say "Training on 2 CPU cores (about $duration)"
    mim train "$toolbox" "$config" --work-dir "$work" --resume
    touch "$work/done"
fi
checkpoint=$(cat "$work/last_checkpoint")
say "Testing $checkpoint on the validation images, and drawing what it finds (seconds)"
if [ "$task" = det ]; then
    mim test mmdet "$config" --checkpoint "$checkpoint" --work-dir "$work"
    python tools/draw_detections.py "$config" "$checkpoint" "$work/detections.png"
else
    mim test "$toolbox" "$config" --checkpoint "$checkpoint" --work-dir "$work" --show-dir "$work/pictures"
fi
