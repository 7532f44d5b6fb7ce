"""Train a model on a dataset, from the data to the files it leaves behind."""

import argparse
import json
import pathlib
import platform
import re
import time

import keras
import numpy as np

from keras_lkca import data
from keras_lkca.extras import require
from keras_lkca.files import atomic
from keras_lkca.layers.checks import check_positive_int
from keras_lkca.models import LKCAViT, ViT

OUTPUTS = ("model.keras", "metrics.json", "curves.png")
MODELS = {"lkca": (LKCAViT, "lkca_vit_tiny"), "vit": (ViT, "vit_tiny")}


def train(
    dataset: str,
    model: str = "lkca",
    preset: str | None = None,
    epochs: int = 100,
    batch_size: int = 128,
    data_dir=None,
    output=None,
    seed: int = 0,
    steps_per_epoch: int | None = None,
) -> dict:
    """Train a preset on a dataset and write down what came of it.

    AdamW with weight decay 0.05, a linear warm-up over the first tenth of the steps
    to 1e-3 and a cosine to 1e-6, label smoothing 0.1, stochastic depth 0.1, random
    shifts and, except for digits, flips.

    Writes `model.keras`, `metrics.json` and `curves.png` into `output`. The metrics
    are those of the last epoch; the test images choose nothing.

    Args:
        dataset: A name of `keras_lkca.data.DATASETS`.
        model: `"lkca"`, or `"vit"` for the softmax-attention baseline.
        preset: A name of `keras_lkca.list_presets()`. Defaults to `lkca_vit_tiny`
            or `vit_tiny`.
        epochs: Positive integer.
        batch_size: Positive integer.
        data_dir: Folder that holds the dataset, see `keras_lkca.data.load`.
        output: Folder to write to. Defaults to a new one below `runs/`.
        seed: Integer, seed of weights, order and augmentation.
        steps_per_epoch: Positive integer, to end epochs early; `None` for whole
            ones.

    Returns:
        What `metrics.json` holds.

    Raises:
        ValueError: If an argument is not as above, or `output` holds a run.
        FileNotFoundError: If the dataset is not there, see `keras_lkca.data.load`.
        ImportError: If TensorFlow (for the data) or matplotlib is missing.

    Example:

    ```python
    metrics = train("cifar100", preset="lkca_vit_05m", epochs=3)
    print(metrics["test_accuracy"])
    ```
    """
    return _fit(
        *_prepare(
            dataset,
            *(model, preset, epochs, batch_size),
            *(data_dir, output, seed, steps_per_epoch),
        )
    )


def _prepare(
    dataset, model, preset, epochs, batch_size, data_dir, output, seed, steps_per_epoch
):
    """Check every argument and find the data before anything is computed.

    Returns:
        The network, the two pipelines, the output folder, and what describes the run.
    """
    if model not in MODELS:
        raise ValueError(
            f"`model` must be one of {sorted(MODELS)}. Received: model={model!r}"
        )
    check_positive_int("epochs", epochs)
    check_positive_int("batch_size", batch_size)
    if steps_per_epoch is not None:
        check_positive_int("steps_per_epoch", steps_per_epoch)
    require("matplotlib", "plot")
    model_class, default_preset = MODELS[model]
    preset = preset or default_preset
    # The network first: a wrong name ends the run before it writes or downloads.
    facts = data.describe(dataset)
    keras.utils.set_random_seed(seed)
    network = model_class.from_preset(
        preset,
        input_shape=facts.input_shape,
        num_classes=facts.num_classes,
        image_mean=facts.mean,
        image_std=facts.std,
    )
    training = data.training_pipeline(
        data.load(dataset, "train", data_dir),
        batch_size,
        facts.num_classes,
        seed=seed,
        flip=facts.flip,
    )
    test = data.evaluation_pipeline(
        data.load(dataset, "test", data_dir), batch_size, facts.num_classes
    )
    steps = steps_per_epoch or len(training)
    training = training.repeat()
    output = _new_folder(output, f"{dataset}-{preset}-{keras.config.backend()}")

    network.compile(
        optimizer=_optimizer(steps * epochs),
        loss=keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=0.1
        ),
        metrics=["accuracy", keras.metrics.TopKCategoricalAccuracy(5, name="top5")],
    )
    run = {
        "dataset": dataset,
        "preset": preset,
        "parameters": network.count_params(),
        "epochs": epochs,
        "steps_per_epoch": steps,
        "batch_size": batch_size,
        "seed": seed,
    }
    return network, training, test, output, run


