"""Train a model on a dataset: names become objects here, and nowhere else."""

import dataclasses
import pathlib

import keras

from keras_lkca import data
from keras_lkca.checks import check_rate
from keras_lkca.data.batches import drawn_by
from keras_lkca.data.decoding import part_of
from keras_lkca.data.folders import statistics
from keras_lkca.data.masks import (
    as_ignored,
    facts_of,
    is_mask_directory,
    read_mask_directory,
)
from keras_lkca.devices import several
from keras_lkca.internals import sublayers
from keras_lkca.models import LKCASegmenter, adapt
from keras_lkca.models.adaptation import adapt_padded
from keras_lkca.models.classifiers import is_segmenter
from keras_lkca.models.image_model import given_name, read_model
from keras_lkca.models.presets import PRESETS, check_preset
from keras_lkca.training import fitting
from keras_lkca.training.recipe import Recipe
from keras_lkca.training.sources import hold_out
from keras_lkca.training.state import (
    LEFT_OUT,
    given,
    kept_rows,
    merge,
    plain,
    read_config,
)

# What is trained where no preset is named, the first where no kind is either.
MODELS = {"net": "lkca_net_08m", "lkca": "lkca_vit_tiny", "vit": "vit_tiny"}
SELECT = ("validation", "test")
TASKS = ("classification", "segmentation")
# What a folder given as dataset holds out for the test, if it has no test/ of its own.
TEST_SHARE = 0.2
# What `model_options` may hold of a model that is there already.
ADAPTED = ("num_classes", "patch_size")
DEFAULTS = {
    "dataset": None,
    "model": None,
    "preset": None,
    "start_from": None,
    "teacher": None,
    "task": "classification",
    "ignore": [255],
    "data_dir": None,
    "fraction": 1.0,
    "validation_split": 0.1,
    "select": "validation",
    "model_options": None,
    "image_size": None,
    "on_error": "raise",
    "stream": None,
    "dtype": None,
}


