#!/usr/bin/env bash
# Sets up .venv, renders a small data set, trains a model on it, tests the model and draws its predictions.
# `--task det` (the default) trains Faster R-CNN with RedNet-50 and the involution FPN, `--task seg` Semantic FPN with
# the same two, and `--task cls` RedNet-26. FAMILY=onedl uses the OneDL forks. You can interrupt it and run it again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { echo 'usage: bash tools/demo.sh [--task cls|det|seg]' >&2; exit 2; }
task=det
if [ $# -gt 0 ]; then
    [ $# = 2 ] && [ "$1" = --task ] || usage
    task=$2
fi
# OneDL's mim needs the names of OneDL's packages.
case $task in
    cls) toolbox=mmpretrain fork=onedl-mmpretrain config=configs/mmpretrain/rednet26_demo.py duration='1 minute' ;;
    det) toolbox=mmdet fork=onedl-mmdetection config=configs/mmdet/faster_rcnn_rednet50_invfpn_demo.py duration='3 minutes' ;;
    seg) toolbox=mmseg fork=onedl-mmsegmentation config=configs/mmseg/semantic_fpn_rednet50_invfpn_demo.py duration='3 minutes' ;;
    *) usage ;;
esac
[ -z "${FAMILY-}" ] || toolbox=$fork
work=work_dirs/demo_$task${FAMILY:+_$FAMILY}

bash tools/setup.sh
# shellcheck disable=SC1090
source ".venv${FAMILY:+-$FAMILY}/bin/activate"
# This warning is about the imports of mim and mmengine, not about the user's code.
export PYTHONWARNINGS='ignore:pkg_resources is deprecated'
say() { printf '\n[demo] %s\n' "$*"; }

if [ ! -f data/demo/done ]; then
    say 'Rendering 800 training and 64 validation scenes to data/demo (a few seconds)'
    python tools/make_demo_data.py
    touch data/demo/done
fi
if [ ! -f "$work/done" ]; then
    say "Training on 2 CPU cores (about $duration)"
    mim train "$toolbox" "$config" --work-dir "$work" --resume
    touch "$work/done"
fi
# The file contains an absolute path, which is wrong if the folder was moved. Therefore only the name is used.
checkpoint=$work/$(basename "$(cat "$work/last_checkpoint")")

# testing COMMAND...: writes the output to a file, and prints it only if the command fails.
log=$work/test.log
testing() { "$@" >>"$log" 2>&1 || { cat "$log" >&2; exit 1; }; }
: >"$log"
say "Testing $checkpoint on the validation images and drawing its predictions (less than a minute; the log is $log)"
pictures=$work/pictures
if [ "$task" = det ]; then
    testing mim test "$toolbox" "$config" --checkpoint "$checkpoint" --work-dir "$work"
    # mmdet's --show-dir does not enlarge the small images, so the names would be unreadable.
    testing python -m mmrednet predict data/demo/val2017/00000[1-8].jpg --checkpoint "$checkpoint" --score-threshold 0.5 \
        --out "$pictures"
else
    testing mim test "$toolbox" "$config" --checkpoint "$checkpoint" --work-dir "$work" --show-dir "$pictures"
fi

say 'Results on the validation images:'
grep -E '^ ?(Average|[+|])|(accuracy/top1|mIoU): ' "$log" | sed 's/.*(test) *//'
say "The predictions are drawn in $pictures
Next:
    source .venv${FAMILY:+-$FAMILY}/bin/activate
    python -m mmrednet predict YOUR_PHOTO.jpg --config $config --checkpoint $checkpoint --out predictions
README.md explains how to train on COCO, Cityscapes and ImageNet, and how to use RedNet in a config of your own"
