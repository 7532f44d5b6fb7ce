"""A pyramid of one's own, as a user writes it. A test trains it in its own process.

python tests/pyramid.py OUTPUT trains it, and is killed as the third epoch begins.
"""

import os
import signal
import sys

import keras

from keras_lkca import data
from keras_lkca.models import lkca_block
from keras_lkca.training import Recipe, fit

RECIPE = Recipe.quick(
    epochs=4, batch_size=32, flip=False, crop_padding=1, mix_probability=0.5
)


def pyramid():
    """A plain functional model: two levels of LKCA blocks, the second at half size."""
    layers = keras.layers
    images = keras.Input((8, 8, 1), name="images")
    x = layers.Rescaling(1 / 127.5, offset=-1)(images)
    x = layers.Conv2D(16, 3, padding="same", name="stem")(x)
    for index in range(2):
        x = lkca_block(x, drop_path_rate=0.2, name=f"fine_{index}")
    fine = layers.GlobalAveragePooling2D()(x)
    x = layers.Conv2D(24, 2, strides=2, name="down")(x)
    x = layers.BatchNormalization()(x)
    x = lkca_block(x, num_kernels=4, dropout_rate=0.1, name="coarse_0")
    coarse = layers.GlobalAveragePooling2D()(x)
    x = layers.LayerNormalization()(layers.Concatenate()([fine, coarse]))
    return keras.Model(images, layers.Dense(10, name="classifier")(x), name="pyramid")


class KillBeforeTheThirdEpoch(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def train(output, seed=7, **options):
    keras.utils.set_random_seed(seed)
    return fit(
        pyramid(),
        data.digits("train"),
        validation=0.1,
        test=data.digits("test"),
        recipe=RECIPE,
        output=output,
        steps_per_epoch=12,
        **options,
    )


if __name__ == "__main__":
    train(sys.argv[1], extra_callbacks=[KillBeforeTheThirdEpoch()])
