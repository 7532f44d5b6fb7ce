"""A feature pyramid of LKCA blocks: trained, folded for inference, exported.

    KERAS_BACKEND=jax python examples/pyramid.py --epochs 10

The blocks are functions of tensors, so any graph can be built of them. Here the grid
shrinks from 8 x 8 to 4 x 4 while the channels grow, as in a convolutional network. The
images are scikit-learn's digits; nothing is downloaded. KERAS_BACKEND is tensorflow,
jax or torch. --format onnx (or litert, tf_saved_model, openvino, torch) also exports
the model, with the packages of the extra `export`.
"""

import argparse
import pathlib

import keras
import numpy as np

from keras_lkca import data, deploy, predict
from keras_lkca.models import ImageModel, lkca_block
from keras_lkca.training import Recipe, fit

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--output", type=pathlib.Path, default="runs/pyramid")
parser.add_argument("--format", choices=sorted(deploy.FORMATS))
args = parser.parse_args()
keras.utils.set_random_seed(0)
digits = data.describe("digits")


def make_pyramid(widths=(24, 48), depths=(2, 2)):
    """Build stages of blocks, each on a grid half as wide as the one before."""
    inputs = keras.Input(digits.input_shape)
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        stride = 1 if stage == 0 else 2
        x = keras.layers.Conv2D(width, 3, strides=stride, padding="same")(x)
        for index in range(depth):
            # A kernel per eight channels in the last stage, one for all before.
            kernels = width // 8 if stage == len(widths) - 1 else 1
            x = lkca_block(x, num_kernels=kernels, name=f"stage{stage}_block{index}")
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.LayerNormalization()(x)
    outputs = keras.layers.Dense(digits.num_classes)(x)
    return ImageModel(inputs, outputs, digits.class_names, name="pyramid")


model = make_pyramid()
fit(
    model,
    data.digits("train"),
    validation=0.1,
    test=data.digits("test"),
    recipe=Recipe.quick(epochs=args.epochs, batch_size=50, crop_padding=1),
    output=args.output,
    resume=(args.output / "config.json").exists(),  # a run that was stopped goes on
    facts=digits,
)
best = keras.models.load_model(args.output / "best.keras")
for name in ("stage0_block0_lkca", "stage1_block0_lkca"):
    print(f"{name}: kernel {tuple(best.get_layer(name).kernel.shape)}")

# The same function with fewer parameters, where a layer has one kernel.
folded = deploy.fold(best)
images, _ = data.digits("test")
before, after = (each.predict(images, verbose=0) for each in (best, folded))
print(
    f"folded: {best.count_params():,} parameters became {folded.count_params():,}, "
    f"logits differ by at most {np.abs(before - after).max():.1e}"
)
print("the first test image:", predict(folded, images[:1], top=2)[0])
if args.format:
    path = deploy.export(best, args.output / "exported", args.format)
    print(f"wrote {path}")
