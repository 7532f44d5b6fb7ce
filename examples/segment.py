"""Tell the class of every pixel of your own images, from masks to a served model.

    KERAS_BACKEND=torch python examples/segment.py camvid/ --ignore 11 --epochs 40

FOLDER holds folders train and test, and if you like val, each of a folder images and a
folder masks: files paired by name, a mask's values the numbers of the classes. A file
classes.txt names them, one a line. KERAS_BACKEND is tensorflow, jax or torch. Writes
the best and the last model, the history, metrics and pictures into --output, and masks
of some test images. On the command line, `keras-lkca train FOLDER --task segmentation`
does the same.
"""

import argparse
import pathlib

import keras
import numpy as np

from keras_lkca import LKCASegmenter, data, deploy
from keras_lkca.training import Recipe, fit

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("folder", metavar="FOLDER", type=pathlib.Path)
parser.add_argument("--ignore", type=int, default=255, help="value of such pixels")
parser.add_argument("--preset", default="lkca_net_03m", help="the backbone")
parser.add_argument("--image-size", type=int, help="default: as they are")
parser.add_argument("--epochs", type=int, default=40)
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--output", type=pathlib.Path, default="runs/segment")
args = parser.parse_args()
keras.utils.set_random_seed(0)

options = args.image_size, args.ignore
images, masks, facts = data.from_mask_directory(args.folder / "train", *options)
*test, _ = data.from_mask_directory(args.folder / "test", *options)
validation = 0.1
if (args.folder / "val").is_dir():
    *validation, _ = data.from_mask_directory(args.folder / "val", *options)
print(f"{len(images)} images of {facts.input_shape}, {facts.num_classes} classes")

model = LKCASegmenter.from_preset(
    args.preset,
    facts.input_shape,
    facts.num_classes,
    num_kernels=1,  # which reaches over the whole image, and is as large
    class_names=facts.class_names or None,  # saved with the model, as its colours are
    class_colors=facts.class_colors or None,
    image_mean=facts.mean,
    image_std=facts.std,
)
# What moves an image moves its mask: mirrored, shifted, zoomed, turned.
recipe = Recipe.segmentation(
    epochs=args.epochs, batch_size=args.batch_size, learning_rate=2e-3
)
metrics = fit(
    model,
    (images, masks),
    validation=validation,  # chooses the best epoch, by the mean IoU
    test=test,
    recipe=recipe,
    output=args.output,
    resume=(args.output / "config.json").exists(),  # a run that was stopped goes on
    facts=facts,
)
print(f"mean IoU {metrics['best']['test_mean_iou']:.1%} of the test images")
for name, iou in metrics["best_per_class_iou"].items():
    print(f"    {name:12} {'not there' if iou is None else f'{iou:.1%}'}")

# From here on as any other program: arrays or files in, a class for each pixel out.
found = deploy.predict_masks(args.output / "best.keras", test[0][:4])
print(f"predicted {found.shape}, of the classes {np.unique(found).tolist()}")
