"""Fit a classifier, and keep everything that came of it."""

import contextlib
import dataclasses
import importlib.util
import json
import math
import numbers
import pathlib
import re
import shlex
import sys
from collections.abc import Iterable

import keras
import numpy as np

from keras_lkca import data
from keras_lkca.backend import device_kind, draws_from_one_generator
from keras_lkca.checks import check_flag, check_positive_int
from keras_lkca.data.batches import (
    as_arrays,
    as_one_hot,
    batchwise,
    check_batch_size,
    check_class_weight,
    check_known,
    check_mixing,
    check_numbers,
    drawn_by,
    of_pixels,
    weights_of_all,
)
from keras_lkca.data.decoding import ImageFiles, as_stored, part_of
from keras_lkca.data.masks import as_masks
from keras_lkca.devices import check_divides, several
from keras_lkca.extras import require
from keras_lkca.files import atomic, shown
from keras_lkca.models.classifiers import (
    check_shapes,
    class_names,
    gives_probabilities,
    is_segmenter,
    outputs_of,
    probabilities,
    task_of,
    warn_if_scaled,
)
from keras_lkca.models.colors import colors_of
from keras_lkca.models.image_model import as_names, copy_of, given_name
from keras_lkca.training import (
    callbacks,
    distillation,
    evaluation,
    segmentation,
    temperature,
)
from keras_lkca.training.freezing import check_head, frozen_epochs, head_alone
from keras_lkca.training.memory import able_to_rematerialize, rematerialized
from keras_lkca.training.recipe import OPTIMIZER, Recipe
from keras_lkca.training.state import (
    LEFT_OUT,
    conditions,
    given,
    load_state,
    load_weights,
    merge,
    new_folder,
    plain,
    read_config,
    restore,
    write_json,
)

# Images that validate and test are looked at after every epoch: in memory up to here.
HELD_BYTES = 2**30
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
        validation: Likewise, a dataset read into memory, and `ImageFiles` too up to 1
            GiB, beyond it decoded after every epoch; or a float in (0, 1), the share of
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
            not compile, and the processes that torchrun started under torch. The batch
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
    pipeline = pipeline or _default_pipeline()
    if arguments["tensorboard"] or (pipeline == "tf.data" and _is_pair(train)):
        require("tensorflow", "tensorflow")
    _check_source(train, "train")
    on_test = test is not None and validation is test
    if recipe.patience is not None and validation is None:
        raise ValueError(
            "`patience` of the recipe needs `validation`, by which it tells a better "
            f"epoch. Received: patience={recipe.patience!r}, validation=None"
        )
    if _is_pair(train):
        train = _arrays(train, "train", shape, classes, dense)
    if isinstance(validation, numbers.Real):
        train, validation = hold_out(train, validation, arguments["seed"], "validation")
    held_out = {"validation": validation, "test": test}
    for split, images in held_out.items():
        if split == "test" and on_test:
            held_out[split] = held_out["validation"]
        elif images is not None:
            _check_source(images, split)
            held_out[split] = _arrays(images, split, shape, classes, dense)
    validation, test = held_out.values()
    pairs = {"train": train, "validation": validation, "test": test}
    pairs = {name: pair for name, pair in pairs.items() if _is_pair(pair)}
    task = "segmentation" if dense else _task(model, pairs)
    weights = arguments["class_weight"] if dense else None
    if weights == "balanced":
        if not _is_pair(train):
            check_known(weights)
        weights = segmentation.balanced(train[1], classes)
    # Once: what is scaled is so everywhere.
    scaled = False
    for split, (images, _) in pairs.items():
        scaled = scaled or warn_if_scaled(model, images, f"{split}[0]")
    steps = _steps(train, recipe, arguments["steps_per_epoch"])
    engine.check(recipe, train)
    accumulated = recipe.gradient_accumulation_steps
    fewest = min(frozen or recipe.epochs, recipe.epochs - frozen or recipe.epochs)
    if accumulated > fewest * steps:
        raise ValueError(
            "`gradient_accumulation_steps` of the recipe must be at most the steps "
            "that are trained, or no weight would change. Received: "
            f"gradient_accumulation_steps={accumulated} for {fewest * steps} steps"
        )
    if _is_pair(train):
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
            "train": len(train[0]) if _is_pair(train) else None,
            "validation": 0 if on_test or validation is None else len(validation[0]),
            "test": 0 if test is None else len(test[0]),
        },
        "dtype": model.dtype_policy.name,
        "teacher": None if teacher is None else distillation.described(teacher),
    }
    seeds, rows = callbacks.seeds(model), []
    with engine.scope():
        network = engine.copy(model, copy_of)
        averaging = compiled(network, frozen)
        batches, labels_of = _batches(
            train, network, recipe, facts, arguments, pipeline, steps, scaled
        )
        if config:
            folder = pathlib.Path(output).expanduser()
            state = network, folder, config, current, frozen
            rows = engine.first(lambda: restore(*state))  # which mends the folder
            if not engine.writes:
                rows = restore(*state)
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
        images = f"{len(train[0]):,} images, " if _is_pair(train) else ""
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
            recipe.batch_size if _is_pair(train) else None, steps, epochs=recipe.epochs
        )

        def fit_to(epoch, averaging):
            """Train to the end of an epoch, and return whether it came so far."""

            def begin():
                following = batches(len(rows))
                if teacher is None:
                    return following
                softened = recipe.distill_temperature
                return distillation.taught(following, teacher, task, softened)

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
                        callbacks.Keep(folder, rows, engine.writes),
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
    finish = model, config, folder, rows, (validation, test, on_test), names, task
    with engine.apart(), _told(engine, validation, test):
        return engine.first(lambda: _finish(*finish, frozen))


