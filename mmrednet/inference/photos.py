"""Finds photographs, reads them as a config's pipeline does, and makes pictures of them that can be drawn on."""

import os
import re
from collections.abc import Callable, Iterable
from glob import escape, glob
from typing import NamedTuple

import cv2
import numpy as np

from ..errors import one_line

# Files of a folder with these endings count as photographs. OpenCV reads some of them only if it was built for them.
ENDINGS = tuple('.avif .bmp .gif .heic .heif .jfif .jp2 .jpe .jpeg .jpg .mpo .pgm .png .ppm .tif .tiff .webp'.split())
# The names of the pictures that `predict` draws.
DRAWN = re.compile(r'_prediction(_\d+)?\.png$')


class Photos(NamedTuple):
    """The photographs that paths and patterns stand for."""

    files: list[str]  # each once, in the order of the arguments
    problems: list[str]  # what is wrong with arguments that stand for no photograph, and what to do
    drawn: list[str]  # pictures that `predict` drew earlier, which are left out of folders and patterns


def find_photos(arguments: Iterable[str]) -> Photos:
    """Finds the photographs that files, folders and patterns stand for."""
    files: list[str] = []
    problems: list[str] = []
    drawn: list[str] = []
    for argument in arguments:
        path = os.path.expanduser(argument)
        if os.path.isdir(path):
            found = [file for file in sorted(glob(os.path.join(escape(path), '*'))) if file.lower().endswith(ENDINGS)]
            problem = f"is a folder without images: for those in its folders give '{argument}/**/*.jpg'"
        elif os.path.exists(path):
            files.append(path)
            continue
        else:
            found = sorted(filter(os.path.isfile, glob(path, recursive=True)))
            problem = 'is not a file or folder, and no file matches it as a pattern: give the path of a photograph'
        if not found:
            problems.append(f'{argument} {problem}')
        for file in found:
            (drawn if DRAWN.search(file) else files).append(file)
    return Photos(list(dict.fromkeys(files)), problems, list(dict.fromkeys(drawn)))


def read_photo(path: str, load: Callable[[dict], dict]) -> np.ndarray:
    """Reads a photograph (H, W) or (H, W, C) with the loading steps of a pipeline. Colours are BGR.

    Raises:
        ValueError: The file cannot be read, or holds no image that the steps can read.
    """
    return load_photo(dict(img_path=path), load)['img']


def load_photo(sample: dict, load: Callable[[dict], dict]) -> dict:
    """Returns the result of the loading steps for a sample. The errors are those of :func:`read_photo`."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # the error below replaces OpenCV's messages
    path = sample['img_path']
    try:
        if '://' not in path and os.path.exists(path) and not os.path.isfile(path):
            raise ValueError('it is not a regular file')  # reading a pipe would wait for ever
        return load(sample)
    except FileNotFoundError as error:
        raise ValueError(f'there is no file {path}: correct the path') from error
    except Exception as error:
        reason = one_line(error)
        if 'MAX_IMAGE_PIXELS' in reason:
            reason = 'it has more pixels than OPENCV_IO_MAX_IMAGE_PIXELS allows, by default 2^30'
        elif isinstance(error, AssertionError | cv2.error):
            # mmcv asserts that OpenCV returned an image, and OpenCV gives no reason.
            reason = 'it is empty or damaged, or in no format that OpenCV reads'
        raise ValueError(f'{path} cannot be read as an image ({reason}): give a JPEG or PNG file') from error


def to_picture(image: np.ndarray) -> np.ndarray:
    """Converts an image of any dtype and number of channels, in BGR, to 8-bit RGB (H, W, 3).

    8-bit integers keep their values. So do other types if all values are from 0 to 255 and the largest is above 1. Else
    the image's range is scaled to 0 to 255. One or two channels become grey, from the first. More than three channels
    become colours, from the first three.
    """
    image = image[..., None] if image.ndim == 2 else image
    image = np.repeat(image[..., :1], 3, 2) if image.shape[2] < 3 else image[..., 2::-1]
    if image.dtype != np.uint8:
        image = np.nan_to_num(image.astype(np.float64), posinf=0, neginf=0)
        low, high = image.min(), image.max()
        if low < 0 or high > 255 or high <= 1:
            image = (image - low) * (255 / ((high - low) or 1))
    return np.ascontiguousarray(image.astype(np.uint8))
