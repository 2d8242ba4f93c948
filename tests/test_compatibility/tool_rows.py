"""The toolboxes' command-line tools, run as their users run them. They are slow: each is a process or two."""

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import mmcv
import pytest
import torch
from test_compatibility.rows import ROWS, Network, NotApplicable, Row
from test_compatibility.toolbox_rows import files, picture
from torch.torch_version import TorchVersion

TRAIN = 'train {scope} {config} --work-dir trained --cfg-options log_level=INFO'
PLOT = '{log} --keys loss --out loss.png'


class Tool(NamedTuple):
    """A tool that runs, and what must be there afterwards.

    Args:
        scope (str): The toolbox.
        name (str): The tool, which ``mim run`` finds.
        arguments (str): Its arguments. ``{config}``, ``{checkpoint}``, ``{image}`` and ``{log}`` (of a training) are
            paths; ``{out}`` is the file of a test's predictions.
        creates (str): A pattern of the files that it writes. Defaults to '' (none is checked).
        prints (str): What it prints. Defaults to ''.
        before (str): The command of mim that runs first. Defaults to ''.
        needs (tuple, optional): A package that the toolbox does not install, and the version that is too new.
        gpu (bool): Whether it needs a GPU. Defaults to False.
        feature (str): The row's name on the page. Defaults to '', the tool's command.
    """

    scope: str
    name: str
    arguments: str
    creates: str = ''
    prints: str = ''
    before: str = ''
    needs: tuple[str, str] | None = None
    gpu: bool = False
    feature: str = ''

    def __call__(self, network: Network) -> None:
        """Runs the tool on a small config of the toolbox."""
        if self.needs:
            skip_without(*self.needs)
        if self.gpu and not torch.cuda.is_available():
            raise NotApplicable('the tool needs a GPU')
        if '{out}' in self.arguments:
            values = predictions(network, self.scope)
        else:
            values = dict(zip(('config', 'checkpoint'), files(network, self.scope), strict=True))
        values.update(scope=self.scope, image='image.png')
        mmcv.imwrite(picture(), str(network.folder / 'image.png'))
        if self.before:
            run(network, self.before.format(**values))
        values['log'] = next(network.folder.glob('trained/*/vis_data/scalars.json'), None)
        printed = run(network, f'run {self.scope} {self.name} {self.arguments.format(**values)}')
        assert re.search(self.prints, printed, re.DOTALL)
        assert not self.creates or list(network.folder.glob(self.creates))


def run(network: Network, command: str) -> str:
    """Runs mim in the network's folder; returns what it printed."""
    result = subprocess.run(
        [sys.executable, '-m', 'mim', *command.split()],
        capture_output=True,
        text=True,
        cwd=network.folder,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg'},
    )
    text = result.stdout + result.stderr
    if result.returncode or 'Traceback' in text:
        # The tool's error. The error of mim, which reports that the tool failed, comes after it.
        errors = re.findall(r'^(?!subprocess\.)(?:\w+\.)*\w*[Ee]rror\b.*', text, re.MULTILINE)
        raise RuntimeError(errors[-1] if errors else text.strip()[-200:])
    return text


def skip_without(package: str, below: str) -> None:
    """Skips a row whose tool needs a package in an older version than ``below``."""
    try:
        found = TorchVersion(version(package))
    except PackageNotFoundError:
        found = None
    if found is None or found >= below:
        pytest.skip(f'the tool needs {package}<{below}')


def predictions(network: Network, scope: str) -> dict:
    """Returns the paths of a config, a checkpoint and a test's predictions, which are made once for all tools."""
    shared = Network(network.name, Path(network.data) / f'{network.name}-{scope}', network.data)
    out = shared.folder / 'predictions.pkl'
    config, checkpoint = shared.folder / f'{scope}.py', shared.folder / f'{scope}.pth'
    if not out.is_file():
        shared.folder.mkdir(exist_ok=True)
        files(shared, scope)
        run(shared, f'test {scope} {config} --checkpoint {checkpoint} --out {out}')
    return dict(config=config, checkpoint=checkpoint, out=out)


def for_each(name: str, arguments: str, **options) -> list[Tool]:
    """Returns the tool of the same name in each toolbox."""
    return [Tool(scope, name, arguments, **options) for scope in ('mmpretrain', 'mmdet', 'mmseg')]


