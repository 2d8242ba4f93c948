"""Draws a detector's detections on images of its validation split, as one picture."""

import argparse

import mmcv
import numpy as np
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import DATASETS
from mmdet.visualization import DetLocalVisualizer

COLUMNS = 4


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the detector')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('out', help='picture to write')
    parser.add_argument('--images', type=int, default=8, help='number of images (default: %(default)s)')
    parser.add_argument('--score', type=float, default=0.5, help='least score that is drawn (default: %(default)s)')
    parser.add_argument('--side', type=int, default=320, help="a tile's height and width (default: %(default)s)")
    args = parser.parse_args()

    model = init_detector(args.config, args.checkpoint, device='cuda' if torch.cuda.is_available() else 'cpu')
    dataset = DATASETS.build(model.cfg.val_dataloader.dataset)
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = model.dataset_meta
    tiles = []
    for index in range(min(args.images, len(dataset))):
        image = mmcv.imread(dataset.get_data_info(index)['img_path'])
        result = inference_detector(model, image).cpu()
        # Enlarged first, so that lines and letters stay fine.
        image, scale = mmcv.imrescale(image, (args.side, args.side), return_scale=True)
        found = result.pred_instances
        found.bboxes *= scale
        if 'masks' in found:
            masks = [
                mmcv.imresize(mask.astype(np.uint8), image.shape[1::-1], 'nearest') for mask in found.masks.numpy()
            ]
            found.masks = np.array(masks, bool).reshape(len(masks), *image.shape[:2])
        visualizer.add_datasample('', image[..., ::-1], result, draw_gt=False, pred_score_thr=args.score)
        drawn = visualizer.get_image()
        tiles.append(mmcv.impad(drawn, shape=(args.side, args.side), pad_val=255))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % COLUMNS)
    rows = [np.hstack(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)]
    mmcv.imwrite(np.vstack(rows)[..., ::-1], args.out)
    print(f'Detections with a score of at least {args.score} are drawn in {args.out}')


if __name__ == '__main__':
    main()
