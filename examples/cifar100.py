"""Train a vision transformer with LKCA on CIFAR-100, built and fed in plain Keras.

    KERAS_BACKEND=jax python examples/cifar100.py --epochs 10

From a tf.data pipeline over a functional model to `fit`, `evaluate` and a saved file.
KERAS_BACKEND is tensorflow, jax or torch; tf.data needs TensorFlow installed under any.
The images come from --data-dir, as cifar100.npz or prepared by TensorFlow Datasets, or
else are downloaded. `--epochs 1 --steps 50` is enough to see that it runs.
"""

import argparse
import pathlib

import keras
import tensorflow as tf

from keras_lkca import data, predict
from keras_lkca.files import atomic
from keras_lkca.layers import PatchEmbedding, PositionEmbedding
from keras_lkca.models import ImageModel, lkca_block

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--data-dir", help="default: $TFDS_DATA_DIR, ~/tensorflow_datasets")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--steps", type=int, help="per epoch; default: all images")
parser.add_argument("--output", type=pathlib.Path, default="runs/cifar100.keras")
args = parser.parse_args()
keras.utils.set_random_seed(0)
if keras.config.backend() != "tensorflow":  # leave the GPU to the backend
    tf.config.set_visible_devices([], "GPU")
BATCH = 128

# The images, uint8 in [0, 255]. A tenth of the training images validates.
facts = data.describe("cifar100")
images, labels = data.load("cifar100", "train", args.data_dir)
held_out, kept = data.split(labels, 0.1)


def augment(image, label):
    """Shift an image by up to four pixels, and mirror one of two."""
    height, width, channels = facts.input_shape
    image = tf.image.pad_to_bounding_box(image, 4, 4, height + 8, width + 8)
    image = tf.image.random_crop(image, (height, width, channels))
    return tf.image.random_flip_left_right(image), label


train = tf.data.Dataset.from_tensor_slices((images[kept], labels[kept]))
train = train.shuffle(len(kept)).repeat().map(augment, tf.data.AUTOTUNE)
train = train.batch(BATCH).prefetch(tf.data.AUTOTUNE)
validation = tf.data.Dataset.from_tensor_slices((images[held_out], labels[held_out]))
validation = validation.batch(BATCH)
test = tf.data.Dataset.from_tensor_slices(data.load("cifar100", "test", args.data_dir))
test = test.batch(BATCH)


def make_model(embed_dim=100, depth=8):
    """Build the graph of `lkca_vit_05m`, layer by layer."""
    inputs = keras.Input(facts.input_shape)
    x = keras.layers.Normalization(
        mean=[255 * mean for mean in facts.mean],
        variance=[(255 * std) ** 2 for std in facts.std],
    )(inputs)
    x = PatchEmbedding(patch_size=4, embed_dim=embed_dim)(x)  # 8 x 8 tokens
    x = PositionEmbedding()(x)
    for _ in range(depth):
        x = lkca_block(x, drop_path_rate=0.1)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.LayerNormalization(epsilon=1e-5)(x)
    outputs = keras.layers.Dense(facts.num_classes)(x)
    # A keras.Model that carries the names of its classes.
    return ImageModel(inputs, outputs, class_names=facts.class_names)


model = make_model()
model.summary()
steps = args.steps or len(kept) // BATCH
warmup = max(args.epochs * steps // 10, 1)
schedule = keras.optimizers.schedules.CosineDecay(
    0.0, args.epochs * steps, warmup_target=3e-3, warmup_steps=warmup
)
model.compile(
    optimizer=keras.optimizers.AdamW(schedule, weight_decay=0.05),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
model.fit(train, epochs=args.epochs, steps_per_epoch=steps, validation_data=validation)
scores = model.evaluate(test, return_dict=True)
print(f"test accuracy {scores['accuracy']:.1%}")

args.output.parent.mkdir(parents=True, exist_ok=True)
with atomic(args.output) as path:  # whole, or not at all
    model.save(path)
reloaded = keras.models.load_model(args.output)  # under any backend
for guesses in predict(reloaded, images[held_out[:3]], top=2):
    print(", ".join(f"{name} {probability:.0%}" for name, probability in guesses))
