"""Fit a classifier, and keep everything that came of it."""

import contextlib
import dataclasses
import json
import numbers
import pathlib
import re
import shlex
import sys

import keras

from keras_lkca import data
from keras_lkca.backend import draws_from_one_generator
from keras_lkca.checks import check_flag, check_positive_int
from keras_lkca.data.batches import (
    batchwise,
    check_class_weight,
    check_known,
)
from keras_lkca.devices import check_divides, several
from keras_lkca.extras import require
from keras_lkca.files import shown
from keras_lkca.models.classifiers import (
    check_shapes,
    class_names,
    is_segmenter,
    task_of,
    warn_if_scaled,
)
from keras_lkca.models.image_model import as_names, copy_of, given_name
from keras_lkca.training import (
    callbacks,
    distillation,
    evaluation,
    segmentation,
)
from keras_lkca.training.finishing import finish
from keras_lkca.training.freezing import check_head, frozen_epochs, head_alone
from keras_lkca.training.memory import able_to_rematerialize, rematerialized
from keras_lkca.training.recipe import OPTIMIZER, Recipe
from keras_lkca.training.sources import (
    arrays_of,
    batches_of,
    check_source,
    default_pipeline,
    hold_out,
    is_pair,
    steps_per_epoch_of,
)
from keras_lkca.training.state import (
    LEFT_OUT,
    conditions,
    given,
    load_state,
    mend,
    merge,
    new_folder,
    plain,
    read_config,
    restore,
    write_json,
)

DEFAULTS = {
    "recipe": None,
    "seed": 0,
    "steps_per_epoch": None,
    "pipeline": None,
    "jit_compile": None,
    "tensorboard": False,
    "class_weight": None,
    "freeze": None,
}


