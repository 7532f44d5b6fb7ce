"""A training loop of your own, from the parts of a recipe.

    KERAS_BACKEND=torch python examples/custom_loop.py

The recipe gives the optimizer with its schedule, the loss, and the augmentation; the
loop is plain Python, the same under tensorflow, jax and torch. It trains on
scikit-learn's digits, validates as it goes, keeps the best weights and stops when they
have not improved for a while. Downloads nothing.
"""

import argparse
import pathlib

import keras

from keras_lkca import LKCAViT, data
from keras_lkca.files import atomic
from keras_lkca.training import Recipe

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--steps", type=int, default=400, help="at most")
parser.add_argument("--every", type=int, default=40, help="steps to a validation")
parser.add_argument("--patience", type=int, default=3, help="validations without gain")
parser.add_argument("--output", type=pathlib.Path, default="runs/custom_loop.keras")
args = parser.parse_args()
keras.utils.set_random_seed(0)

images, labels = data.digits("train")
held_out, kept = data.split(labels, 0.1)
one_hot = keras.utils.to_categorical(labels, 10)
digits = data.describe("digits")
model = LKCAViT(
    digits.input_shape,
    patch_size=2,
    embed_dim=40,
    depth=3,
    drop_path_rate=0.0,
    class_names=digits.class_names,
    image_mean=digits.mean,
    image_std=digits.std,
)

# The parts. `recipe.compile(model, total_steps)` puts optimizer and loss in at once.
recipe = Recipe.quick(batch_size=50, crop_padding=1)
optimizer = recipe.optimizer(args.steps, model.trainable_variables)
model.compile(optimizer, recipe.loss(), metrics=["accuracy"])
batches = data.training_batches(  # without end, augmented, on the backend's device
    images[kept],
    labels[kept],
    recipe.batch_size,
    digits.num_classes,
    recipe.augmentation(flip=digits.flip, mean=digits.mean),
)

print(f"Keras {keras.version()} on {keras.config.backend()}\n")
print("step  training loss  validation accuracy")
best, best_weights, waited = -1.0, None, 0
for step in range(1, args.steps + 1):
    x, y = next(batches)
    # One step: forward, gradients, update. The numbers are means since the last reset.
    logs = model.train_on_batch(x, y, return_dict=True)
    if step % args.every and step < args.steps:
        continue
    scores = model.evaluate(
        images[held_out], one_hot[held_out], verbose=0, return_dict=True
    )
    print(f"{step:4} {logs['loss']:14.3f} {scores['accuracy']:20.1%}", flush=True)
    model.reset_metrics()
    waited += 1
    if scores["accuracy"] > best:
        best, best_weights, waited = scores["accuracy"], model.get_weights(), 0
    if waited == args.patience:
        print(f"no gain in {waited} validations")
        break

model.set_weights(best_weights)
test_images, test_labels = data.digits("test")
scores = model.evaluate(
    test_images,
    keras.utils.to_categorical(test_labels, 10),
    verbose=0,
    return_dict=True,
)
print(f"test accuracy {scores['accuracy']:.1%}")
args.output.parent.mkdir(parents=True, exist_ok=True)
with atomic(args.output) as path:
    model.save(path)