def _fit(network, training, test, output, run):
    """Fit, evaluate, and write down what came of it."""
    name, epochs = run["preset"], run["epochs"]
    print(
        f"{name}: {run['parameters']:,} parameters, "
        f"{run['steps_per_epoch']} steps an epoch"
    )
    started = time.perf_counter()
    history = network.fit(
        training,
        validation_data=test,
        epochs=epochs,
        steps_per_epoch=run["steps_per_epoch"],
        shuffle=False,  # the pipeline does
    ).history
    seconds = time.perf_counter() - started

    metrics = {
        **run,
        "train_loss": history["loss"][-1],
        "test_loss": history["val_loss"][-1],
        "test_accuracy": history["val_accuracy"][-1],
        "test_top5_accuracy": history["val_top5"][-1],
        "fit_seconds": round(seconds, 1),
        "history": history,
        **_conditions(),
    }
    with atomic(output / "model.keras") as path:
        network.save(path)
    with atomic(output / "metrics.json") as path:
        # A run that diverged holds NaN, for which JSON has no word.
        text = re.sub(r"-?\b(NaN|Infinity)\b", "null", json.dumps(metrics, indent=2))
        path.write_text(text + "\n")
    with atomic(output / "curves.png") as path:
        _plot(history, f"{name} on {run['dataset']}").savefig(path, dpi=120)
    print(
        f"test accuracy {metrics['test_accuracy']:.2%} after {epochs} epochs and "
        f"{seconds:.0f} s; wrote {output}/model.keras, metrics.json, curves.png"
    )
    return metrics


def main(dataset: str, description: str, argv=None) -> dict:
    """Run `train` on a dataset with arguments from the command line.

    Args:
        dataset: A name of `keras_lkca.data.DATASETS`.
        description: What `--help` says.
        argv: The arguments. Defaults to the command line's.

    Returns:
        What `train` returns.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=sorted(MODELS), default="lkca", help="default: lkca")
    add("--preset", help="default: lkca_vit_tiny, or vit_tiny with --model vit")
    add("--epochs", type=int, default=100, help="default: 100")
    add("--batch-size", type=int, default=128, help="default: 128")
    add("--data-dir", help="default: $TFDS_DATA_DIR or ~/tensorflow_datasets")
    add("--output", help="default: a new folder below runs/")
    add("--seed", type=int, default=0, help="default: 0")
    add("--steps-per-epoch", type=int, help="default: the whole training set")
    try:
        setup = _prepare(dataset, **vars(parser.parse_args(argv)))
    except (ValueError, FileNotFoundError, ImportError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    return _fit(*setup)


def _optimizer(steps):
    warmup = max(steps // 10, 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=1e-3 / warmup,  # the first step moves too
        warmup_target=1e-3,
        warmup_steps=warmup,
        decay_steps=max(steps - warmup, 1),
        alpha=1e-3,  # a fraction of the target: ends at 1e-6
    )
    return keras.optimizers.AdamW(schedule, weight_decay=0.05)


def _new_folder(output, name):
    """Make the output folder now: a run must not end with nowhere to write to."""
    if output is None:
        output = pathlib.Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    output = pathlib.Path(output).expanduser()
    if any((output / name).exists() for name in OUTPUTS):
        raise ValueError(
            "`output` holds a run already; choose another folder or remove it. "
            f"Received: output={str(output)!r}"
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


def _conditions():
    backend = keras.config.backend()
    return {
        "backend": backend,
        "dtype": keras.config.dtype_policy().name,
        "versions": {
            "python": platform.python_version(),
            "keras": keras.version(),
            "numpy": np.__version__,
            backend: require(backend, backend).__version__,
        },
    }


def _plot(history, title):
    """Draw loss and accuracy over the epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    figure.suptitle(title)
    epochs = np.arange(1, len(history["loss"]) + 1)
    for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for prefix, name in (("", "training"), ("val_", "test")):
            axes.plot(epochs, history[prefix + key], marker="o", ms=3, label=name)
        axes.set(xlabel="epoch", ylabel=key)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