def fit(
    model,
    train,
    validation=None,
    test=None,
    recipe: Recipe | None = None,
    output=None,
    resume: bool = False,
    seed: int = LEFT_OUT,
    steps_per_epoch: int | None = LEFT_OUT,
    pipeline: str | None = LEFT_OUT,
    jit_compile: bool | None = LEFT_OUT,
    tensorboard: bool = LEFT_OUT,
    class_weight=LEFT_OUT,
    facts=None,
    name: str | None = None,
    about: dict | None = None,
    extra_callbacks=(),
    freeze=LEFT_OUT,
    teacher=None,
    distribute: str | None = None,
) -> dict:
    """Train a Keras classifier or segmenter and keep everything that came of it.

    Any functional or Sequential classifier of images: a model of this library, of your
    own, or of another. The validation images choose the best epoch; the test images are
    read once, at the end.

    Writes into `output`: `config.json` (all that repeats the run), `history.csv`,
    `best.keras` and `last.keras` after every epoch; `metrics.json`, and with matplotlib
    installed `curves.png` and `confusion.png`, of a segmenter `samples.png` too, at the
    end. Each is written whole or not at all. A run that was killed goes on with
    `resume=True` and ends with the weights that it would have had without a break,
    under the same backend.

    Args:
        model: A functional or a built Sequential Keras model from images to
            `(batch, classes)`, as every model of this library is: one class out of
            many by a softmax or logits, yes or no by one column, any number of labels
            by a sigmoid on several columns, or by logits where the labels are such
            (those of arrays; of a dataset's batches only the model tells). Or to a
            class for each pixel, `(batch, height, width, classes)`, as
            `keras_lkca.LKCASegmenter` does: the labels are masks then, what is said of
            accuracy holds of pixels, and the best epoch is that of the highest mean
            intersection over union. A loss of yours must pass over -1 then. One that is
            not compiled, or was by this function, is compiled with the recipe's
            optimizer and loss. One that you compiled keeps your optimizer, loss and
            metrics, and may end with anything where there is no `test`; the recipe
            then gives the epochs, the batches and the augmentation. A loss of integer
            labels, as `"sparse_categorical_crossentropy"`, gets them.
        train: Pair of arrays, images in [0, 255] `(n, height, width, channels)` and
            labels: integers `(n,)`, or shares `(n, classes)`; for one column 0 and 1;
            for several labels an image `(n, classes)` of 0 and 1, the rows of any sum;
            for a segmenter masks, integers `(n, height, width)`, -1 or 255 for pixels
            to ignore. Or a dataset of batches of them, with weights of the images as a
            third if you like, which count in the training alone and are not for masks:
            `tf.data.Dataset`, `keras.utils.PyDataset`, torch `DataLoader`, or any
            iterable with a length, see `keras_lkca.data.dataset_batches`. Do not
            repeat it: each epoch begins it anew. Leave augmentation to the recipe.
            Images in files that need not fit in memory are `keras_lkca.data.ImageFiles`
            in place of the array.
        validation: Likewise, a dataset read into memory, and `ImageFiles` too up to 256
            MiB, beyond it decoded after every epoch; or a float in (0, 1), the share of
            the training arrays to hold out, drawn class by class where an image has
            one. `None` for none: the best epoch is then the last.
        test: Likewise, or `None`. Labels that are shares of classes count as the class
            of the largest. The same object as `validation` chooses the best epoch by
            the test images, as many papers report, which flatters.
        recipe: Defaults to `Recipe.long()`, of a segmenter to `Recipe.segmentation()`;
            on resuming to the run's.
        output: Folder to write to. Defaults to a new one below `runs/`.
        resume: Whether to continue the run in `output` after its last whole epoch. What
            is left out is the run's; what is given must be the run's.
        seed: Non-negative integer, seed of the order, the augmentation and the shares.
            The generators of Python, NumPy, Keras and the backend are seeded by it too,
            and stay so. Defaults to 0.
        steps_per_epoch: Positive integer, to end epochs early. Defaults to
            `recipe.passes_per_epoch` passes.
        pipeline: Where the augmentation of arrays runs, see
            `keras_lkca.data.training_batches`. Defaults to `"tf.data"` on a CPU where
            TensorFlow is installed, else to `"arrays"`.
        jit_compile: As for `keras.Model.compile`; defaults to Keras's choice.
        tensorboard: Whether to log into `output/tensorboard`. Needs TensorFlow.
        class_weight: What an image of each class counts in the training's loss: a
            dictionary of class, by number or name, to weight, 1 for those it leaves
            out; a sequence of a weight per class; or, for arrays, `"balanced"`:
            `n / (classes * count)` of the training images, of a segmenter of their
            pixels. Validation counts all alike.
        facts: `keras_lkca.data.Dataset` of the images, as `from_directory` returns it:
            whether they may be mirrored, and the mean that fills what is erased.
        name: What the run is called in its files. Defaults to the name that the model
            was given, or else its class.
        about: Dictionary of what else is to be kept in `config.json`, and to be the
            same on resuming. Its keys are not those of `fit`'s own arguments.
        extra_callbacks: Further Keras callbacks.
        freeze: `"backbone"` to train the classifier alone, the model's last Dense
            layer, of an `LKCASegmenter` all that comes after its backbone; or a number
            of epochs, to do so at first and to train everything after them, as the
            learning rate's schedule goes on and the optimizer begins anew. What is
            frozen runs as in inference, BatchNormalization too. What you froze yourself
            stays so all along, and the model's `trainable` flags are in the end as they
            were. `None` for neither. It needs a model that you did not compile. What is
            kept after the first epochs is loaded where `keras_lkca` is imported, or
            with `compile=False`.
        teacher: A Keras classifier of the same images and classes, whose answers to
            the augmented training images the model learns beside the labels, as
            `distill_weight` and `distill_temperature` of the recipe say. It stays as it
            is. `None` for none; to resume, give the same again. It needs a model that
            you did not compile, and what is kept is loaded as with `freeze`.
        distribute: `"data"` to share each batch equally among all devices: those of
            this process under JAX and TensorFlow, where it needs a model that you did
            not compile, and those of all processes that torchrun started under torch,
            or `keras.distribution.initialize` connected under JAX. The batch
            and the learning rate stay as they are, one process writes, and the losses
            are those of one device within rounding (docs/learn/several-devices.md says
            where they are not). `None` for one device. A run may be resumed on another
            number of devices, and ends with the same weights where the losses are.

    Returns:
        What `metrics.json` holds.

    Raises:
        ValueError: If an argument is not as above, the model has no trainable weights,
            `output` holds another run, or, to resume, none or one that differs.
        FloatingPointError: If the loss becomes NaN or infinite; the files of the last
            epoch before are kept.
        ImportError: If a package that it needs is missing.

    Example:

    >>> import tempfile
    >>> from keras_lkca import LKCAViT, data
    >>> from keras_lkca.training import Recipe, fit
    >>> model = LKCAViT((8, 8, 1), patch_size=4, embed_dim=8, depth=1)
    >>> metrics = fit(
    ...     model,
    ...     data.digits("train"),
    ...     validation=0.1,
    ...     test=data.digits("test"),
    ...     recipe=Recipe.quick(epochs=1, flip=False, crop_padding=1),
    ...     output=tempfile.mkdtemp(),
    ... )  # doctest: +ELLIPSIS
    LKCAViT: ...
    >>> metrics["images"]
    {'train': 1260, 'validation': 140, 'test': 397}
    """
    arguments = {
        "seed": seed,
        "steps_per_epoch": steps_per_epoch,
        "pipeline": pipeline,
        "jit_compile": jit_compile,
        "tensorboard": tensorboard,
        "freeze": freeze,
        "recipe": LEFT_OUT if recipe is None else recipe,
    }
    resume = check_flag("resume", resume)
    engine = several(distribute)
    shape, classes = check_shapes(model, pixels=True)
    dense = is_segmenter(model)
    if not model.trainable_weights:
        raise ValueError(
            "`model` has no trainable weights, so nothing would be learned: set "
            "`model.trainable = True`, or that of the layers that are to learn, such "
            f"as the last. Received: model={model!r}"
        )
    names = _names(model, facts, classes)
    if class_weight is not LEFT_OUT:
        class_weight = check_class_weight(class_weight, classes, names)
        arguments["class_weight"] = class_weight
    about = plain(about or {})
    for key in DEFAULTS:
        if key in about:
            raise ValueError(
                "`about` must not hold arguments of `fit` itself; give "
                f"{key}={about[key]!r} to `fit`. Received: about={about!r}"
            )
    config = read_config(output) if resume else None
    arguments = merge(
        {**plain(given(arguments)), **about}, config, {**DEFAULTS, **about}
    )
    check_arguments(arguments)
    recipe = recipe_of(arguments, dense)
    arguments["recipe"] = recipe.to_dict()
    _check_used(recipe, teacher, dense)
    frozen = frozen_epochs(arguments["freeze"], recipe.epochs)
    if frozen:
        check_head(model)
    if recipe.rematerialize:
        able_to_rematerialize(model)
    for argument, needed in (
        ("freeze", frozen),
        ("teacher", teacher is not None),
        ("class_weight", dense and arguments["class_weight"] is not None),
        ("distribute", distribute is not None),
    ):
        if needed and not _compiled_here(model):
            raise ValueError(
                f"`{argument}` needs a model that is not compiled, to be compiled with "
                "the recipe's optimizer and loss. Received: a model with the optimizer "
                f"{model.optimizer.name!r}"
            )
    if dense and not _compiled_here(model):
        _check_ignores(model.loss)
    pipeline = config["pipeline"] if config else arguments["pipeline"]
    pipeline = pipeline or default_pipeline()
    if arguments["tensorboard"] or (pipeline == "tf.data" and is_pair(train)):
        require("tensorflow", "tensorflow")
    check_source(train, "train")
    on_test = test is not None and validation is test
    if recipe.patience is not None and validation is None:
        raise ValueError(
            "`patience` of the recipe needs `validation`, by which it tells a better "
            f"epoch. Received: patience={recipe.patience!r}, validation=None"
        )
    if is_pair(train):
        train = arrays_of(train, "train", shape, classes, dense)
    if isinstance(validation, numbers.Real):
        train, validation = hold_out(train, validation, arguments["seed"], "validation")
    held_out = {"validation": validation, "test": test}
    for split, images in held_out.items():
        if split == "test" and on_test:
            held_out[split] = held_out["validation"]
        elif images is not None:
            check_source(images, split)
            held_out[split] = arrays_of(images, split, shape, classes, dense)
    validation, test = held_out.values()
    pairs = {"train": train, "validation": validation, "test": test}
    pairs = {name: pair for name, pair in pairs.items() if is_pair(pair)}
    task = "segmentation" if dense else _task(model, pairs)
    weights = arguments["class_weight"] if dense else None
    if weights == "balanced":
        if not is_pair(train):
            check_known(weights)
        weights = segmentation.balanced(train[1], classes)
    # Once: what is scaled is so everywhere.
    scaled = False
    for split, (images, _) in pairs.items():
        scaled = scaled or warn_if_scaled(model, images, f"{split}[0]")
    steps = steps_per_epoch_of(train, recipe, arguments["steps_per_epoch"])
    engine.check(recipe, train)
    accumulated = recipe.gradient_accumulation_steps
    fewest = min(frozen or recipe.epochs, recipe.epochs - frozen or recipe.epochs)
    if accumulated > fewest * steps:
        raise ValueError(
            "`gradient_accumulation_steps` of the recipe must be at most the steps "
            "that are trained, or no weight would change. Received: "
            f"gradient_accumulation_steps={accumulated} for {fewest * steps} steps"
        )
    if is_pair(train):
        check_divides(engine.count, recipe.batch_size)
    keras.utils.set_random_seed(arguments["seed"])

    def compiled(network, first_epoch, recipe=recipe):
        jit = arguments["jit_compile"]
        return _compile(
            network,
            recipe,
            total_steps=recipe.epochs * steps,
            jit_compile="auto" if jit is None else jit,
            task=task,
            first_step=first_epoch * steps,
            teacher=teacher is not None,
            class_weight=weights,
        )

    if teacher is not None:
        known = class_names(model) or (facts and as_names(facts.class_names))
        distillation.check_teacher(teacher, model, known, task)
    if test is not None and not dense:
        _check_test(model, test[1], task)
    name = name or given_name(model)
    slug = re.sub(r"[^\w.]+", "-", f"{name} {keras.config.backend()}")
    current = {
        "parameters": model.count_params(),
        "steps_per_epoch": steps,
        "images": {
            "train": len(train[0]) if is_pair(train) else None,
            "validation": 0 if on_test or validation is None else len(validation[0]),
            "test": 0 if test is None else len(test[0]),
        },
        "dtype": model.dtype_policy.name,
        "teacher": None if teacher is None else distillation.described(teacher),
    }
    seeds, rows = engine.broadcast(callbacks.seeds(model)), []
    with engine.scope():
        network = engine.copy(model, copy_of)
        averaging = compiled(network, frozen)
        batches, labels_of = batches_of(
            train, network, recipe, facts, arguments, pipeline, steps, scaled
        )
        if config:
            folder = pathlib.Path(output).expanduser()
            rows = engine.first(lambda: mend(folder, config, current))
            restore(network, folder, len(rows), frozen)
        else:
            folder = engine.first(lambda: new_folder(output, slug))
            config = {
                "arguments": arguments,
                "command": shlex.join(sys.argv),
                "pipeline": pipeline,
                "name": name,
                "seeds": seeds,
                "devices": engine.count,
                **current,
                **conditions(),
            }
            if engine.writes:
                write_json(folder / "config.json", config)
        if (folder / "metrics.json").exists():
            print(f"the run in {shown(folder)} is complete")
            if network is not model:
                model.set_weights(network.get_weights())
                compiled(model, frozen)
            return json.loads((folder / "metrics.json").read_text())
        images = f"{len(train[0]):,} images, " if is_pair(train) else ""
        on_devices = f" on {engine.count} devices" if distribute is not None else ""
        resumed = f", resumed after epoch {len(rows)}" if rows else ""
        print(
            f"{shown(name)}: {current['parameters']:,} parameters, {images}"
            f"{steps} steps per epoch{on_devices}{resumed}"
        )
        # Of a run that trains all of the model in the end.
        uncounted = frozen if frozen < recipe.epochs else 0
        if len(rows) < frozen:
            print(f"the classifier is trained alone up to epoch {frozen}")
        seeding, board = [], []
        if draws_from_one_generator():
            seed = arguments["seed"], engine.process
            seeding.append(callbacks.SeedSteps(steps, *seed))
        if arguments["tensorboard"] and engine.writes:
            board.append(keras.callbacks.TensorBoard(folder / "tensorboard"))
        if validation is not None:
            validation = validation[0], labels_of(validation[1])
        progress = callbacks.Progress(
            recipe.batch_size if is_pair(train) else None, steps, epochs=recipe.epochs
        )

        def fit_to(epoch, averaging):
            """Train to the end of an epoch, and return whether it came so far."""

            def begin():
                following = batches(len(rows))
                if teacher is None:
                    return following
                options = recipe.distill_temperature, engine.apart
                return distillation.taught(following, teacher, task, *options)

            looked_at = None
            if validation is not None:
                looked_at = batchwise(validation[0], recipe.batch_size, validation[1])
            spared = rematerialized(network, recipe.rematerialize)
            with spared, _told(engine, train, validation):
                network.fit(
                    engine.share(begin),
                    validation_data=looked_at,
                    validation_batch_size=recipe.batch_size,
                    steps_per_epoch=steps,
                    initial_epoch=len(rows),
                    epochs=epoch,
                    verbose=0,
                    shuffle=False,  # the batches are
                    callbacks=[
                        *engine.callbacks(),
                        callbacks.SetSeeds(steps, config.get("seeds")),
                        *seeding,
                        *averaging,
                        callbacks.StopWhenDiverged(at_once=engine.processes == 1),
                        callbacks.Keep(folder, rows, engine.writes, engine.apart),
                        callbacks.StopEarly(rows, recipe.patience, uncounted),
                        progress,
                        *board,
                        *extra_callbacks,
                    ],
                )
            return len(rows) == epoch

        stopped = callbacks.out_of_patience(rows, recipe.patience, uncounted)
        if len(rows) < recipe.epochs and not stopped:
            try:
                if len(rows) < frozen:
                    with head_alone(network):
                        alone = compiled(
                            network, 0, dataclasses.replace(recipe, layer_decay=1.0)
                        )
                        if rows:
                            load_state(network, folder / "last.keras")
                        stopped = not fit_to(frozen, alone)
                    averaging = compiled(network, frozen)
                if not stopped and len(rows) < recipe.epochs:
                    fit_to(recipe.epochs, averaging)
            except FloatingPointError as error:
                kept = (
                    f"{folder} keeps the weights of epoch {len(rows)}, last.keras, "
                    f"and of epoch {callbacks.best_epoch(rows)}, best.keras"
                    if rows
                    else f"no epoch was finished, {folder} keeps no weights"
                )
                raise FloatingPointError(
                    f"{error} {kept}. Try a lower learning_rate, a longer warmup, or "
                    "dtype='float32' in place of half precision."
                ) from error
    if not rows:
        raise ValueError(f"No epoch was finished; {folder} keeps no weights.")
    early = len(rows) < recipe.epochs and callbacks.out_of_patience(
        rows, recipe.patience, uncounted
    )
    if early and engine.writes:
        print(f"stopped early: no better epoch since {callbacks.best_epoch(rows)}")
    config = {**config, "stopped_early": early}
    if network is not model:
        compiled(model, frozen)
    end = model, config, folder, rows, (validation, test, on_test), names, task
    with engine.apart(), _told(engine, validation, test):
        metrics = engine.first(lambda: finish(*end, frozen))
    if engine.processes > 1:
        model.set_weights(engine.broadcast(model.get_weights()))
    return metrics


