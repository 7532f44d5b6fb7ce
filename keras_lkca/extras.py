"""Packages that only some features need, imported where they are used."""

import importlib

import keras


def require(module, extra, distribution=None):
    """Import an optional package, or say how to install it.

    Args:
        module: The module to import.
        extra: The extra of this package that brings it.
        distribution: The package's name for pip, where it is not the module's.

    Raises:
        ImportError: If the package is missing, naming the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = distribution or module.replace("_", "-")
        raise ImportError(
            f"This needs {name}, which is not installed. "
            f'Install it with: pip install "keras-lkca[{extra}]"'
        ) from error


def require_tensorflow():
    """Import TensorFlow, which must leave the GPU to another active backend."""
    tf = require("tensorflow", "tensorflow")
    if keras.config.backend() != "tensorflow":
        try:
            tf.config.set_visible_devices([], "GPU")
        except RuntimeError:  # TensorFlow has started: too late, and no harm done
            pass
    return tf
