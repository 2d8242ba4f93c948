"""Renders a small data set of shapes for detection, segmentation and classification.

The scenes have COCO's layout, with boxes and polygons. ``segmentation/`` holds a class map of each scene.
``classification/`` holds crops of the objects, in one folder for each class. The same arguments give the same files.
Nothing is downloaded.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

CLASSES = ('disc', 'triangle', 'star')

# The corners of each shape: angle in degrees, and distance from the centre as a fraction of the radius.
CORNERS = {
    'disc': [(angle, 1) for angle in range(0, 360, 10)],
    'triangle': [(angle, 1) for angle in (0, 120, 240)],
    'star': [(angle, 0.38 if angle % 72 else 1) for angle in range(0, 360, 36)],
}


def draw_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Returns a colour image (size, size, 3): smooth noise of two scales, and lines that belong to no object."""
    image = np.full((size, size, 3), rng.uniform(60, 190, 3))
    for cells, strength in ((4, 30), (24, 8)):
        noise = rng.normal(0, strength, (cells, cells, 3))
        image += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    image = image.clip(0, 255).astype(np.uint8)
    for _ in range(rng.integers(0, 4)):
        start, end = rng.integers(0, size, (2, 2)).tolist()
        cv2.line(image, start, end, rng.integers(0, 256, 3).tolist(), 1, cv2.LINE_AA)
    return image


def draw_mask(rng: np.random.Generator, category: int, size: int) -> np.ndarray:
    """Returns the mask (size, size) of a shape inside the image, with random size, place, rotation and proportions."""
    radius = size * rng.uniform(0.16, 0.28)
    angles, reaches = np.array(CORNERS[CLASSES[category]]).T
    corners = np.stack((np.cos(np.radians(angles)), np.sin(np.radians(angles))), 1) * reaches[:, None]
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    corners = (corners * rng.uniform(0.85, 1, 2)) @ rotation * radius + rng.uniform(radius, size - 1 - radius, 2)
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [corners.round().astype(np.int32)], 1)
    return mask


def draw_scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Returns an image (size, size, 3) and its objects: category and mask (size, size) of its visible part."""
    image = draw_background(rng, size)
    objects = []
    for _ in range(rng.integers(1, 5)):
        category = int(rng.integers(len(CLASSES)))
        mask = draw_mask(rng, category, size)
        # A shape that is mostly covered can no longer be recognised.
        if any((other & mask).sum() > 0.05 * other.sum() for _, other in objects):
            continue
        color = rng.integers(0, 256, 3)
        while abs(color - image[mask > 0].mean(0)).max() < 90:
            color = rng.integers(0, 256, 3)
        shading = np.linspace(*rng.uniform(0.7, 1, 2), size)[:, None, None]
        opacity = cv2.GaussianBlur(mask.astype(float), (3, 3), 0)[..., None]
        image = (image * (1 - opacity) + color * shading * opacity).astype(np.uint8)
        objects = [(kind, other & ~mask) for kind, other in objects] + [(category, mask)]
    return image, objects


def annotate(mask: np.ndarray) -> dict:
    """Returns COCO's bounding box, area and polygons of a mask (H, W)."""
    x, y, w, h = cv2.boundingRect(mask)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    polygons = [contour.flatten().tolist() for contour in contours if len(contour) >= 3]
    return dict(bbox=[x, y, w, h], area=int(mask.sum()), segmentation=polygons, iscrowd=0)


def cut_out(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns a square crop of half the image's side around the object of ``mask``, shifted where the image ends."""
    x, y, w, h = cv2.boundingRect(mask)
    side = len(image) // 2
    left, top = (int(np.clip(a + b / 2 - side / 2, 0, side)) for a, b in ((x, w), (y, h)))
    return image[top : top + side, left : left + side]


def write_split(root: Path, split: str, count: int, size: int, seed: int) -> None:
    """Writes the scenes to ``root/split`` and their annotations, class maps and crops to the other folders."""
    rng = np.random.default_rng(seed)
    maps = root / 'segmentation' / split
    folders = [root / 'classification' / split / name for name in CLASSES]
    for folder in (root / split, root / 'annotations', maps, *folders):
        folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(1, count + 1):
        image, objects = draw_scene(rng, size)
        name = f'{i:06d}.jpg'
        cv2.imwrite(str(root / split / name), image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        cv2.imwrite(str(maps / f'{i:06d}.png'), sum((category + 1) * mask for category, mask in objects))
        images.append(dict(id=i, file_name=name, height=size, width=size))
        for category, mask in objects:
            cv2.imwrite(str(folders[category] / f'{len(annotations) + 1:06d}.png'), cut_out(image, mask))
            annotations.append(dict(id=len(annotations) + 1, image_id=i, category_id=category + 1, **annotate(mask)))
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    (root / 'annotations' / f'instances_{split}.json').write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=categories))
    )


def main() -> None:
    """Writes both splits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('data/demo'), help='folder to write to (default: %(default)s)')
    parser.add_argument('--train', type=int, default=800, help='training scenes (default: %(default)s)')
    parser.add_argument('--val', type=int, default=64, help='validation scenes (default: %(default)s)')
    parser.add_argument('--size', type=int, default=96, help='height and width in pixels (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the scenes (default: %(default)s)')
    args = parser.parse_args()
    write_split(args.out, 'train2017', args.train, args.size, 2 * args.seed)
    write_split(args.out, 'val2017', args.val, args.size, 2 * args.seed + 1)
    print(f'{args.train} training and {args.val} validation scenes of {len(CLASSES)} classes are in {args.out}')


if __name__ == '__main__':
    main()
