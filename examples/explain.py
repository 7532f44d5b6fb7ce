"""Look inside a trained model: one HTML page of pictures, and its numbers.

    python examples/explain.py runs/cifar100.keras --dataset cifar100
    python examples/explain.py lkca.keras --beside vit.keras --output report.html

Takes a .keras file with LKCA layers, and images of the dataset that it was trained on
(digits need no download). KERAS_BACKEND is tensorflow, jax or torch. Needs matplotlib.
For a folder of images there is `keras-lkca report`.
"""

import argparse

import keras

from keras_lkca import data, interpret

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("model", help="a .keras file with LKCA layers")
parser.add_argument("--beside", help="a .keras file of a ViT, shown beside it")
parser.add_argument("--dataset", default="digits")
parser.add_argument("--data-dir", help="folder that holds the datasets")
parser.add_argument("--images", type=int, default=64, help="to average over")
parser.add_argument("--output", default="report.html")
args = parser.parse_args()

model = keras.models.load_model(args.model, compile=False)
beside = args.beside and keras.models.load_model(args.beside, compile=False)
images, _ = data.load(args.dataset, "test", args.data_dir)

# Where do the layers look: nearby or far, evenly or to one side?
print("layer           reach  within 1 token  odd  low frequencies")
for name, numbers in interpret.kernel_statistics(model).items():
    print(
        f"{name:15} {numbers['mean_distance_on_grid'].mean():5.2f} "
        f"{numbers['within_1'].mean():15.0%} {numbers['odd'].mean():4.0%} "
        f"{numbers['low_frequency'].mean():16.0%}"
    )
path = interpret.report(model, images[: args.images], args.output, beside)
print(f"wrote {path}")
