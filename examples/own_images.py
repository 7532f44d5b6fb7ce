"""Train on a folder of your own images, and classify some of them.

    KERAS_BACKEND=jax python examples/own_images.py pets/ --epochs 20

FOLDER holds one folder of images per class, such as pets/cat/*.jpg and pets/dog/*.jpg.
A fifth of the images is held out for the test. KERAS_BACKEND is tensorflow, jax or
torch. Writes the best and the last model, the history, metrics and pictures into
--output. On the command line, `keras-lkca train pets/` does the same, and with
`--start-from lkca_net_08m_cifar10` it begins with what a model learned of CIFAR-10.
"""

import argparse
import pathlib

import keras

from keras_lkca import LKCAViT, data, predict
from keras_lkca.training import Recipe, fit

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("folder", metavar="FOLDER", help="with one folder per class")
parser.add_argument("--image-size", type=int, default=64, help="pixels")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--output", type=pathlib.Path, default="runs/own_images")
args = parser.parse_args()
keras.utils.set_random_seed(0)

# Cropped about the centre and resized; `facts` holds what the folder says of itself.
images, labels, facts = data.from_directory(args.folder, args.image_size)
held_out, kept = data.split(labels, 0.2)
print(f"{len(kept)} images to train on, {len(held_out)} for the test")
print(f"classes: {', '.join(facts.class_names)}")

model = LKCAViT.from_preset(
    "lkca_vit_05m",
    input_shape=facts.input_shape,
    num_classes=facts.num_classes,
    class_names=facts.class_names,  # saved with the model, as is the normalisation
    image_mean=facts.mean,
    image_std=facts.std,
    drop_path_rate=0.0,
)
# Shifts and flips. For letters, or whatever is not symmetric: Recipe.quick(flip=False).
recipe = Recipe.quick(epochs=args.epochs, batch_size=min(32, len(kept) // 2))
metrics = fit(
    model,
    (images[kept], labels[kept]),
    validation=0.1,  # of these; it chooses the best epoch
    test=(images[held_out], labels[held_out]),
    recipe=recipe,
    output=args.output,
    resume=(args.output / "config.json").exists(),  # a run that was stopped goes on
    facts=facts,
)
print(f"test accuracy {metrics['best']['test_accuracy']:.1%}")

# From here on as any other program: a file, and arrays or paths of images.
some = held_out[:: max(len(held_out) // 5, 1)][:5]
guesses = predict(args.output / "best.keras", images[some], top=2)
for label, classes in zip(labels[some], guesses, strict=True):
    named = ", ".join(f"{name} {probability:.0%}" for name, probability in classes)
    print(f"{facts.class_names[label]:12} is taken for {named}")
