"""A file that replaces another."""

import os

from mmrednet.files import replacing


def test_a_device_or_a_pipe_is_written_to(tmp_path):
    """``--json /dev/stdout``: the device must not become a file."""
    os.mkfifo(pipe := tmp_path / 'pipe')
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with replacing(pipe) as part:
        part.write_text('text')
    assert os.read(reader, 9) == b'text' and pipe.is_fifo()
    os.close(reader)