@contextlib.contextmanager
def _told(engine, *splits):
    """Raise the error of batches, or of images in files, that TensorFlow hides."""
    try:
        yield
    except Exception as error:
        for source in (engine, *(pair[0] for pair in splits if _is_pair(pair))):
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


def _default_pipeline():
    """Augment in TensorFlow's threads on a CPU, where that is fastest."""
    tensorflow = importlib.util.find_spec("tensorflow") is not None
    return "tf.data" if tensorflow and device_kind() == "cpu" else "arrays"


def _is_pair(images):
    """Whether it is images and labels; a list of two batches is a dataset."""
    pair = isinstance(images, (tuple, list)) and len(images) == 2
    return pair and not any(map(_is_batch, images))


def _is_batch(part):
    batch = isinstance(part, (tuple, list)) and len(part) in (2, 3)
    return batch and getattr(part[0], "ndim", None) == 4


def _check_source(source, name):
    """Raise a `ValueError` unless it may be a pair of arrays or a dataset."""
    text = isinstance(source, (str, bytes, dict))
    first = source[0] if isinstance(source, (tuple, list)) and source else None
    if hasattr(source, "dtype"):
        received = f"one array of shape {tuple(source.shape)}"
    elif not _is_pair(source) and hasattr(first, "dtype"):
        received = f"a {type(source).__name__} of {len(source)} arrays"
    elif text or not isinstance(source, (keras.utils.PyDataset, Iterable)):
        received = f"{name}={source!r}"
    else:
        return
    raise ValueError(
        f"`{name}` must be a pair of arrays (images, labels) or a dataset of batches; "
        f"a dataset's name is for keras_lkca.training.train. Received: {received}"
    )


def _arrays(source, name, shape, classes, dense):
    """Return images and labels as arrays that fit the model, a dataset read whole."""
    if not _is_pair(source):
        # Without weights, which are for the training.
        batches = [as_arrays(batch, f"`{name}`")[:2] for batch in source]
        if not batches:
            raise ValueError(f"`{name}` must not be empty. Received: no batches")
        source = [np.concatenate(part) for part in zip(*batches, strict=True)]
    images, labels = as_stored(source[0]), np.asarray(source[1])
    if name != "train" and isinstance(images, ImageFiles):
        if dense or images.size <= HELD_BYTES:
            images = images[:]
    check_numbers(images)
    if not len(images) or any(
        wanted not in (None, size)
        for wanted, size in zip(shape, images.shape[1:], strict=True)
    ):
        raise ValueError(
            f"The images of `{name}` must be {('n', *shape)}, as the model takes them. "
            f"Received: {images.shape}"
        )
    if dense:
        masks = as_masks(labels, images.shape[:3], classes, f"{name}[1]")
        if (masks < 0).all():
            raise ValueError(
                f"`{name}[1]` must have a pixel that counts. "
                "Received: masks of which all are to be ignored"
            )
        return images, masks
    one_hot = as_one_hot(labels, len(images), classes)
    if classes == 1:
        integers, exact = one_hot[:, 0].astype(int), np.isin(one_hot, (0, 1))
    else:
        integers = one_hot.argmax(-1)
        exact = (one_hot.max(-1) == 1) & (one_hot.sum(-1) == 1)
    return images, integers if exact.all() else one_hot


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


