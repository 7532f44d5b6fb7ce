"""Train on several devices, for tests/test_devices.py, which starts it.

    python several_devices.py FOLDER STEP...

A step is a number of devices to train on, "odd" for batches that they cannot share,
"model" for a model whose weights four of JAX's share out, "diverges" for a loss that
overflows on the first of them, "dies" for a process that ends in the second epoch, or
"resume" to go on with its run.
torch has a process per device, started by torchrun, and each step takes all of them.
So does a step that is named "processes" under JAX, of two devices per process.
"""

import contextlib
import os
import pathlib
import sys

import keras
import numpy as np

from keras_lkca import LKCANet, LKCAViT, data
from keras_lkca.devices import several
from keras_lkca.training import Recipe, fit

SEVERAL = "KERAS_DISTRIBUTION_NUM_PROCESSES"
KERAS_PROCESS = os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID", "0")
PROCESS = int(os.environ.get("RANK", KERAS_PROCESS))


class Losses(keras.callbacks.Callback):
    """What each step's loss was, of this process's images."""

    def __init__(self, dies=False):
        super().__init__()
        self.found, self.dies = [], dies

    def on_epoch_begin(self, epoch, logs=None):
        if self.dies and (epoch, PROCESS) == (1, 1):
            os._exit(7)

    def on_train_batch_end(self, batch, logs=None):
        self.found.append(float(logs["loss"]))

    def on_train_end(self, logs=None):
        kernel = self.model.get_layer("block_0_mlp_expand").kernel.value
        self.whole = getattr(kernel, "is_fully_replicated", True)


def small():
    # Which JAX draws for all devices together, and each of the others by itself.
    dropped = 0.1 if keras.config.backend() == "jax" else 0.0
    vit = {"patch_size": 4, "embed_dim": 8, "depth": 1, "drop_path_rate": dropped}
    return LKCAViT((8, 8, 1), **vit)


def train(folder, distribute="data", batch_size=32, dies=False, resume=False):
    """Train a model without, and on one or two another with BatchNormalization."""
    keras.utils.set_random_seed(0)
    models = {"": small()}
    # Under TensorFlow it would take long to trace, and each device has its own there.
    if (
        folder.name in ("1", "2", "processes")
        and keras.config.backend() != "tensorflow"
    ):
        models["net"] = LKCANet((8, 8, 1), embed_dim=8, depth=1)
    losses, arrays = Losses(dies), {}
    held_out, options = data.digits("test"), {"flip": False, "crop_padding": 1}
    for name, model in models.items():
        metrics = fit(
            model,
            data.digits("train"),
            # Which no number of devices divides.
            validation=tuple(part[:105] for part in held_out),
            test=tuple(part[105:208] for part in held_out),
            recipe=Recipe.quick(
                epochs=1 if name else 2,
                batch_size=batch_size,
                rematerialize=folder.name == "4",
                **options,
            ),
            steps_per_epoch=25,
            pipeline="tf.data" if name else "arrays",
            output=folder / name,
            extra_callbacks=[] if name else [losses],
            distribute=distribute,
            resume=resume and not name,
        )
        for key in ("test_loss", "validation_accuracy"):
            arrays[f"{name}{key}"] = metrics["last"][key]
        for i, weight in enumerate(model.get_weights()):
            arrays[f"{name}weight{i}"] = weight
    arrays |= {"losses": losses.found, "whole": losses.whole}
    np.savez(folder / f"process{PROCESS}.npz", **arrays)


def fit_batches(folder, size, scale):
    """Train on batches of one's own, of which the first images are scaled."""
    images, labels = (part[:size] for part in data.digits("train"))
    images = images.astype("float32")
    images[: size // 2] *= scale / images.max()
    batches = [(images, labels)] * 4
    recipe = Recipe.quick(epochs=1, flip=False, crop_padding=0)
    fit(small(), batches, recipe=recipe, output=folder, distribute="data")


@contextlib.contextmanager
def printed(kind):
    """Print the error that is to come, one line from each process."""
    try:
        yield
    except kind as error:
        print(f"process {PROCESS}: {error}\n", end="", file=sys.__stdout__, flush=True)


def on(count):
    """A context in which some of the devices are all that there are."""
    backend = keras.config.backend()
    if backend == "jax" and SEVERAL not in os.environ:
        devices = keras.distribution.list_devices()[:count]
        return keras.distribution.DataParallel(devices=devices).scope()
    if backend == "tensorflow":
        import tensorflow as tf

        names = [f"CPU:{i}" for i in range(count)]
        return tf.distribute.MirroredStrategy(names).scope()
    return contextlib.nullcontext()


def of_parts():
    """A context in which two devices hold an MLP's halves, and two more the same."""
    engine = keras.distribution
    mesh = engine.DeviceMesh((2, 2), ("batch", "model"), engine.list_devices())
    layouts = engine.LayoutMap(mesh)
    layouts[".*mlp_expand/kernel"] = (None, "model")
    layouts[".*mlp_expand/bias"] = ("model",)
    layouts[".*mlp_project/kernel"] = ("model", None)
    parallel = engine.ModelParallel(layout_map=layouts, batch_dim_name="batch")
    return parallel.scope()


def main(folder, *steps):
    if SEVERAL in os.environ:
        keras.distribution.initialize()
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * 4,
        )
    for step in steps:
        with of_parts() if step == "model" else on(int(step) if step.isdigit() else 2):
            if step == "odd":
                with printed(ValueError):
                    train(folder / step, batch_size=31)
                with printed(ValueError):
                    fit_batches(folder / step, 31, 1.0)
            elif step == "diverges":
                with printed(FloatingPointError):
                    fit_batches(folder / step, 32, 3e38)
            else:
                end = {"dies": step == "dies", "resume": step == "resume"}
                train(folder / ("dies" if step == "resume" else step), **end)
                several("data").first(lambda: None)  # torch: wait for the others


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), *sys.argv[2:])