def _check_used(recipe, teacher, dense):
    """Raise a `ValueError` for a field that was set and has nothing to act on."""
    taught = teacher is not None
    for name, used, needed in (
        ("distill_weight", taught, "a `teacher`"),
        ("distill_temperature", taught, "a `teacher`"),
        ("dice_weight", dense, "a segmenter"),
    ):
        value, default = getattr(recipe, name), getattr(Recipe, name)
        if value != default and not used:
            raise ValueError(
                f"`{name}` of the recipe is for {needed}: leave it at {default} "
                f"without one. Received: {name}={value!r}"
            )


@contextlib.contextmanager
def _told(engine, *splits):
    """Raise the error of batches, or of images in files, that TensorFlow hides."""
    try:
        yield
    except Exception as error:
        for source in (engine, *(pair[0] for pair in splits if is_pair(pair))):
            problem = getattr(source, "problem", None)
            if problem not in (None, error):
                raise problem from error
        raise


def recipe_of(arguments, dense):
    """Return the recipe of a run's arguments, or the default one."""
    if arguments["recipe"] is not None:
        return Recipe.from_dict(arguments["recipe"])
    return Recipe.segmentation() if dense else Recipe.long()


def check_arguments(arguments):
    """Raise a `ValueError` for what no run can have."""
    if arguments["pipeline"] not in (None, *data.PIPELINES):
        raise ValueError(
            f"`pipeline` must be one of {data.PIPELINES}. "
            f"Received: pipeline={arguments['pipeline']!r}"
        )
    seed = arguments["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(
            f"`seed` must be an integer in [0, 2**32). Received: seed={seed!r}"
        )
    if arguments["steps_per_epoch"] is not None:
        check_positive_int("steps_per_epoch", arguments["steps_per_epoch"])
    recipe = Recipe.from_dict(arguments["recipe"] or {})
    frozen_epochs(arguments["freeze"], recipe.epochs)


