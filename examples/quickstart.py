"""LKCA against softmax attention on a few handwritten digits, in a minute or two.

    python examples/quickstart.py

Trains LKCAViT and ViT of equal size on 100 to 1,400 labelled images of scikit-learn's
digits, prints what they reach on the 397 others, saves the LKCA model, loads it back
and draws what it learned. Downloads nothing. KERAS_BACKEND is tensorflow, jax or torch.
Needs scikit-learn and matplotlib.
"""

import argparse
import pathlib
import time

import keras
import numpy as np
from matplotlib.figure import Figure

from keras_lkca import LKCAViT, ViT, data, interpret
from keras_lkca.files import atomic

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--output", type=pathlib.Path, default="runs/quickstart")
parser.add_argument("--steps", type=int, default=200, help="steps of each training")
parser.add_argument("--sizes", type=int, nargs="+", default=[100, 400, 1400])
args = parser.parse_args()
if args.steps < 1 or not all(50 <= size <= 1400 for size in args.sizes):
    parser.error("--steps must be positive, and --sizes lie between 50 and 1400")
args.output.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(0)

# Images of 8 x 8 pixels, 4 x 4 tokens of 2 x 2, so that the global kernel is 7 x 7.
images, labels = data.digits("train")
test_images, test_labels = data.digits("test")
digits = data.describe("digits")
shared = {
    "input_shape": digits.input_shape,
    "patch_size": 2,
    "depth": 3,
    "drop_path_rate": 0.0,
    "image_mean": digits.mean,
    "image_std": digits.std,
}
builders = {
    "LKCAViT": lambda: LKCAViT(embed_dim=40, **shared),
    "ViT": lambda: ViT(embed_dim=36, num_heads=4, **shared),
}

print(f"Keras {keras.version()} on {keras.config.backend()}, {args.steps} steps each\n")
print("model    parameters  images  test accuracy  seconds")
accuracy = {name: [] for name in builders}
models = {}
for size in args.sizes:
    for name, build in builders.items():
        models[name] = model = build()
        model.compile(
            optimizer=keras.optimizers.Adam(2e-3),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        started = time.perf_counter()
        epochs = max(args.steps * 50 // size, 1)
        model.fit(images[:size], labels[:size], 50, epochs, verbose=0)
        seconds = time.perf_counter() - started
        scores = model.evaluate(test_images, test_labels, 397, 0, return_dict=True)
        accuracy[name].append(scores["accuracy"])
        print(
            f"{name:8} {model.count_params():10,} {size:7,} {scores['accuracy']:14.1%} "
            f"{seconds:8.1f}",
            flush=True,
        )

# A .keras file holds the whole model, its normalisation included.
with atomic(args.output / "digits.keras") as path:
    models["LKCAViT"].save(path)
reloaded = keras.models.load_model(args.output / "digits.keras")
both = (models["LKCAViT"], reloaded)
before, after = (model.predict(test_images, verbose=0) for model in both)
print(f"\nreloaded: logits differ by at most {np.abs(before - after).max():.1e}")

# What was reached, and what was learned: one weight for every relative position.
figure = Figure(figsize=(6, 3.5), layout="constrained")
axes = figure.subplots()
for name, values in accuracy.items():
    axes.plot(args.sizes, values, marker="o", label=name)
axes.set(xscale="log", xlabel="labelled images", ylabel="test accuracy")
axes.set_xticks(args.sizes, args.sizes)
axes.minorticks_off()
axes.legend()
with atomic(args.output / "quickstart.png") as path:
    figure.savefig(path, dpi=120)
with atomic(args.output / "kernels.png") as path:
    interpret.plot_kernels(reloaded).savefig(path, dpi=120)
print(f"wrote digits.keras, quickstart.png and kernels.png into {args.output}")
