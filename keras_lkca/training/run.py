"""Train a model on a dataset, from the data to the files it leaves behind."""

import importlib.util
import inspect
import json
import pathlib
import shlex
import sys

import keras

from keras_lkca import data
from keras_lkca.backend import device_kind
from keras_lkca.checks import check_positive_int, check_rate
from keras_lkca.extras import require
from keras_lkca.files import atomic
from keras_lkca.models import LKCAViT, ViT
from keras_lkca.training import callbacks, evaluation
from keras_lkca.training.recipe import Recipe
from keras_lkca.training.runs import (
    conditions,
    merge_arguments,
    new_folder,
    plain_arguments,
    read_config,
    restore,
    write_json,
)
from keras_lkca.training.sources import cut_validation, load_split

MODELS = {"lkca": (LKCAViT, "lkca_vit_tiny"), "vit": (ViT, "vit_tiny")}
SELECT = ("validation", "test")


def train(
    dataset: str | None = None,
    model: str = "lkca",
    preset: str | None = None,
    recipe: Recipe | None = None,
    output=None,
    resume: bool = False,
    data_dir=None,
    seed: int = 0,
    fraction: float = 1.0,
    validation_split: float = 0.1,
    select: str = "validation",
    model_options: dict | None = None,
    image_size=None,
    on_error: str = "raise",
    pipeline: str | None = None,
    dtype: str | None = None,
    jit_compile: bool | None = None,
    tensorboard: bool = False,
    steps_per_epoch: int | None = None,
) -> dict:
    """Train a preset on a dataset and keep everything that came of it.

    A share of the training images, drawn class by class, validates every epoch and
    chooses the best one. The test images are read once, at the end.

    Writes into `output`: `config.json` (all that repeats the run), `history.csv`,
    `best.keras` and `last.keras` after every epoch; `metrics.json`, `curves.png` and
    `confusion.png` at the end. Each is written whole or not at all.

    Args:
        dataset: A name of `keras_lkca.data.DATASETS`, or a folder of class folders of
            images. A folder that holds folders `train` and `test` has its split, and
            `val` beside them validates; of another a fifth is held out for the test,
            the same whatever the seed.
        model: `"lkca"`, or `"vit"` for the softmax-attention baseline.
        preset: A name of `keras_lkca.list_presets()`. Defaults to `lkca_vit_tiny`
            or `vit_tiny`.
        recipe: Defaults to `Recipe.paper()`.
        output: Folder to write to. Defaults to a new one below `runs/`.
        resume: Whether to continue the run in `output` after its last whole epoch.
            It ends with the weights that it would have had without a break.
            Arguments that are left out, or given as their defaults, are the run's.
        data_dir: Folder that holds the dataset, see `keras_lkca.data.load`.
        seed: Non-negative integer, seed of weights, splits, order and augmentation.
        fraction: Float in (0, 1], the share of the training images to use, drawn
            class by class with `seed`.
        validation_split: Float in (0, 1), the share of these that validates, where
            the dataset has no validation images of its own.
        select: `"validation"`; or `"test"` to train on all of them and choose the best
            epoch by the test images, as many papers report, which flatters.
        model_options: Arguments of the model that override the preset's, such as
            `{"num_kernels": 4, "patch_size": 2}`.
        image_size: The (height, width), or one integer, that a folder's images are
            resized to. Defaults to 64.
        on_error: `"raise"` or `"skip"`, for a folder's files that cannot be decoded.
        pipeline: Where the augmentation runs, see `keras_lkca.data.training_batches`.
            Defaults to `"tf.data"` on a CPU where TensorFlow is installed, else to
            `"arrays"`.
        dtype: Name of a dtype policy, such as `"mixed_bfloat16"`. Defaults to Keras's
            setting.
        jit_compile: As for `keras.Model.compile`; `None` for Keras's choice.
        tensorboard: Whether to log into `output/tensorboard`. Needs TensorFlow.
        steps_per_epoch: Positive integer, to end epochs early; `None` for
            `recipe.passes_per_epoch` passes.

    Returns:
        What `metrics.json` holds.

    Raises:
        ValueError: If an argument is not as above, `output` holds another run, or, to
            resume, none or one that differs.
        FileNotFoundError: If the dataset is not there, see `keras_lkca.data.load`.
        FloatingPointError: If the loss becomes NaN or infinite; the files of the last
            epoch before are kept.
        ImportError: If a package that it needs is missing.

    Example:

    ```python
    metrics = train("cifar100", preset="lkca_vit_05m", recipe=Recipe.quick(epochs=3))
    print(metrics["best"]["test_accuracy"])
    ```
    """
    given = dict(locals())
    return run(prepare(**{k: v for k, v in given.items() if v is not DEFAULTS[k]}))


DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(train).parameters.items()
}


def prepare(**given):
    """Check `train`'s arguments, find the data, build the model; compute nothing yet.

    Args:
        given: Arguments of `train`, its defaults for what is left out.

    Returns:
        What `run` takes.
    """
    output, resume = given.pop("output", None), given.pop("resume", False)
    defaults = {k: v for k, v in DEFAULTS.items() if k not in ("output", "resume")}
    given = plain_arguments(given)
    config = None
    if resume:
        config = read_config(output, set(defaults))
        given = merge_arguments(given, config)
    given = {**defaults, **given}
    _check(given)
    require("matplotlib", "plot")
    recipe = Recipe.from_dict(given["recipe"] or {})
    pipeline = given["pipeline"] or _default_pipeline()
    if config:
        pipeline = config["pipeline"]
    if given["tensorboard"] or pipeline == "tf.data":
        require("tensorflow", "data")
    model_class, default = MODELS[given["model"]]
    preset = given["preset"] or default
    train, test, validation, facts = load_split(given)
    train, validation = cut_validation(train, test, validation, given)
    if recipe.batch_size > len(train[0]):
        raise ValueError(
            "`batch_size` must not be above the number of training images. "
            f"Received: batch_size={recipe.batch_size} for {len(train[0])} images"
        )
    keras.utils.set_random_seed(given["seed"])
    options = {
        "drop_path_rate": recipe.drop_path_rate,
        **(given["model_options"] or {}),
    }
    if given["dtype"]:
        options["dtype"] = given["dtype"]
    network = model_class.from_preset(
        preset,
        **{
            "input_shape": facts.input_shape,
            "num_classes": facts.num_classes,
            "image_mean": facts.mean,
            "image_std": facts.std,
            "class_names": facts.class_names or None,
            **options,
        },
    )
    steps = given["steps_per_epoch"] or max(
        recipe.passes_per_epoch * len(train[0]) // recipe.batch_size, 1
    )
    jit = "auto" if given["jit_compile"] is None else given["jit_compile"]
    recipe.compile(network, steps * recipe.epochs, jit)
    name = f"{pathlib.Path(given['dataset']).name}-{preset}-{keras.config.backend()}"
    folder = pathlib.Path(output).expanduser() if resume else new_folder(output, name)
    current = {
        "preset": preset,
        "parameters": network.count_params(),
        "steps_per_epoch": steps,
        "images": {
            "train": len(train[0]),
            "validation": len(validation[0]) if validation is not test else 0,
            "test": len(test[0]),
        },
        "dtype": network.dtype_policy.name,
    }
    rows = []
    if config:
        rows = restore(network, recipe, folder, config, current)
    else:
        config = {
            "arguments": {**given, "recipe": recipe.to_dict()},
            "command": shlex.join(sys.argv),
            "pipeline": pipeline,
            **current,
            **conditions(),
        }
        write_json(folder / "config.json", config)
    return {
        **{"network": network, "recipe": recipe, "config": config, "folder": folder},
        **{"train": train, "validation": validation, "test": test, "facts": facts},
        "rows": rows,
    }


def run(setup):
    """Fit what is left to fit, evaluate, and write down what came of it.

    Args:
        setup: What `prepare` returned.

    Returns:
        What `train` returns.
    """
    network, recipe, folder = setup["network"], setup["recipe"], setup["folder"]
    config, facts = setup["config"], setup["facts"]
    arguments, steps = config["arguments"], config["steps_per_epoch"]
    if (folder / "metrics.json").exists():
        print(f"the run in {folder} is complete")
        return json.loads((folder / "metrics.json").read_text())
    rows = setup["rows"]
    print(
        f"{config['preset']}: {config['parameters']:,} parameters, "
        f"{config['images']['train']:,} images, {steps} steps an epoch"
        + (f", resumed after epoch {len(rows)}" if rows else "")
    )
    extra = []
    if arguments["tensorboard"]:
        extra.append(keras.callbacks.TensorBoard(folder / "tensorboard"))
    images, labels = setup["validation"]
    if len(rows) < recipe.epochs:
        try:
            network.fit(
                data.training_batches(
                    *setup["train"],
                    recipe.batch_size,
                    facts.num_classes,
                    recipe.augmentation(facts.flip, facts.mean),
                    seed=arguments["seed"],
                    first_step=len(rows) * steps,
                    pipeline=config["pipeline"],
                ),
                validation_data=(
                    images,
                    keras.utils.to_categorical(labels, facts.num_classes),
                ),
                validation_batch_size=recipe.batch_size,
                steps_per_epoch=steps,
                initial_epoch=len(rows),
                epochs=recipe.epochs,
                verbose=0,
                shuffle=False,  # the batches are
                callbacks=[
                    callbacks.SetSeeds(steps),
                    *recipe.callbacks(),
                    callbacks.StopWhenDiverged(),
                    callbacks.Keep(folder, rows),
                    callbacks.Progress(recipe.batch_size, steps),
                    *extra,
                ],
            )
        except FloatingPointError as error:
            kept = (
                f"{folder} keeps the weights of epoch {len(rows)}, last.keras, and of "
                f"epoch {callbacks.best_epoch(rows)}, best.keras"
                if rows
                else f"no epoch was finished, {folder} keeps no weights"
            )
            raise FloatingPointError(
                f"{error} {kept}. Try a lower learning_rate, a longer warmup, or "
                "dtype='float32' in place of half precision."
            ) from error
    return _finish(setup, rows)


