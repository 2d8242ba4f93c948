"""Reads hostile checkpoints in this process: ``python hostile.py FOLDER SEED COUNT``. Ends with an error on a fault.

A fault is code that runs, a file that is written, more than 256 MiB of memory, an error that is no ValueError of one
printable line, or the end of the process.
"""

import io
import pickle
import random
import resource
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save as save_safetensors

from mmrednet.checkpoint import load

MEMORY = 256 << 20
# The audit events of Python when it runs a program, loads a library, connects or deletes.
FORBIDDEN = ('os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'subprocess.', 'ctypes.', 'socket.', 'os.remove')
NAMES = ('../../up', '/absolute', '\x1b[2J\x1b]0;title\x07', 'a\nb', '__class__', '\0', 'é' * 9, 'x' * 5000)


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def torch_file(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def zip_file(records, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', compression) as archive:
        for name, content in records:
            archive.writestr(name, content)
    return file.getvalue()


def seeds():
    """Yields the endings and contents of good files, which are then spoilt."""
    weights = OrderedDict((name, torch.arange(12.0).reshape(3, 4)) for name in ('a.weight', 'b.weight'))
    meta = dict(epoch=3, palette=np.arange(6).reshape(2, 3), score=np.float64(0.5), classes=('cat', 'dog'))
    for options in ({}, dict(_use_new_zipfile_serialization=False)):
        yield 'pth', torch_file(dict(state_dict=weights, meta=meta), **options)
        yield 'pth', torch_file(weights, **options)
        yield 'pth', torch_file(dict(state_dict=dict.fromkeys(NAMES, weights['a.weight']), meta=meta), **options)
    yield 'safetensors', save_safetensors(dict(weights), dict(format='pt', meta='{"epoch": [1, 2]}'))
    yield 'safetensors', save_safetensors({name: torch.ones(2) for name in NAMES})
    arrays = {'fc.weight': np.ones((3, 4), np.float32), 'bn._mean': np.ones(3, np.float32), 'i': np.ones(2, np.int64)}
    for protocol in (2, 4):
        yield 'pdparams', pickle.dumps(arrays, protocol)
        yield 'pdparams', pickle.dumps(dict.fromkeys(NAMES, arrays['fc.weight']), protocol)


def crafted():
    """Yields the endings and contents of files that are made to do harm."""
    deep = b'\x80\x02' + b'(' * 100_000 + b't' * 100_000 + b'.'
    lists = b'\x80\x02' + b']' * 100_000 + b'a' * 99_999 + b'.'
    huge = struct.pack('<Q', 1 << 40)
    # An index for which C's unpickler uses 1 GiB. It refuses a larger one where memory is short, which would go unseen.
    memo = b'\x80\x02}r' + struct.pack('<I', 64 << 20) + b'.'
    encode = b'c_codecs\nencode\n'
    # One array of 1 MiB under 2,000 names.
    shared = pickle.dumps(dict.fromkeys(map(str, range(2000)), np.zeros(1 << 18, np.float32)), 4)
    fanned = bytearray(b'\x80\x04' + b'B' + struct.pack('<I', 1 << 20) + bytes(1 << 20) + b'\x94}(')
    start = b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R'
    state = b'(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb'
    dtype = b'cnumpy\ndtype\nX\x02\x00\x00\x00f4K\x00K\x01\x87R' + state
    for i in range(2000):
        name = f'p{i}'.encode()
        fanned += b'X' + struct.pack('<I', len(name)) + name + start
        fanned += b'(K\x01J' + struct.pack('<i', 1 << 18) + b'\x85' + dtype + b'\x89h\x00tb'
    for ending in ('pth', 'pdparams'):
        yield from ((ending, content) for content in (deep, lists, memo, shared, bytes(fanned) + b'u.'))
        yield ending, b'\x80\x04\x8e' + huge + b'.'  # bytes of a length that the file does not have
        yield ending, b'\x80\x04\x96' + huge + b'.'
        yield ending, b'\x80\x02' + encode + b'\x8a\x08' + huge + b'X\x06\x00\x00\x00latin1\x86R.'
        yield ending, b'\x80\x02cbuiltins\nbytearray\n\x8a\x08' + huge + b'\x85R.'
        yield ending, b'\x80\x02c\x1b[2J\n\x1b[31mname\nR.'
        for call in (Call(eval, '1'), Call(exec, 'import os'), Call(__import__, 'os'), Call(open, 'written', 'w')):
            yield ending, pickle.dumps(dict(a=call), 4) if ending == 'pdparams' else torch_file(dict(a=call))
    yield 'pth', zip_file([('a/data.pkl', bytes(1 << 30)), ('a/version', '3')], zipfile.ZIP_DEFLATED)
    yield 'pth', zip_file([('../../data.pkl', memo), ('/tmp/version', '3'), ('..\\data/0', b'1')])
    yield 'pth', zip_file([('a/data.pkl', deep), ('a/version', '3'), ('a/byteorder', 'little')])
    good = torch_file(dict(a=torch.ones(3)))
    yield 'pth', good.replace(b'K\x03', b'J\xff\xff\xff\x7f')  # sizes that the storage does not have
    yield 'pth', good.replace(b'K\x01\x85', b'K\x00\x85').replace(b'K\x03\x85', b'M\xff\xff\x85')
    for header in (
        b'[' * 100_000,
        b'{"a":' * 50_000,
        b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}',
    ):
        yield 'safetensors', struct.pack('<Q', len(header)) + header + bytes(4)
    yield 'safetensors', struct.pack('<Q', 1 << 40) + b'{'
    yield 'safetensors', save_safetensors(dict(a=torch.ones(1)), dict(meta='[' * 100_000))
    yield 'safetensors', save_safetensors(dict(a=torch.ones(1)), dict(meta='9' * 100_000))


def spoil(content, rng):
    """Returns a copy of a file with one to four faults."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 4))):
        at = rng.randrange(len(content) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            for _ in range(rng.choice((1, 1, 2, 16))):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del content[max(at, 1) :]
        elif kind == 2:  # a length
            value = rng.choice((0, 1, 127, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 64) - 1))
            content[at : at + 8] = struct.pack('<Q', value)[: rng.choice((1, 2, 4, 8))]
        elif kind == 3:
            content[at:at] = rng.choice(NAMES).encode()[:40]
        elif kind == 4:
            end = at + rng.randint(1, 64)
            content[at:at] = content[at:end] * rng.choice((1, 2, 50))
        else:
            del content[at : at + rng.randint(1, 16)]
        content = content or bytearray(b'\0')
    return bytes(content)


def main(folder, seed, count):
    """Reads all crafted files and ``count`` spoilt ones."""
    rng, done, found = random.Random(seed), {True: 0, False: 0}, list(seeds())
    watched = [False]

    def watch(event, arguments):
        written = event == 'open' and arguments[1] and set(str(arguments[1])) & set('wax+')
        if watched[0] and (event.startswith(FORBIDDEN) or written):
            raise SystemExit(f'{event} {arguments} by a checkpoint')

    cases = [*crafted(), *((ending, spoil(content, rng)) for ending, content in rng.choices(found, k=count))]
    for ending, content in found:  # what is imported and allocated once
        path = Path(folder, f'good.{ending}')
        path.write_bytes(content)
        assert load(str(path))['state_dict']
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.addaudithook(watch)
    for number, (ending, content) in enumerate(cases):
        path = Path(folder, f'case.{ending}')
        path.write_bytes(content)
        watched[0] = True
        try:
            load(str(path))
        except ValueError as error:
            watched[0] = False
            text = str(error)
            assert text.isprintable() and len(text) < 1500, (number, text)
            done[False] += 1
        except Exception as error:
            raise SystemExit(f'case {number}: {type(error).__name__}: {error}') from error
        else:
            done[True] += 1
        watched[0] = False
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        assert grown < MEMORY, f'case {number} ({ending}) took {grown >> 20} MiB'
    print(f'{len(cases)} files: {done[True]} read, {done[False]} refused, {grown >> 20} MiB')


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