def _task(model, pairs):
    """Return what the model decides, `None` for one of the user's own that hides it."""
    try:
        tasks = [evaluation.task_with(model, labels) for _, labels in pairs.values()]
        return "multilabel" if "multilabel" in tasks else task_of(model)
    except ValueError:
        return None


def _check_test(model, labels, task):
    """Raise now what would be raised when the training is over."""
    try:
        task = task or evaluation.task_with(model, labels)
        evaluation.true_shares(labels, len(labels), model.output_shape[-1], task)
    except ValueError as error:
        raise ValueError(
            f"`test` cannot be evaluated: {error}. Leave `test` out to train without."
        ) from error


def _compiled_here(model):
    """Whether a model is not compiled, or was by this function."""
    optimizer = callbacks.unscaled(getattr(model, "optimizer", None))
    return optimizer is None or optimizer.name == OPTIMIZER


def _check_ignores(loss):
    """Raise a `ValueError` for a loss of Keras's that takes -1 for a class."""
    sparse = keras.losses.SparseCategoricalCrossentropy
    if loss == "sparse_categorical_crossentropy" or (
        isinstance(loss, sparse) and getattr(loss, "ignore_class", None) != -1
    ):
        raise ValueError(
            "`model` must be compiled with a loss that passes over -1, which masks "
            "hold where nothing counts: keras.losses.SparseCategoricalCrossentropy("
            f"ignore_class=-1). Received: loss={loss!r}"
        )


def _compile(model, recipe, **options):
    """Compile the model unless the user did, and return what averages its weights.

    Args:
        model: The model.
        recipe: The recipe.
        options: What `Recipe.compile` takes.
    """
    if _compiled_here(model):
        recipe.compile(model, **options)
        return recipe.callbacks()
    print(
        "the model keeps the optimizer, loss and metrics that it was compiled with; "
        "the recipe gives epochs, batches and augmentation"
    )
    if not callbacks.unscaled(model.optimizer).use_ema:
        return []
    return [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]


def _names(model, facts, classes):
    """Return the classes' names: the model's, else the dataset's, else numbers."""
    count = max(classes, 2)
    known = class_names(model)
    names = known or (facts and as_names(facts.class_names))
    names = names or tuple(map(str, range(count)))
    if len(names) != count:
        raise ValueError(
            f"{'`model.class_names`' if known else '`facts.class_names`'} must be "
            f"{count} names, one for each class of the model. Received: {len(names)}"
        )
    return names