def train(
    dataset: str | None = LEFT_OUT,
    model: str = LEFT_OUT,
    preset: str | None = LEFT_OUT,
    recipe: Recipe | None = None,
    output=None,
    resume: bool = False,
    data_dir=LEFT_OUT,
    seed: int = LEFT_OUT,
    fraction: float = LEFT_OUT,
    validation_split: float = LEFT_OUT,
    select: str = LEFT_OUT,
    model_options: dict | None = LEFT_OUT,
    image_size=LEFT_OUT,
    on_error: str = LEFT_OUT,
    stream: bool | None = LEFT_OUT,
    pipeline: str | None = LEFT_OUT,
    dtype: str | None = LEFT_OUT,
    jit_compile: bool | None = LEFT_OUT,
    tensorboard: bool = LEFT_OUT,
    steps_per_epoch: int | None = LEFT_OUT,
    class_weight=LEFT_OUT,
    start_from=LEFT_OUT,
    freeze=LEFT_OUT,
    teacher=LEFT_OUT,
    task: str = LEFT_OUT,
    ignore=LEFT_OUT,
    distribute: str | None = None,
) -> dict:
    """Train a preset on a dataset and keep everything that came of it.

    Or, with `start_from`, a model that has learned something already.

    A share of the training images, drawn class by class, validates every epoch and
    chooses the best one. The test images are read once, at the end.

    Writes into `output`: `config.json` (all that repeats the run), `history.csv`,
    `best.keras` and `last.keras` after every epoch; `metrics.json`, `curves.png` and
    `confusion.png` at the end. Each is written whole or not at all.

    Args:
        dataset: A name of `keras_lkca.data.DATASETS`, or a folder of class folders of
            images, or of tar files, see `keras_lkca.data.from_directory`. A folder that
            holds folders `train` and `test` has its split, and `val` beside them
            validates; of another a fifth is held out for the test,
            the same whatever the seed. For `task="segmentation"` the name of a dataset
            with masks, a folder of folders `images` and `masks`, or one that holds such
            in folders `train`, `test` and if you like `val`, see
            `keras_lkca.data.from_mask_directory`.
        model: `"net"` for `keras_lkca.LKCANet`, `"lkca"` for the paper's
            `keras_lkca.LKCAViT`, `"vit"` for the softmax-attention baseline. Defaults
            to the preset's.
        preset: A name of `keras_lkca.list_presets()`. Defaults to `lkca_net_08m`, to
            `lkca_vit_tiny` with `model="lkca"`, to `vit_tiny` with `model="vit"`.
        recipe: Defaults to `Recipe.long()`, or `Recipe.segmentation()`.
        output: Folder to write to. Defaults to a new one below `runs/`.
        resume: Whether to continue the run in `output` after its last whole epoch.
            It ends with the weights that it would have had without a break. What is
            left out is the run's; what is given must be the run's.
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
            resized to. Defaults to 64, for `task="segmentation"` to their own size,
            where it is the same.
        on_error: `"raise"` or `"skip"`, for a folder's files that cannot be decoded.
        stream: Whether the training images of a folder of classes are decoded batch by
            batch, not held in memory; `None` where all would take more than 16 GiB.
            So are those that validate and test, after every epoch, where they take more
            than 256 MiB. Mean and standard deviation are those of 2,000 images.
        pipeline: Where the augmentation runs, see `keras_lkca.data.training_batches`.
            Defaults to `"tf.data"` on a CPU where TensorFlow is installed, else to
            `"arrays"`.
        dtype: Name of a dtype policy, such as `"mixed_bfloat16"`. Defaults to Keras's
            setting.
        jit_compile: As for `keras.Model.compile`; `None` for Keras's choice.
        tensorboard: Whether to log into `output/tensorboard`. Needs TensorFlow.
        steps_per_epoch: Positive integer, to end epochs early; `None` for
            `recipe.passes_per_epoch` passes.
        class_weight: What an image of each class counts in the loss, see
            `keras_lkca.training.fit`: `"balanced"` makes up for classes of few images.
        start_from: A `.keras` file, or the name of a trained preset, in place of a new
            model: `keras_lkca.models.adapt` fits it to the dataset's images and
            classes. It keeps its size and the mean and standard deviation that it
            normalises images with, and all of it is trained, also what was frozen in
            the file. Of `model_options` it takes `num_classes` and `patch_size`; a
            `dtype`, and the recipe's `drop_path_rate`, where it is a model of this
            library. To resume, the file is needed only if no epoch was finished.
        freeze: `"backbone"` to train the classifier alone, or a number of epochs to do
            so at first, see `keras_lkca.training.fit`.
        teacher: A `.keras` file, or the name of a trained preset, of the same images
            and classes, whose answers are learned beside the labels, see
            `keras_lkca.training.fit`. To resume, the file is needed again.
        task: `"classification"` of images, or `"segmentation"`, a class for every
            pixel, by an `keras_lkca.LKCASegmenter` on what `model` or `preset` name.
            With `start_from` a segmenter learns on, or one is built on what a
            classifier learned.
        ignore: For `task="segmentation"`, the value in the masks of pixels to ignore,
            or several, beside 255.
        distribute: `"data"` to share each batch among several devices, see
            `keras_lkca.training.fit`. To resume, give it again where it is wanted.

    Returns:
        What `metrics.json` holds.

    Raises:
        ValueError: If an argument is not as above, `output` holds another run, or, to
            resume, none or one that differs.
        FileNotFoundError: If the dataset is not there, see `keras_lkca.data.load`, or
            the file to start from.
        FloatingPointError: If the loss becomes NaN or infinite; the files of the last
            epoch before are kept.
        ImportError: If a package that it needs is missing.

    Example:

    ```python
    metrics = train("cifar100", preset="lkca_vit_05m", recipe=Recipe.quick(epochs=3))
    print(metrics["best"]["test_accuracy"])
    ```
    """
    about = {
        "dataset": dataset,
        "model": model,
        "preset": preset,
        "start_from": start_from,
        "teacher": teacher,
        "task": task,
        "ignore": ignore,
        "data_dir": data_dir,
        "fraction": fraction,
        "validation_split": validation_split,
        "select": select,
        "model_options": model_options,
        "image_size": image_size,
        "on_error": on_error,
        "stream": stream,
        "dtype": dtype,
    }
    settings = {
        "recipe": LEFT_OUT if recipe is None else recipe,
        "seed": seed,
        "pipeline": pipeline,
        "jit_compile": jit_compile,
        "tensorboard": tensorboard,
        "steps_per_epoch": steps_per_epoch,
        "freeze": freeze,
    }
    if ignore is not LEFT_OUT:
        about["ignore"] = as_ignored(ignore)
    about, settings = plain(_whole_paths(given(about))), plain(given(settings))
    config = read_config(output) if resume else None
    moved = {}
    if config:
        # The data, and the teacher's file, may have moved.
        movable = ("data_dir", "dataset", "teacher")
        moved = {k: v for k, v in about.items() if k in movable}
        if {moved.get("dataset"), config["arguments"].get("dataset")} & {
            *data.DATASETS
        }:
            moved.pop("dataset", None)
        about = {k: v for k, v in about.items() if k not in moved}
    about = merge(about, config, DEFAULTS)
    settings = merge(settings, config, fitting.DEFAULTS)
    found = {**about, **moved, "seed": settings["seed"]}
    _check(found)
    several(distribute)  # which gives a process its device, before models are built
    fitting.check_arguments(settings)
    preset = about["preset"]
    if about["start_from"] is None:
        preset = preset or MODELS[about["model"] or "net"]
        kind = check_preset(MODELS[about["model"]] if about["model"] else preset).model
        family = keras.saving.get_registered_object(f"keras_lkca>{kind}")
    else:
        source = _source(about["start_from"], output if resume else None)
    if not config:
        about["preset"] = preset
    teacher = None if found["teacher"] is None else _teacher(found["teacher"])
    dense = about["task"] == "segmentation"
    recipe = fitting.recipe_of(settings, dense)
    train, test, validation, facts = _load(found)
    if about["select"] == "test":
        validation = test
    elif validation is None:
        share, seed = found["validation_split"], settings["seed"]
        train, validation = hold_out(train, share, seed, "validation_split")
    keras.utils.set_random_seed(settings["seed"])
    dataset = pathlib.Path(about["dataset"]).name
    if about["start_from"] is None:
        options = {
            "input_shape": facts.input_shape,
            "num_classes": facts.num_classes,
            "image_mean": facts.mean,
            "image_std": facts.std,
            "class_names": facts.class_names or None,
            "drop_path_rate": recipe.drop_path_rate,
            **(about["model_options"] or {}),
        }
        if about["dtype"]:
            options["dtype"] = about["dtype"]
        if dense:
            family = LKCASegmenter
            options["class_colors"] = facts.class_colors or None
        network, origin = family.from_preset(preset, **options), preset
    else:
        network = _carried(source, about, facts, recipe)
        known = about["start_from"] in PRESETS
        origin = about["start_from"] if known else given_name(network)
    return fitting.fit(
        network,
        train,
        validation,
        test,
        recipe,
        output=output,
        resume=resume,
        seed=settings["seed"],
        steps_per_epoch=settings["steps_per_epoch"],
        pipeline=settings["pipeline"],
        jit_compile=settings["jit_compile"],
        tensorboard=settings["tensorboard"],
        class_weight=class_weight,
        freeze=settings["freeze"],
        teacher=teacher,
        facts=facts,
        name=f"{origin} on {dataset}",
        about=about,
        distribute=distribute,
    )


