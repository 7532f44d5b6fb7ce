"""Train on a folder of your own images, and classify some of them.

    KERAS_BACKEND=jax python examples/own_images.py pets/ --epochs 20

FOLDER holds one folder of images per class, such as pets/cat/*.jpg and pets/dog/*.jpg.
A fifth of the images is held out for the test. KERAS_BACKEND is tensorflow, jax or
torch. `keras-lkca train pets/` does more of the same: it keeps the best epoch, resumes
what was stopped and draws the curves.
"""

import argparse
import pathlib

import keras

from keras_lkca import LKCAViT, data, predict
from keras_lkca.files import atomic
from keras_lkca.training import Recipe

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("folder", metavar="FOLDER", help="with one folder per class")
parser.add_argument("--image-size", type=int, default=64, help="pixels")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--output", type=pathlib.Path, default="runs/own_images.keras")
args = parser.parse_args()
keras.utils.set_random_seed(0)

# Cropped about the centre and resized; `facts` holds what the folder says of itself.
images, labels, facts = data.from_directory(args.folder, args.image_size)
held_out, kept = data.split(labels, 0.2)
print(f"{len(kept)} images to train on, {len(held_out)} for the test")
print(f"classes: {', '.join(facts.class_names)}")

# Shifts and flips. For letters, or whatever is not symmetric: Recipe.quick(flip=False).
recipe = Recipe.quick(epochs=args.epochs, batch_size=min(32, len(kept)))
model = LKCAViT.from_preset(
    "lkca_vit_05m",
    input_shape=facts.input_shape,
    num_classes=facts.num_classes,
    class_names=facts.class_names,  # saved with the model, as is the normalisation
    image_mean=facts.mean,
    image_std=facts.std,
    drop_path_rate=recipe.drop_path_rate,
)
steps = max(len(kept) // recipe.batch_size, 1)
recipe.compile(model, total_steps=recipe.epochs * steps)
batches = data.training_batches(
    images[kept],
    labels[kept],
    recipe.batch_size,
    facts.num_classes,
    recipe.augmentation(mean=facts.mean),
)
model.fit(
    batches,
    epochs=recipe.epochs,
    steps_per_epoch=steps,
    shuffle=False,
    callbacks=recipe.callbacks(),
    verbose=2,
)

one_hot = keras.utils.to_categorical(labels[held_out], facts.num_classes)
scores = model.evaluate(images[held_out], one_hot, verbose=0, return_dict=True)
print(f"test accuracy {scores['accuracy']:.1%}")
args.output.parent.mkdir(parents=True, exist_ok=True)
with atomic(args.output) as path:  # whole, or not at all
    model.save(path)

# From here on as any other program: a file, and arrays or paths of images.
some = held_out[:: max(len(held_out) // 5, 1)][:5]
guesses = predict(args.output, images[some], top=2)
for label, classes in zip(labels[some], guesses, strict=True):
    named = ", ".join(f"{name} {probability:.0%}" for name, probability in classes)
    print(f"{facts.class_names[label]:12} is taken for {named}")