def hold_out(train, share, seed, argument):
    """Cut a share off the training images, drawn class by class where each has one.

    Args:
        train: Pair of arrays, images and labels: integers, or a row for each image.
        share: Float, the share.
        seed: Seed of the draw.
        argument: The share's name, for the messages.
    """
    if not _is_pair(train) or not 0 < share < 1:
        raise ValueError(
            f"`{argument}` must be images and labels, a dataset of them, or a share in "
            f"(0, 1) of training arrays. Received: {argument}={share!r}"
        )
    images, labels = train
    rows, others = data.split(drawn_by(labels), float(share), seed)
    if not len(rows) or not len(others):
        raise ValueError(
            f"`{argument}` must leave images on both sides of {len(labels)}; use more "
            "of them, or choose the best epoch by the test images. "
            f"Received: {argument}={share!r}"
        )
    kept, held_out = ((part_of(images, part), labels[part]) for part in (others, rows))
    return kept, held_out


def _passes(train, recipe, steps):
    """Return how often an epoch begins a dataset anew, and the steps from each."""
    if steps is not None:
        return 1, steps
    try:
        return recipe.passes_per_epoch, len(train)
    except TypeError as error:
        raise ValueError(
            "`steps_per_epoch` is needed for a dataset whose length is not known. "
            f"Received: train={train!r}"
        ) from error