def _finish(setup, rows):
    """Read the test images, for the last and the best epoch."""
    config, facts, folder = setup["config"], setup["facts"], setup["folder"]
    on_test = config["arguments"]["select"] == "test"
    best = callbacks.best_epoch(rows)
    results, scores = {}, {}
    for name, epoch in (("last", len(rows)), ("best", best)):
        if epoch not in scores:
            trained = keras.models.load_model(folder / f"{name}.keras", compile=False)
            scores[epoch] = evaluation.evaluate(
                trained, *setup["test"], config["arguments"]["recipe"]["batch_size"]
            )
        results[name] = {"epoch": epoch, **scores[epoch][0]}
        if not on_test:
            results[name]["validation_accuracy"] = rows[epoch - 1]["val_accuracy"]
    confusion = scores[best][1]
    names = facts.class_names or tuple(map(str, range(facts.num_classes)))
    seconds = sum(row["seconds"] for row in rows)
    arguments = config["arguments"]
    metrics = {
        **{key: arguments[key] for key in ("dataset", "model", "seed", "fraction")},
        **{key: config[key] for key in ("preset", "parameters", "images", "backend")},
        "epochs": len(rows),
        "best_epoch_chosen_on": "the test images, which flatters"
        if on_test
        else "validation images",
        **results,
        "best_per_class_accuracy": evaluation.per_class(confusion, names),
        "fit_seconds": round(seconds, 1),
        "images_per_second": round(
            len(rows)
            * config["steps_per_epoch"]
            * arguments["recipe"]["batch_size"]
            / seconds
        ),
        "versions": config["versions"],
    }
    title = f"{config['preset']} on {pathlib.Path(arguments['dataset']).name}"
    with atomic(folder / "curves.png") as path:
        held_out = "test" if on_test else "validation"
        evaluation.curves(rows, title, best, held_out).savefig(path, dpi=120)
    with atomic(folder / "confusion.png") as path:
        evaluation.confusion_figure(confusion, names, title).savefig(path, dpi=120)
    write_json(folder / "metrics.json", metrics)
    print(
        f"test accuracy {metrics['last']['test_accuracy']:.2%} after the last epoch, "
        f"{metrics['best']['test_accuracy']:.2%} after the best, {best}; wrote {folder}"
    )
    return metrics


def _default_pipeline():
    """Augment in TensorFlow's threads on a CPU, where that is fastest."""
    tensorflow = importlib.util.find_spec("tensorflow") is not None
    return "tf.data" if tensorflow and device_kind() == "cpu" else "arrays"


def _check(given):
    if given["dataset"] is None:
        raise ValueError(
            f"`dataset` must be one of {sorted(data.DATASETS)}, or a folder of class "
            "folders. Received: dataset=None"
        )
    for name, choices in (("model", tuple(MODELS)), ("select", SELECT)):
        if given[name] not in choices:
            raise ValueError(
                f"`{name}` must be one of {choices}. Received: {name}={given[name]!r}"
            )
    if given["pipeline"] not in (None, *data.PIPELINES):
        raise ValueError(
            f"`pipeline` must be one of {data.PIPELINES}. "
            f"Received: pipeline={given['pipeline']!r}"
        )
    if not check_rate("fraction", given["fraction"]):
        raise ValueError(
            f"`fraction` must be above 0. Received: fraction={given['fraction']!r}"
        )
    share = check_rate("validation_split", given["validation_split"])
    if given["select"] == "validation" and not 0 < share < 1:
        raise ValueError(
            "`validation_split` must lie between 0 and 1, both excluded; select='test' "
            f"does without. Received: validation_split={share!r}"
        )
    seed = given["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(
            f"`seed` must be an integer in [0, 2**32). Received: seed={seed!r}"
        )
    if given["steps_per_epoch"] is not None:
        check_positive_int("steps_per_epoch", given["steps_per_epoch"])