def _whole_paths(arguments):
    """Return arguments with folders by their whole paths."""
    arguments = dict(arguments)
    for name in ("dataset", "data_dir"):
        value = arguments.get(name)
        if value is not None and value not in data.DATASETS:
            path = pathlib.Path(value).expanduser()
            # A word that is no folder is a name that is to be refused as such.
            arguments[name] = str(path.resolve() if path.is_dir() else value)
    for name in ("start_from", "teacher"):
        value = arguments.get(name)
        if value is not None and not isinstance(value, (str, pathlib.Path)):
            raise ValueError(
                f"`{name}` must be a `.keras` file or the name of a trained preset; a "
                f"model in hand is for keras_lkca.training.fit. Received: "
                f"{name}={value!r}"
            )
        if value is not None and value not in PRESETS:
            path = pathlib.Path(value).expanduser()
            arguments[name] = str(path.resolve() if path.exists() else value)
    return arguments


def _teacher(path):
    """Return the model to learn from."""
    try:
        return read_model(path)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(
            "`teacher` must be a `.keras` file or the name of a trained preset: "
            f"{error} Received: teacher={path!r}"
        ) from error


def _source(start, folder):
    """Return the model to start from, or, to resume, the one that it became."""
    if folder is not None:
        folder = pathlib.Path(folder).expanduser()
        if kept_rows(folder):
            return read_model(folder / "last.keras")
    try:
        return read_model(start)
    except (ValueError, FileNotFoundError) as error:
        resumed = (
            f" No epoch of the run in {folder} was finished, which needs it still."
            if folder is not None
            else ""
        )
        raise type(error)(
            "`start_from` must be a `.keras` file or the name of a trained preset: "
            f"{error}{resumed} Received: start_from={start!r}"
        ) from error