def _steps(train, recipe, steps):
    if not _is_pair(train):
        return math.prod(_passes(train, recipe, steps))
    count = len(train[0])
    check_batch_size(recipe.batch_size, count)
    return steps or max(recipe.passes_per_epoch * count // recipe.batch_size, 1)


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


def _batches(train, model, recipe, facts, arguments, pipeline, steps, scaled):
    """Return the batches from an epoch on, and the labels that the loss takes."""
    _, classes = check_shapes(model, pixels=True)
    dense = is_segmenter(model)
    loss = model.loss
    loss = loss if isinstance(loss, str) else getattr(loss, "name", None) or str(loss)
    one_hot = "sparse" not in loss.lower()
    images = train[0] if _is_pair(train) else None
    augmentation = augmentation_of(recipe, facts, images, model.input_shape[-1])
    class_weight = None  # of masks it is the loss that weighs the pixels
    if dense:
        augmentation.check_for_masks()
    else:
        check_mixing(augmentation, one_hot)
        class_weight = arguments["class_weight"]
        if _is_pair(train):
            weights_of_all(class_weight, as_one_hot(train[1], len(train[1]), classes))
        else:
            check_known(class_weight)

    def look(images, labels):
        if of_pixels(labels) != dense:
            wanted = "masks, a class for every pixel" if dense else "classes of images"
            raise ValueError(
                f"`train` must give batches of images and {wanted}, as the model does. "
                f"Received: labels of shape {labels.shape}"
            )
        if not scaled:
            warn_if_scaled(model, images, "train")

    def batches(epoch):
        options = {"augmentation": augmentation, "seed": arguments["seed"]}
        options |= {"one_hot": one_hot, "class_weight": class_weight}
        if _is_pair(train):
            return data.training_batches(
                *(*train, recipe.batch_size, classes),
                first_step=epoch * steps,
                pipeline=pipeline,
                **options,
            )
        passes, each = _passes(train, recipe, arguments["steps_per_epoch"])
        return data.dataset_batches(
            *(train, classes, each),
            first_epoch=epoch * passes,
            look=look,
            **options,
        )

    def labels_of(labels):
        if dense:
            return labels.astype("int32")
        one_hot_labels = as_one_hot(labels, len(labels), classes)
        return one_hot_labels if one_hot else one_hot_labels.argmax(-1)

    return batches, labels_of


def augmentation_of(recipe, facts, images, channels):
    """Return what is done to images, by what is known of them.

    Args:
        recipe: The recipe.
        facts: `keras_lkca.data.Dataset` of the images, or `None`.
        images: Array of them, of which the first tell the mean and the standard
            deviation where there are no facts; `None` where they come in batches.
        channels: Integer, how many each image has.
    """
    if facts:
        return recipe.augmentation(facts.flip, facts.mean, facts.std, facts.policy)
    mean, std = (0.5,) * channels, 0.0
    if images is not None:
        some = images[:1000]
        mean, std = (of(some, (0, 1, 2)) / 255 for of in (np.mean, np.std))
    return recipe.augmentation(mean=mean, std=std)


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


def _finish(model, config, folder, rows, splits, names, task, frozen):
    """Read the test images, for the best and the last epoch, whose weights stay."""
    validation, test, on_test = splits
    arguments, best = config["arguments"], callbacks.best_epoch(rows)
    batch_size = arguments["recipe"]["batch_size"]
    results, scores, samples = {"last": {}, "best": {}}, {}, None
    for name, epoch in (("best", best), ("last", len(rows))):
        results[name]["epoch"] = epoch
        # Into the model in hand: its own layers may be registered nowhere.
        load_weights(model, folder / f"{name}.keras")
        if epoch <= frozen:
            # So far with the frozen model's flags and the optimizer of its classifier.
            if not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)
            callbacks.keep(model, folder / f"{name}.keras", epoch)
        if epoch not in scores:
            figures, confusion, known = {}, None, None
            if test is not None and task == "segmentation":
                figures, confusion = segmentation.compare_masks(
                    model, *test, batch_size
                )
            elif test is not None:
                tested = task or evaluation.task_with(model, test[1])
                logits = not gives_probabilities(model)
                images = batchwise(test[0], batch_size)
                outputs = outputs_of(model, images, batch_size)
                known = outputs, test[1]
                figures, confusion = evaluation.compare(*known, tested, logits)
            calibrated = task not in (None, "segmentation")
            if validation is not None and not on_test and calibrated:
                options = validation, known, batch_size, task
                figures = figures | temperature.report(model, *options)
            scores[epoch] = figures, confusion
        results[name] |= scores[epoch][0]
        if task == "segmentation" and samples is None:  # the best model's
            some = [part[:4] for part in test or validation or ((), ())]
            if len(some[0]):
                guess = probabilities(model, some[0], batch_size)
                samples = *some, guess.argmax(-1)
        if not on_test and "val_accuracy" in rows[0]:
            results[name]["validation_accuracy"] = rows[epoch - 1]["val_accuracy"]
        if not on_test and "val_mean_iou" in rows[0]:
            results[name]["validation_mean_iou"] = rows[epoch - 1]["val_mean_iou"]
    chosen = "validation images" if "val_loss" in rows[0] else "nothing: the last one"
    seconds = sum(row["seconds"] for row in rows)
    metrics = {
        **{
            key: arguments[key]
            for key in (
                "dataset",
                "model",
                "preset",
                "start_from",
                "teacher",
                "fraction",
            )
            if arguments.get(key) is not None
        },
        **{key: config[key] for key in ("preset", "name") if key in config},
        "seed": arguments["seed"],
        **{key: config[key] for key in ("parameters", "images", "backend")},
        "epochs": len(rows),
        "stopped_early": config["stopped_early"],
        "best_epoch_chosen_on": "the test images, which flatters"
        if on_test
        else chosen,
        **results,
        "fit_seconds": round(seconds, 1),
        "versions": config["versions"],
    }
    if config["images"]["train"]:
        seen = len(rows) * config["steps_per_epoch"] * batch_size
        metrics["images_per_second"] = round(seen / seconds)
    confusion = scores[best][1]
    if test is not None:
        metrics["best_per_class_accuracy"] = evaluation.per_class(confusion, names)
    if test is not None and task == "segmentation":
        metrics["best_per_class_iou"] = evaluation.per_class_iou(confusion, names)
    _draw(config, folder, rows, best, on_test, names, confusion)
    if samples is not None and importlib.util.find_spec("matplotlib") is not None:
        colors = colors_of(model)
        title = config.get("name") or "segmentation"
        with atomic(folder / "samples.png") as path:
            figure = segmentation.side_by_side(*samples, colors, names, title)
            figure.savefig(path, dpi=120)
    write_json(folder / "metrics.json", metrics)
    reached = ""
    if test is not None:
        key = "test_mean_iou" if task == "segmentation" else "test_accuracy"
        reached = (
            f"{key.replace('_', ' ').replace('iou', 'IoU')} {metrics['last'][key]:.2%} "
            f"after the last epoch, {metrics['best'][key]:.2%} after the best, {best}; "
        )
    print(f"{reached}wrote {shown(folder)}")
    return metrics


def _draw(config, folder, rows, best, on_test, names, confusion):
    if importlib.util.find_spec("matplotlib") is None:
        print('no pictures: they need matplotlib, pip install "keras-lkca[plot]"')
        return
    title = config.get("name") or config["preset"]
    with atomic(folder / "curves.png") as path:
        held_out = "test" if on_test else "validation"
        figure = evaluation.curves(rows, title, best, held_out)
        figure.savefig(path, dpi=120)
    if confusion is not None and confusion.ndim == 2:
        with atomic(folder / "confusion.png") as path:
            figure = evaluation.confusion_figure(confusion, names, title)
            figure.savefig(path, dpi=120)