CAM, CHARTS = ('grad-cam', '1.5'), ('seaborn', '1')
DEFAULT_CAM = '`mim run mmpretrain vis_cam` without `--target-layers`: it finds the last norm layer'
TOOLS = [
    Tool('mmpretrain', 'analyze_logs plot_curve', PLOT, 'loss.png', before=TRAIN),
    Tool('mmdet', 'analyze_logs plot_curve', PLOT, 'loss.png', before=TRAIN, needs=CHARTS),
    Tool('mmseg', 'analyze_logs', PLOT, before=TRAIN, needs=CHARTS),
    Tool(
        'mmpretrain',
        'vis_cam',
        '{image} {config} {checkpoint} --target-layers backbone.layer2 --save-path cam.png',
        'cam.png',
        needs=CAM,
        feature='`mim run mmpretrain vis_cam`: a class activation map of the last stage',
    ),
    *(
        Tool(
            'mmpretrain',
            'vis_cam',
            f'{{image}} {{config}} {{checkpoint}} --method {method} --save-path cam.png',
            'cam.png',
            needs=CAM,
            feature=f'{DEFAULT_CAM} ({method})',
        )
        for method in ('GradCAM', 'EigenCAM')
    ),
    Tool(
        'mmpretrain',
        'vis_tsne',
        '{config} --checkpoint {checkpoint} --perplexity 2 --work-dir tsne',
        needs=('scikit-learn', '1.7'),
    ),
    *for_each('browse_dataset', '{config} --output-dir browsed --not-show', creates='browsed/**/*.*'),
    Tool('mmpretrain', 'vis_scheduler', '{config} --dataset-size 4 --not-show --save-path lr.png'),
    *for_each('print_config', '{config}', prints='depth=50'),
    Tool('mmpretrain', 'get_flops', '{config} --shape 64 64', prints='Flops.*Params'),
    Tool('mmdet', 'get_flops', '{config}', prints='Flops.*Params'),
    Tool('mmseg', 'get_flops', '{config} --shape 64 64', prints='Flops.*Params'),
    *for_each('publish_model', '{checkpoint} published.pth', creates='**/published*-*.pth'),
    Tool('mmpretrain', 'confusion_matrix', '{config} {checkpoint} --out matrix.pkl', 'matrix.pkl'),
    Tool('mmpretrain', 'analyze_results', '{config} {out} --out-dir analyzed --topk 2', 'analyzed/**/*.*'),
    Tool('mmpretrain', 'eval_metric', '{out} --metric type=Accuracy'),
    Tool(
        'mmpretrain',
        'kfold-cross-valid',
        '{config} --num-splits 2 --fold 0 --work-dir folds --no-persistent-workers',
        feature='`mim run mmpretrain kfold-cross-valid`, the first of two folds',
    ),
    Tool(
        'mmdet',
        'benchmark',
        '{config} --task inference --checkpoint {checkpoint} --fuse-conv-bn --max-iter 4 --num-warmup 1'
        ' --cfg-options log_level=INFO',
        gpu=True,
    ),
    Tool('mmdet', 'analyze_results', '{config} {out} analyzed --topk 1', 'analyzed/**/*.*'),
    Tool('mmdet', 'confusion_matrix', '{config} {out} matrix', 'matrix/**/*.png'),
    Tool('mmdet', 'eval_metric', '{config} {out}'),
    Tool('mmseg', 'benchmark', '{config} {checkpoint} --repeat-times 1', gpu=True),
    Tool(
        'mmseg',
        'confusion_matrix',
        '{config} predicted matrix',
        'matrix/**/*.png',
        before='test {scope} {config} --checkpoint {checkpoint} --out predicted',
    ),
    Tool(
        'mmseg',
        'visualization_cam',
        '{image} {config} {checkpoint} --target-layers backbone.layer4[2] --category-index 1 --device cpu',
        needs=CAM,
    ),
    Tool(
        'mmseg',
        'pytorch2torchscript',
        '{config} --checkpoint {checkpoint} --shape 64 64 --output-file model.pt --verify',
    ),
]


def row(tool: Tool) -> Row:
    """Returns the tool's row."""
    command = f'`mim run {tool.scope} {tool.name}`'
    if tool.before:
        command = f'`mim {tool.before.split()[0]} {tool.scope}`, then {command}'
    elif '{out}' in tool.arguments:
        command = f'`mim test {tool.scope} --out`, then {command}'
    name = f'{tool.scope}-{tool.name.replace(" ", "-")}'
    return Row('Command-line tools of the toolboxes', name, tool.feature or command, tool, tier='slow')


ROWS.extend(map(row, TOOLS))
