#!/usr/bin/env bash
# From nothing to a trained detector: sets up .venv, renders a small data set, trains and tests Faster R-CNN with RedNet-50
# and the involution FPN on it, and draws what it finds. It can be interrupted and run again at any time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh
source .venv/bin/activate

say() { printf '\n[demo] %s\n' "$*"; }
config=configs/mmdet/faster_rcnn_rednet50_invfpn_demo.py
work=work_dirs/demo

if [ ! -f data/demo/annotations/instances_val2017.json ]; then
    say 'Rendering 800 training and 64 validation images to data/demo (seconds)'
    python tools/make_demo_data.py
fi
if [ ! -f "$work/done" ]; then
    say 'Training on 2 CPU cores (about 8 minutes)'
    mim train mmdet "$config" --work-dir "$work" --resume
    touch "$work/done"
fi
checkpoint=$(cat "$work/last_checkpoint")
say "Testing $checkpoint on the validation images (seconds)"
mim test mmdet "$config" --checkpoint "$checkpoint" --work-dir "$work"
say 'Drawing its detections (seconds)'
python tools/draw_detections.py "$config" "$checkpoint" "$work/detections.png"
