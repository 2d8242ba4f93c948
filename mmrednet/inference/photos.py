"""Finding and reading photographs."""

import os
from collections.abc import Callable, Iterable, Iterator
from glob import escape, glob
from typing import Any

from ..errors import one_line
from ..requirements import require

# What of a folder is taken for photographs. Some need an OpenCV that was built for them: without, we say so.
ENDINGS = tuple('.avif .bmp .gif .heic .heif .jfif .jp2 .jpe .jpeg .jpg .pgm .png .ppm .tif .tiff .webp'.split())


def find_photos(arguments: Iterable[str], fail: Callable[[str], None]) -> list[str]:
    """Returns the files that the arguments stand for, each once, in their order."""
    photos: list[str] = []
    for argument in arguments:
        path = os.path.expanduser(argument)
        if os.path.isdir(path):
            files = filter(os.path.isfile, glob(os.path.join(escape(path), '*')))
            found = [file for file in files if file.lower().endswith(ENDINGS)]
            if not found:
                fail(f"{argument} is a folder without images: for those in its folders give '{argument}/**/*.jpg'")
        elif os.path.exists(path):
            found = [path]
        else:
            found = list(filter(os.path.isfile, glob(path, recursive=True)))
            if not found:
                fail(f'{argument} is no file or folder, and no pattern of one: give the path of a photograph')
        photos += sorted(found)
    return list(dict.fromkeys(photos))


def read_photos(photos: Iterable[str], fail: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """Yields paths and images (H, W, 3) in BGR as the toolboxes' loader has them: turned as EXIF says, of 8 bits."""
    os.environ.setdefault('OPENCV_LOG_LEVEL', 'ERROR')  # of damaged images we tell
    require('mmcv')
    import mmcv

    for photo in photos:
        try:
            image, reason = mmcv.imread(photo), 'it is damaged, or in no format that OpenCV reads'
        except Exception as error:  # the file system's, which tell, and OpenCV's, which do not
            image, reason = None, one_line(error) if isinstance(error, OSError) else 'it is empty or damaged'
        if image is None:
            fail(f'{photo} cannot be read as an image ({reason}): give it as JPEG or PNG')
        else:
            yield photo, image
