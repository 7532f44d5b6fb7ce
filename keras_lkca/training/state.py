"""A run's folder: what is written there, and how a run goes on from it."""

import json
import numbers
import os
import pathlib
import platform
import shutil
import time

import keras
import numpy as np

from keras_lkca.backend import version
from keras_lkca.files import atomic
from keras_lkca.training import callbacks
from keras_lkca.training.recipe import Recipe


class _LeftOut:
    """What an argument is that was not given: on resuming, the run's."""

    def __repr__(self):
        return "<left out>"


LEFT_OUT = _LeftOut()


def given(arguments):
    """Return those of the arguments that were given.

    Example:

    >>> from keras_lkca.training.state import LEFT_OUT, given
    >>> given({"seed": 0, "recipe": LEFT_OUT})
    {'seed': 0}
    """
    return {name: x for name, x in arguments.items() if x is not LEFT_OUT}


def read_config(output):
    """Read the configuration of the run to resume, and check that it can be."""
    path = output and pathlib.Path(output).expanduser() / "config.json"
    if not path or not path.exists():
        raise ValueError(
            "`resume` continues the run in `output`, which holds no config.json. "
            f"Received: output={str(output)!r}"
        )
    try:
        config = json.loads(path.read_text())
        backend, arguments = config["backend"], config["arguments"]
        for name in ("class_weight", "freeze", "start_from", "teacher"):
            arguments.setdefault(name, None)  # which runs of before have not
        if "dataset" in arguments:  # of `train`
            arguments.setdefault("task", "classification")
            arguments.setdefault("ignore", [255])
            arguments.setdefault("stream", None)
        # As the fields of this version.
        arguments["recipe"] = Recipe.from_dict(arguments.get("recipe") or {}).to_dict()
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}).") from error
    if backend != keras.config.backend():
        raise ValueError(
            f"The run in {output} was started under {backend}, whose random numbers "
            "others do not draw: resume it with KERAS_BACKEND="
            f"{backend}. Received: the backend {keras.config.backend()}"
        )
    return config


def plain(arguments):
    """Return arguments as JSON holds them, a recipe as its fields."""
    arguments = dict(arguments)
    recipe = arguments.get("recipe")
    if isinstance(recipe, dict):
        recipe = Recipe.from_dict(recipe)
    if recipe is not None:
        if not isinstance(recipe, Recipe):
            raise ValueError(
                "`recipe` must be a Recipe, such as Recipe.quick(). "
                f"Received: recipe={recipe!r}"
            )
        arguments["recipe"] = recipe.to_dict()
    try:
        return json.loads(json.dumps(arguments, default=_as_python))
    except TypeError as error:
        raise ValueError(
            "The arguments must be such that config.json can hold them: numbers, "
            f"strings, lists, dictionaries ({error})."
        ) from error


def _as_python(value):
    """Return NumPy's arrays, and numbers of other types, as Python's own."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, numbers.Real):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def merge(arguments, config, defaults):
    """Return a run's arguments: what was given, else the run's, else the defaults.

    Args:
        arguments: Dictionary of what was given, as `plain` returns it.
        config: The configuration of the run to resume; `None` for a new one.
        defaults: Dictionary of every argument's default.

    Returns:
        Dictionary of every argument.

    Raises:
        ValueError: If what was given differs from what the run has.
    """
    if config is None:
        return {**defaults, **arguments}
    saved = config["arguments"]
    unknown = sorted(set(defaults) - set(saved))
    if unknown:
        raise ValueError(
            "The run to resume is of another version of keras_lkca, or of another "
            f"function: it has no {unknown}."
        )
    for name, value in arguments.items():
        # What the run took where nothing was given may be given by name.
        if value != saved[name] and (saved[name], value) != (None, config.get(name)):
            raise ValueError(
                f"`{name}` of the run to resume is {saved[name]!r}; leave it out, or "
                f"start another run. Received: {name}={value!r}"
            )
    return {name: saved[name] for name in defaults}


def mend(folder, config, current):
    """Clear up what a process that was killed left, if it is still the same run.

    Args:
        folder: The run's folder.
        config: Its configuration.
        current: Dictionary of what must be as it was.

    Returns:
        The history up to there, a dictionary per epoch.
    """
    for name, value in current.items():
        if value != config.get(name):
            raise ValueError(
                f"The run in {folder} had {name}={config.get(name)!r}, and would now "
                f"have {value!r}: restore the data and the settings that it was "
                "started with, or start another run."
            )
    for litter in folder.glob(".writing-*"):
        shutil.rmtree(litter)
    rows = kept_rows(folder)
    if rows:
        callbacks.keep_best(folder, rows)
    return rows


def restore(model, folder, epoch, frozen=0):
    """Load weights, optimizer and average as they were after an epoch.

    Args:
        model: The compiled model.
        folder: The run's folder.
        epoch: How many epochs are done; none leaves the model as it is.
        frozen: For how many epochs the classifier is trained alone: of these the
            weights are loaded, and not the optimizer, which is for all of the model.
    """
    if not epoch:
        return
    path = folder / "last.keras"
    load = load_state if epoch > frozen else load_weights
    try:
        load(model, path)
    except Exception as error:
        raise ValueError(
            f"{path} is no state of this run's model ({type(error).__name__}: {error})."
        ) from error


def load_weights(model, path):
    """Load the weights, and nothing of the optimizer's."""
    optimizer, model.optimizer = model.optimizer, None
    try:
        model.load_weights(path)
    finally:
        model.optimizer = optimizer


def load_state(model, path):
    """Load weights, optimizer and average, from which the training goes on."""
    model.optimizer.build(model.trainable_variables)
    model.load_weights(path)
    if any(part.use_ema for part in callbacks.parts(model.optimizer)):
        # The file holds the average as the model's weights, and the weights in its
        # place: what Keras's callback exchanges.
        exchange = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        exchange.set_model(model)
        exchange.on_test_begin()


def kept_rows(folder):
    """Return the history up to the last model that was kept."""
    path = folder / "last.keras"
    if not path.exists():
        return []
    done = callbacks.epoch_of(path)
    try:
        rows = callbacks.read_history(folder / "history.csv")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}/history.csv is damaged ({error!r}).") from error
    if len(rows) < done:
        raise ValueError(
            f"{folder}/history.csv holds {len(rows)} epochs, and last.keras comes "
            f"after epoch {done}: the folder is not whole."
        )
    return rows[:done]


def new_folder(output, name):
    """Make the output folder now: a run must not end with nowhere to write to."""
    if output is None:
        when = time.strftime("%Y%m%d-%H%M%S")
        # Two runs may start in the same second.
        output = pathlib.Path("runs") / f"{name}-{when}-{os.getpid()}"
    output = pathlib.Path(output).expanduser()
    if (output / "config.json").exists() or list(output.glob("*.keras")):
        raise ValueError(
            "`output` holds a run already; resume it, choose another folder or remove "
            f"it. Received: output={str(output)!r}"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        with atomic(output / ".writable") as path:
            path.touch()
        (output / ".writable").unlink()
    except OSError as error:
        raise ValueError(
            f"`output` cannot be written to ({error.strerror}). "
            f"Received: output={str(output)!r}"
        ) from error
    return output


def write_json(path, values):
    """Write values that JSON has words for; NaN is refused."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")


def conditions():
    """Return the backend and the versions of a run."""
    return {
        "backend": keras.config.backend(),
        "versions": {
            "python": platform.python_version(),
            "keras": keras.version(),
            "numpy": np.__version__,
            keras.config.backend(): version(),
        },
    }