def _carried(source, about, facts, recipe):
    """Return what a model learned, for a dataset's images and classes."""
    options, dtype = about["model_options"] or {}, about["dtype"]
    names = facts.class_names or None
    onto = about["task"] == "segmentation" and not is_segmenter(source)
    try:
        if onto:
            patch_size = options.get("patch_size")
            model = adapt_padded(source, facts.input_shape, patch_size)
            model = _with(model, dtype, drop_path_rate=recipe.drop_path_rate)
            colors = facts.class_colors or None
            model = LKCASegmenter(
                *(model, facts.num_classes),
                input_shape=facts.input_shape,
                class_names=names,
                class_colors=colors,
            )
            return _thawed(model)
        if is_segmenter(source) and about["task"] != "segmentation":
            raise ValueError(
                "It tells a class for every pixel: give task='segmentation'."
            )
        model = adapt(
            source,
            facts.input_shape,
            num_classes=options.get("num_classes")
            or (None if names else facts.num_classes),
            patch_size=options.get("patch_size"),
            class_names=names,
        )
        if is_segmenter(model) and facts.class_colors:
            model = _with(model, dtype, class_colors=facts.class_colors)
        model = _with(model, dtype, drop_path_rate=recipe.drop_path_rate)
    except ValueError as error:
        raise ValueError(
            f"`start_from` must be a model that can be adapted to the images of "
            f"{facts.input_shape} and the {facts.num_classes} classes of the dataset. "
            f"{error} Received: start_from={about['start_from']!r}"
        ) from error
    return _thawed(model)


def _thawed(model):
    """Return a model all of which is trained, also what a run had frozen in it."""
    for layer in (model, *sublayers(model)):  # what is set already sets none within
        layer.trainable = True
    return model


def _with(model, dtype, **changes):
    """Return a model of this library's with other arguments, another as it is."""
    config = model.get_config()
    if "layers" in config or not {"dtype", *changes} <= set(config):
        if dtype is not None:
            raise ValueError(
                "`dtype` is for the models of this library; another has its own. "
                f"Received: dtype={dtype!r}"
            )
        return model
    if dtype is not None:
        changes["dtype"] = dtype
    again = type(model).from_config({**config, **changes})
    again.set_weights(model.get_weights())
    return again


