"""What a run does besides learning: show, check and keep."""

import contextlib
import csv
import math
import pathlib
import shutil
import sys
import time
import zipfile

import keras
import numpy as np

from keras_lkca.data.batches import batch_seed
from keras_lkca.files import atomic
from keras_lkca.internals import seed_states


class Progress(keras.callbacks.Callback):
    """Show a line of loss, accuracy, images per second and the time left.

    The line is rewritten in place on a terminal, and written once an epoch elsewhere.

    Args:
        batch_size: Images per step; `None` where it is not known, to show steps.
        steps: Steps per epoch.
        stream: Where to write. Defaults to standard output.
        epochs: Epochs of the whole run. Defaults to those of this `fit`.

    Example:

    ```python
    model.fit(x, y, batch_size=50, verbose=0, callbacks=[Progress(50, 28)])
    ```
    """

    # Keras may call it from a thread of its own instead of waiting for every step.
    async_safe = True

    def __init__(
        self,
        batch_size: int | None,
        steps: int,
        stream=None,
        epochs: int | None = None,
    ):
        super().__init__()
        self.batch_size, self.steps, self.epochs = batch_size, steps, epochs
        self.stream = stream or sys.stdout
        self._shown = 0.0

    def on_epoch_begin(self, epoch, logs=None):
        """Start the watch."""
        now = time.perf_counter()
        if not hasattr(self, "_started"):
            self._started, self._first = now, epoch
        self._epoch, self._epoch_started = epoch, now

    def on_train_batch_end(self, batch, logs=None):
        """Rewrite the line, twice a second at most."""
        now = time.perf_counter()
        if not self.stream.isatty() or now - self._shown < 0.5:
            return
        self._shown = now
        self._write(batch + 1, logs or {}, end="")

    def on_epoch_end(self, epoch, logs=None):
        """Write the line of the epoch."""
        self._write(self.steps, logs or {}, end="\n")

    def _write(self, step, logs, end):
        now = time.perf_counter()
        done = (self._epoch - self._first) * self.steps + step
        epochs = self.epochs or self.params["epochs"]
        left = (epochs - self._first) * self.steps - done
        seconds = (now - self._started) * left / done
        rate = step / (now - self._epoch_started)
        shown = f"{rate:.1f} steps/s"
        if self.batch_size:
            shown = f"{rate * self.batch_size:,.0f} images/s"
        parts = [f"epoch {self._epoch + 1}/{epochs}"]
        if not end:
            parts.append(f"step {step}/{self.steps}")
        for name in ("loss", "accuracy", "val_loss", "val_accuracy", "val_mean_iou"):
            if name in logs:
                parts.append(f"{name} {logs[name]:.4f}")
        parts += [shown, f"{_duration(seconds)} left"]
        clear = "\r\033[K" if self.stream.isatty() else ""
        print(clear + "  ".join(parts), end=end, file=self.stream, flush=True)


class StopWhenDiverged(keras.callbacks.Callback):
    """Stop the training as soon as the loss is NaN or infinite.

    Args:
        at_once: `False` to go on to the end of the epoch, where several processes that
            know their own losses alone have to stop together.

    Raises:
        FloatingPointError: At the end of that epoch, before anything is kept of it.
    """

    async_safe = True
    diverged = None

    def __init__(self, at_once: bool = True):
        super().__init__()
        self.at_once = at_once

    def on_epoch_begin(self, epoch, logs=None):
        """Remember where the training is."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        """Stop, if a step before was bad."""
        # Only here: from Keras's other thread, under JAX, `self.model` would exchange
        # the weights while they are used.
        if self.diverged and self.at_once:
            self.model.stop_training = True

    def on_train_batch_end(self, batch, logs=None):
        """Look at the loss, the mean of the epoch's so far."""
        self._check((logs or {}).get("loss"), f"step {batch + 1}")

    def on_epoch_end(self, epoch, logs=None):
        """Look at the epoch's loss, before anything is kept of it."""
        self._check((logs or {}).get("loss"), "its end")
        self._check((logs or {}).get("val_loss"), "its validation")
        if self.diverged:
            raise FloatingPointError(self.diverged)

    def _check(self, loss, where):
        if loss is None or math.isfinite(loss):
            return
        if not self.diverged:
            self.diverged = (
                f"The loss became {loss} in epoch {self._epoch + 1} at {where}."
            )


