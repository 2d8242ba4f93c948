"""Hostile names of files, checkpoints, configs and classes, and hostile ``last_checkpoint`` files.

Nothing is written or deleted outside the target folder, no program runs, and an error is one printable line.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import check_cases
from hypothesis import strategies as st

from mmrednet.__main__ import main
from mmrednet.checkpoint import load
from mmrednet.engine.resuming import find_checkpoint
from mmrednet.errors import one_line, printable
from mmrednet.files import replacing
from mmrednet.inference.photos import find_photos, read_photo
from mmrednet.toolboxes import read_config

PIECES = (
    *(
        '..',
        '/',
        '../',
        'a',
        '.pth',
        '.jpg',
        '.py',
        '~',
        '~root',
        '\\',
        ' ',
        '*',
        '**',
        '[',
        '?',
        '{',
        '}',
        '%s',
        '#sha256=',
    ),
    *('\0', '\n', '\r', '\x1b[2J', '\x1b]0;title\x07', '\u202e', '\udcff', 'é', '字' * 90, 'x' * 300, 'x' * 5000),
    *(
        'http://',
        'file://',
        's3://',
        'mmrednet://',
        'mmdet::',
        '::',
        '$(touch written)',
        '`touch written`',
        ';',
        '|',
        '/dev/null',
    ),
    *(
        '/proc/self/environ',
        'epoch_{}',
        'epoch_99999999999999999999.pth',
        'epoch_-1.pth',
        'rednet50',
        '__import__("os")',
    ),
)
TEXTS = st.lists(st.sampled_from(PIECES), max_size=5).map(''.join)
FORBIDDEN = ('os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'subprocess.', 'ctypes.dlopen', 'socket.connect')
WRITES = ('os.remove', 'os.rename', 'os.rmdir', 'os.mkdir', 'os.link', 'os.symlink', 'os.chmod', 'shutil.')

watched = []  # the folders of the current check in which may be written
events = []


def watch(event, arguments):
    if not watched:
        return
    written = event.startswith(WRITES) or event == 'open' and set(str(arguments[1] or '')) & set('wax+')
    paths = [os.path.realpath(os.fsdecode(a)) for a in arguments[:1] if isinstance(a, str | bytes | os.PathLike)]
    outside = [path for path in paths if not path.startswith(tuple(watched)) and path != '/dev/null']
    if event.startswith(FORBIDDEN) or written and outside:
        events.append((event, arguments))


@pytest.fixture
def guarded(tmp_path, monkeypatch):
    """Returns a function that calls another one, and records what it writes elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    for name in ('XDG_CACHE_HOME', 'TORCH_HOME'):
        monkeypatch.delenv(name, raising=False)  # downloads go to the home folder
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))  # mmengine copies a config before it runs it
    if watch not in guarded_hooks:
        sys.addaudithook(watch)
        guarded_hooks.append(watch)

    def call(function, *arguments, errors=(ValueError, OSError)):
        events.clear()
        watched.append(str(tmp_path))
        try:
            return function(*arguments)
        except errors as error:
            text = one_line(error)
            assert text.isprintable() and len(text) < 5000
            return None
        finally:
            watched.clear()
            assert not events
            assert not (tmp_path / 'written').exists()

    return call


guarded_hooks = []  # a hook cannot be removed


@pytest.fixture
def no_network(monkeypatch):
    """Lets every connection fail at once."""

    def refuse(*_, **__):
        raise OSError('no network')

    monkeypatch.setattr('torch.hub.download_url_to_file', refuse)
    monkeypatch.setattr('mmengine.runner.CheckpointLoader.load_checkpoint', refuse)


def test_names_of_checkpoints(request, guarded, no_network):
    def check(text):
        guarded(load, text)

    check_cases(request, TEXTS, check)


def test_names_of_configs(request, guarded, no_network):
    # A name with '::' is a package's, which mmengine may not find.
    texts = TEXTS.filter(lambda text: '::' not in text)

    def check(text):
        guarded(read_config, text)

    check_cases(request, texts, check)


def test_names_of_photographs(request, guarded):
    def check(text):
        found = guarded(find_photos, [text])
        for file in found.files[:3] if found else ():
            guarded(read_photo, file, lambda results: {'img': np.fromfile(results['img_path'], np.uint8, 10)})

    check_cases(request, TEXTS.filter(lambda text: '**' not in text or '/' not in text), check)


def test_last_checkpoint(request, guarded, tmp_path):
    """The result is a URL, a checkpoint that can be read, or an error in one line."""
    run = tmp_path / 'run'
    run.mkdir()
    torch.save(dict(state_dict={}), run / 'epoch_1.pth')

    def check(text):
        (run / 'last_checkpoint').write_bytes(text.encode(errors='surrogateescape'))
        found = guarded(find_checkpoint, str(run))
        assert found is None or '://' in found or found == str(run / 'epoch_1.pth')

    check_cases(request, TEXTS, check)


def test_names_of_written_files(request, guarded, tmp_path):
    """The name of a picture comes from the photograph's, and stays in the folder of pictures."""
    folder = tmp_path / 'pictures'

    def write(text):
        with replacing(folder / f'{Path(text).stem}_prediction.png') as part:
            part.write_bytes(b'')

    def check(text):
        guarded(write, text)
        assert {path.name for path in tmp_path.iterdir()} <= {'pictures'}

    check_cases(request, TEXTS, check)


def test_commands_end_with_one_line(request, guarded, no_network, capsys):
    """The commands that need no toolbox's model, with hostile arguments."""

    def check(text):
        for command in (['config', text], ['convert', text, 'out.pth'], ['visualize', text]):
            if text.startswith('-'):
                continue
            guarded(main, command, errors=SystemExit)
            error = capsys.readouterr().err.rstrip('\n').splitlines()
            assert not error or error[-1].isprintable() and 'Traceback' not in error[-1]

    check_cases(request, TEXTS.filter(lambda text: '::' not in text), check, 10)


def test_printable(request):
    def check(text):
        assert printable(text).isprintable()

    check_cases(request, st.text(), check)