def _check(arguments):
    if arguments["dataset"] is None:
        raise ValueError(
            f"`dataset` must be one of {sorted(data.DATASETS)}, or a folder of class "
            "folders. Received: dataset=None"
        )
    for name, choices in (
        ("task", TASKS),
        ("model", (None, *MODELS)),
        ("select", SELECT),
    ):
        if arguments[name] not in choices:
            raise ValueError(
                f"`{name}` must be one of {choices}. "
                f"Received: {name}={arguments[name]!r}"
            )
    preset = arguments["preset"]
    if preset is not None and check_preset(preset).weights:
        raise ValueError(
            "`preset` must be a size, of list_presets(trained=False), to train from "
            f"scratch; to train on, give start_from={preset!r} in its place. "
            f"Received: preset={preset!r}"
        )
    dense = arguments["task"] == "segmentation"
    known = data.DATASETS.get(arguments["dataset"])
    if known is not None and dense != bool(known.mask_values):
        masked = sorted(name for name, row in data.DATASETS.items() if row.mask_values)
        remedy = (
            f"a folder of images and masks, or one of {masked}, for"
            if dense
            else f"none of {masked} without"
        )
        raise ValueError(
            f"`dataset` must be {remedy} task='segmentation'. "
            f"Received: task={arguments['task']!r}, dataset={arguments['dataset']!r}"
        )
    if dense and arguments["on_error"] != "raise":
        raise ValueError(
            "`on_error` is for folders of classes; a mask without its image is always "
            f"refused. Received: on_error={arguments['on_error']!r}"
        )
    if dense and arguments["stream"]:
        raise ValueError(
            "`stream` is for folders of classes; images and masks are held in memory. "
            f"Received: stream={arguments['stream']!r}"
        )
    if not dense and arguments["ignore"] != [255]:
        raise ValueError(
            "`ignore` is for task='segmentation'. "
            f"Received: ignore={arguments['ignore']!r}"
        )
    if arguments["start_from"] is not None:
        _check_start(arguments)
    if not check_rate("fraction", arguments["fraction"]):
        raise ValueError(
            f"`fraction` must be above 0. Received: fraction={arguments['fraction']!r}"
        )
    share = check_rate("validation_split", arguments["validation_split"])
    if arguments["select"] == "validation" and not 0 < share < 1:
        raise ValueError(
            "`validation_split` must lie between 0 and 1, both excluded; select='test' "
            f"does without. Received: validation_split={share!r}"
        )


def _check_start(arguments):
    for name in ("preset", "model"):
        if arguments[name] is not None:
            raise ValueError(
                f"`{name}` is for a new model, and `start_from` brings its own: give "
                f"one of them. Received: {name}={arguments[name]!r}, "
                f"start_from={arguments['start_from']!r}"
            )
    others = sorted(set(arguments["model_options"] or {}) - set(ADAPTED))
    if others:
        raise ValueError(
            f"`model_options` must hold no more than {ADAPTED} with `start_from`, "
            "whose model has its size already. "
            f"Received: {others[0]}={arguments['model_options'][others[0]]!r}"
        )


def _load(arguments):
    """Load the training images, or a share of them, and the others.

    Returns:
        Images and labels to train with, to test with and, of a folder that has its
        own, to validate with, else `None`; and the dataset's facts.
    """
    name, seed = arguments["dataset"], arguments["seed"]
    if name in data.DATASETS:
        for option, default in (
            *(("image_size", None), ("on_error", "raise"), ("stream", None)),
            ("ignore", [255]),
        ):
            if arguments[option] != default:
                raise ValueError(
                    f"`{option}` is for a folder of images. "
                    f"Received: {option}={arguments[option]!r}, dataset={name!r}"
                )
        validation, facts = None, data.describe(name)
        train = data.load(name, "train", arguments["data_dir"])
        test = data.load(name, "test", arguments["data_dir"])
    elif arguments["task"] == "segmentation":
        train, test, validation, facts = _mask_folder(arguments)
    else:
        train, test, validation, facts = _folder(arguments)
    if arguments["fraction"] < 1:
        rows, _ = data.split(drawn_by(train[1]), arguments["fraction"], seed)
        if not len(rows):
            raise ValueError(
                f"`fraction` leaves none of the {len(train[1])} training images. "
                f"Received: fraction={arguments['fraction']!r}"
            )
        train = part_of(train[0], rows), train[1][rows]
    return train, test, validation, facts