class Keep(keras.callbacks.Callback):
    """Write the history, the last and the best model after every epoch.

    Each file is replaced in one step: the history first, then the last model, which
    carries the number of its epoch, and last the best, a copy.

    Args:
        folder: Where to write, a folder that exists.
        rows: The history so far, a dictionary per epoch. `best_epoch` says which one
            is the best.
        writes: `False` to keep the history in `rows` alone, as another process writes.
        apart: Makes the context to write in: Keras makes variables while it saves,
            and where several processes share the devices, each must make the same.

    Example:

    >>> import pathlib, tempfile
    >>> from keras_lkca import LKCAViT, data
    >>> from keras_lkca.training.callbacks import Keep
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> model = LKCAViT((8, 8, 1), patch_size=4, embed_dim=8, depth=1)
    >>> model.compile("adam", "sparse_categorical_crossentropy")
    >>> keep = Keep(folder, [])
    >>> history = model.fit(*data.digits("test"), verbose=0, callbacks=[keep])
    >>> sorted(path.name for path in folder.iterdir())
    ['best.keras', 'history.csv', 'last.keras']
    """

    def __init__(self, folder, rows, writes: bool = True, apart=contextlib.nullcontext):
        super().__init__()
        self.folder, self.rows = pathlib.Path(folder), rows
        self.writes, self.apart = writes, apart

    def on_epoch_begin(self, epoch, logs=None):
        """Start the watch."""
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Write everything."""
        row = {"epoch": epoch + 1}
        row |= {name: float(value) for name, value in (logs or {}).items()}
        row["learning_rate"] = highest_rate(self.model.optimizer)
        row["seconds"] = round(time.perf_counter() - self._started, 3)
        self.rows.append(row)
        if not self.writes:
            return
        write_history(self.folder / "history.csv", self.rows)
        with self.apart():
            keep(self.model, self.folder / "last.keras", epoch + 1)
        keep_best(self.folder, self.rows)


class StopEarly(keras.callbacks.Callback):
    """Stop the run when no epoch has been better than the best for long.

    Keras's EarlyStopping counts in itself, and a run that is resumed would count anew.

    Args:
        rows: The history that `Keep` writes, before this callback is called.
        patience: How many epochs to wait, see `out_of_patience`.
        first: Number of epochs that do not count, at the beginning.
    """

    def __init__(self, rows, patience: int | None, first: int = 0):
        super().__init__()
        self.rows, self.patience, self.first = rows, patience, first

    def on_epoch_end(self, epoch, logs=None):
        """Stop, if it is time."""
        if out_of_patience(self.rows, self.patience, self.first):
            self.model.stop_training = True


class SetSeeds(keras.callbacks.Callback):
    """Give stochastic depth and dropout the seeds of the epoch that begins.

    Their layers count the steps in a variable that no file keeps; it is the number of
    steps done.

    Args:
        steps: Steps per epoch.
        first: The layers' first seeds, as `seeds` returned them; `None` leaves them.
    """

    def __init__(self, steps: int, first=None):
        super().__init__()
        self.steps, self.first = steps, first

    def on_epoch_begin(self, epoch, logs=None):
        """Set the counts."""
        first = seeds(self.model) if self.first is None else self.first
        for variable, seed in zip(seed_states(self.model), first, strict=True):
            variable.assign(np.array([seed, epoch * self.steps]))


class SeedSteps(keras.callbacks.Callback):
    """Seed every step, where the layers' seeds are left aside.

    Args:
        steps: Steps per epoch.
        seed: The run's seed.
        process: Number of this process among those that share each batch.
    """

    def __init__(self, steps: int, seed: int, process: int = 0):
        super().__init__()
        self.steps, self.seed, self.process = steps, seed, process

    def on_epoch_begin(self, epoch, logs=None):
        """Remember where the training is."""
        self._first = epoch * self.steps

    def on_train_batch_begin(self, batch, logs=None):
        """Seed what this step draws."""
        seed = int(batch_seed(self.seed, self._first + batch)[1])
        keras.utils.set_random_seed(seed + self.process)


def unscaled(optimizer):
    """Return the optimizer within one that scales the loss, or itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def parts(optimizer):
    """Return the optimizers that a model's is made of: one, or one for each rate."""
    optimizer = unscaled(optimizer)
    return getattr(optimizer, "optimizers", [optimizer])


def highest_rate(optimizer):
    """Return the learning rate, the highest where layers have their own."""
    rates = [x.learning_rate for x in parts(optimizer) if x.built]
    return max(float(keras.ops.convert_to_numpy(rate)) for rate in rates)


def seeds(model):
    """Return the first seed of each layer that draws random numbers."""
    states = map(keras.ops.convert_to_numpy, seed_states(model))
    return [int(state[0]) for state in states]


def keep(model, path, epoch):
    """Write a model with the number of its epoch."""
    with atomic(path) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.comment = f"epoch {epoch}".encode()


def keep_best(folder, rows):
    """Copy the last model if it is the best."""
    if best_epoch(rows) == len(rows):
        with atomic(folder / "best.keras") as path:
            shutil.copyfile(folder / "last.keras", path)


def epoch_of(path):
    """Return the number of the epoch that a last model was kept after.

    Raises:
        ValueError: If it is none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return int(archive.comment.decode().removeprefix("epoch "))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no last model of a run ({error}).") from error


def best_epoch(rows):
    """Return the number of the best epoch, from 1 on.

    It is the first with the highest `val_mean_iou` of a segmenter, else with the
    highest `val_accuracy`, or, where there is none, with the lowest `val_loss`;
    without validation images it is the last.

    Example:

    >>> from keras_lkca.training.callbacks import best_epoch
    >>> best_epoch([{"val_accuracy": 0.2}, {"val_accuracy": 0.4}])
    2
    """
    for name, sign in (("val_mean_iou", 1), ("val_accuracy", 1), ("val_loss", -1)):
        if name in rows[0]:
            return 1 + int(np.argmax([sign * row[name] for row in rows]))
    return len(rows)


def out_of_patience(rows, patience, first=0):
    """Whether the best epoch lies `patience` epochs back or more.

    Args:
        rows: The history, a dictionary per epoch.
        patience: Positive integer, or `None` to wait for ever.
        first: Number of epochs at the beginning that do not count.

    Example:

    >>> from keras_lkca.training.callbacks import out_of_patience
    >>> rows = [{"val_accuracy": x} for x in (0.2, 0.4, 0.4, 0.3)]
    >>> out_of_patience(rows, 2), out_of_patience(rows, 3)
    (True, False)
    """
    if patience is None or not rows:
        return False
    return len(rows) - max(best_epoch(rows), first) >= patience


def write_history(path, rows):
    """Write one line per epoch."""
    with atomic(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def read_history(path):
    """Read what `write_history` wrote; nothing where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = [
            {name: float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]
    return [{**row, "epoch": int(row["epoch"])} for row in rows]


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