def _folder(arguments):
    """Load the images of a folder: training, test, validation or `None`, and facts."""
    folder = pathlib.Path(arguments["dataset"])
    if not folder.is_dir():
        raise ValueError(
            f"`dataset` must be a folder of images or one of {sorted(data.DATASETS)}. "
            f"Received: dataset={arguments['dataset']!r}"
        )
    size = 64 if arguments["image_size"] is None else arguments["image_size"]
    options = size, arguments["on_error"], arguments["stream"]
    if any(map(is_mask_directory, (folder, folder / "train"))):
        raise ValueError(
            f"{folder} holds folders images and masks, as for a class for every pixel: "
            "give task='segmentation' (--task segmentation), or other names to classes."
        )
    splits = {
        path.name
        for path in folder.iterdir()
        if path.name.lower() in ("train", "test", "val", "valid", "validation")
        and path.is_dir()
    }
    if splits not in (set(), {"train", "test"}, {"train", "test", "val"}):
        raise ValueError(
            f"{folder} holds {sorted(splits)}, which are no classes. Give it a folder "
            "train, a folder test and if you like a folder val, each of one folder a "
            "class; or name a folder of class folders, of which a fifth is held out "
            "for the test."
        )
    if not splits:
        images, labels, facts = data.from_directory(folder, *options)
        test, train = data.split(labels, TEST_SHARE, seed=0)
        if not len(test):
            raise ValueError(
                f"{folder} holds {len(labels)} images, too few to hold out any for the "
                "test."
            )
        facts = _at_least_two_classes(folder, facts)
        # What normalises the images must not have seen the test.
        mean, std = statistics(part_of(images, train))
        facts = dataclasses.replace(facts, mean=mean, std=std)
        train, test = ((part_of(images, rows), labels[rows]) for rows in (train, test))
        return train, test, None, facts
    images, labels, facts = data.from_directory(folder / "train", *options)
    others = {"val": None}
    for split in splits - {"train"}:
        *others[split], found = data.from_directory(folder / split, *options)
        if facts.class_names != found.class_names:
            differ = sorted(set(facts.class_names) ^ set(found.class_names))
            raise ValueError(
                f"{folder}/train and {folder}/{split} must hold the same classes. One "
                f"of them lacks {differ[:3]}. For tar files without images of a class, "
                f"name all of them in {folder}/classes.txt."
            )
    facts = _at_least_two_classes(folder, facts)
    return (images, labels), others["test"], others["val"], facts


def _mask_folder(arguments):
    """Load a folder of images and masks, as `_folder` does one of classes."""
    folder = pathlib.Path(arguments["dataset"])
    if not folder.is_dir():
        raise ValueError(
            "`dataset` must be a folder of images and masks. "
            f"Received: dataset={arguments['dataset']!r}"
        )
    parts = {"train": folder}
    if not is_mask_directory(folder):
        parts = {name: folder / name for name in ("train", "test", "val")}
        if not parts["val"].is_dir():
            parts.pop("val")
        for part in parts.values():
            if not is_mask_directory(part):
                raise ValueError(
                    f"{folder} must hold folders images and masks, or folders train, "
                    f"test and if you like val that do. There are none in {part}."
                )
    options = arguments["image_size"], arguments["ignore"]
    read = {name: read_mask_directory(part, *options) for name, part in parts.items()}
    images, masks, names, palette = read["train"]
    for name, (others, _, own, colors) in read.items():
        if others.shape[1:] != images.shape[1:]:
            raise ValueError(
                f"The images of {folder} must be of one size, or `image_size` given. "
                f"Received: {images.shape[1:3]} in train, {others.shape[1:3]} in {name}"
            )
        if own != names:
            raise ValueError(
                f"The classes of {parts['train']} and {parts[name]} must be the same, "
                f"in one order. Received: {', '.join(names)} and {', '.join(own)}"
            )
        palette = palette or colors
    # A class may be missing in one of the parts.
    count = len(names) or 1 + max(int(part[1].max()) for part in read.values())
    if len(parts) > 1:
        facts = facts_of(folder, images, count, names, palette)
        test, val = (read.get(part, (None, None))[:2] for part in ("test", "val"))
        return (images, masks), test, None if val[0] is None else val, facts
    test, train = data.split(drawn_by(masks), TEST_SHARE, seed=0)
    if not len(test):
        raise ValueError(
            f"{folder} holds {len(images)} images, too few to hold out any for the "
            "test."
        )
    facts = facts_of(folder, images[train], count, names, palette)
    train, test = ((images[rows], masks[rows]) for rows in (train, test))
    return train, test, None, facts


def _at_least_two_classes(folder, facts):
    if facts.num_classes < 2:
        raise ValueError(
            f"{folder} holds one class, {facts.class_names[0]!r}; there must be two or "
            "more. Name the folder that holds the class folders."
        )
    return facts
