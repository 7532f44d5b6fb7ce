"""What the commands of the command line do; `__main__.py` has their parser."""

import csv
import json
import pathlib

import numpy as np

from keras_lkca import data, deploy, interpret, ops, training
from keras_lkca.checks import check_positive_int
from keras_lkca.data.batches import drawn_by
from keras_lkca.data.decoding import part_of
from keras_lkca.data.folders import images_below
from keras_lkca.data.masks import is_mask_directory, read_mask_directory
from keras_lkca.deploy.prediction import (
    checked_files,
    grey,
    mask_files,
    write_mask,
)
from keras_lkca.devices import connect
from keras_lkca.extras import require
from keras_lkca.files import atomic, shown
from keras_lkca.models.classifiers import (
    check_classifier,
    class_names,
    image_shape,
    is_segmenter,
    number_of_classes,
    task_of,
)
from keras_lkca.models.colors import colors_of
from keras_lkca.training import Recipe, evaluation
from keras_lkca.training.run import TEST_SHARE


def train(
    dataset=None,
    recipe=None,
    epochs=None,
    batch_size=None,
    recipe_set=(),
    model_set=(),
    class_weight=None,
    freeze=None,
    **given,
):
    """Train; `given` are arguments of `keras_lkca.training.train`."""
    if given.get("distribute"):
        connect()  # before JAX computes anything: a recipe makes layers
    changes = _assignments("--set", recipe_set)
    for field, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value is not None:
            changes[field] = value
    if recipe is not None or changes:
        given["recipe"] = _recipe(recipe, changes, given.get("task"))
    if model_set:
        given["model_options"] = _assignments("--model-set", model_set)
    if class_weight is not None:
        given["class_weight"] = class_weight[0]
        if class_weight != ["balanced"]:
            given["class_weight"] = _assignments("--class-weight", class_weight)
    if freeze is not None:
        given["freeze"] = int(freeze) if freeze.isdecimal() else freeze
    if dataset is not None:
        given["dataset"] = dataset
    training.train(**given)


def _recipe(name, changes, task):
    named = {"long": Recipe.long, "paper": Recipe.paper, "quick": Recipe.quick}
    named["segmentation"] = Recipe.segmentation
    if name is None:
        name = "segmentation" if task == "segmentation" else "long"
    if name in named:
        return named[name](**changes)
    path = pathlib.Path(name).expanduser()
    if not path.is_file():
        raise ValueError(
            f"`--recipe` must be one of {', '.join(named)}, or a JSON file that "
            f"exists. Received: {name!r}"
        )
    return Recipe.from_dict({**Recipe.from_json(path.read_text()).to_dict(), **changes})


def _assignments(option, texts):
    """Read NAME=VALUE, the value as JSON or as Python writes it."""
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"`{option}` takes NAME=VALUE. Received: {text!r}")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = {"True": True, "False": False, "None": None}.get(
                value, value
            )
    return values


def evaluate(
    model,
    dataset,
    split=None,
    data_dir=None,
    on_error="raise",
    batch_size=128,
    json_file=None,
    confusion_file=None,
    mirror=False,
    ignore=(),
):
    """Print what a model is worth on labelled images, and write it into files."""
    check_positive_int("--batch-size", batch_size)
    if json_file:
        _check_output("--json", json_file)
    if confusion_file:
        _check_output("--confusion", confusion_file, (".png", ".svg", ".pdf"))
        require("matplotlib", "plot")
    if mirror:
        _check_mirror(model, dataset)
    network = deploy.read_model(model)
    check_classifier(network, pixels=True)
    dense = is_segmenter(network)
    if ignore and not dense:
        raise ValueError(
            "`--ignore` is for models of pixels. "
            f"Received: --ignore {' '.join(map(str, ignore))}"
        )
    if task_of(network) == "multilabel":
        raise ValueError(
            f"`MODEL` gives any number of labels an image, and the images of {dataset} "
            "have one each: measure it in Python, keras_lkca.training.evaluate(model, "
            "images, labels), with labels (n, classes)."
        )
    known = dataset in data.DATASETS
    for option, value, refused in (
        ("on-error", on_error != "raise", dense or known),
        ("data-dir", data_dir, dense and not known),
        ("ignore", ignore, known),
    ):
        if value and refused:
            raise ValueError(
                f"`--{option}` is not for {dataset if known else 'models of pixels'}. "
                f"Received: a model of {network.output_shape}, {shown(dataset)}"
            )
    if known:
        images, labels, what = _known_images(network, dataset, split, data_dir)
    elif dense:
        images, labels, what = _masked_images(network, dataset, split, ignore)
    else:
        images, labels, what = _labelled_images(network, dataset, split, on_error)
    names = _class_names(network)
    scores, confusion = training.evaluate(
        network, images, labels, batch_size, mirror=mirror
    )
    results = {
        "model": str(model),
        "images_of": what,
        "images": len(labels),
        "mirror": mirror,
        "accuracy": scores["test_accuracy"],
        "top5_accuracy": scores.get("test_top5_accuracy"),
        "loss": scores["test_loss"],
        **(
            {
                "mean_iou": scores["test_mean_iou"],
                "per_class_iou": evaluation.per_class_iou(confusion, names),
            }
            if dense
            else {"ece": scores["test_ece"]}
        ),
        "per_class_accuracy": evaluation.per_class(confusion, names),
        "class_names": names,
        "confusion": confusion.tolist(),
    }
    _print_results(results)
    if json_file:
        with atomic(pathlib.Path(json_file).expanduser()) as path:
            path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"wrote {shown(json_file)}")
    if confusion_file:
        title = f"{pathlib.Path(model).name} on {what}"
        with atomic(pathlib.Path(confusion_file).expanduser()) as path:
            figure = evaluation.confusion_figure(confusion, names, title)
            figure.savefig(path, dpi=120)
        print(f"wrote {shown(confusion_file)}")


def _print_results(results):
    print(f"{results['images']:,} images of {shown(results['images_of'])}")
    print(f"accuracy       {results['accuracy']:8.2%}")
    if results["top5_accuracy"] is not None:
        print(f"top-5 accuracy {results['top5_accuracy']:8.2%}")
    print(f"loss           {results['loss']:8.4f}")
    dense = "mean_iou" in results
    ious = list(results.get("per_class_iou", {}).values())
    if dense:
        print(f"mean IoU       {results['mean_iou']:8.2%}")
    else:
        print(f"ECE            {results['ece']:8.4f}")
    names = [shown(name) for name in results["class_names"]]
    width = max(len("class"), *map(len, names))
    print(
        f"\n{'class':{width}}{'pixels':>12}  accuracy       IoU"
        if dense
        else f"\n{'class':{width}}  images  accuracy"
    )
    for index, (name, row) in enumerate(zip(names, results["confusion"], strict=True)):
        count = sum(row)
        accuracy = f"{row[index] / count:10.2%}" if count else ""
        if dense:
            iou = ious[index]
            overlap = "" if iou is None else f"{iou:10.2%}"
            print(f"{name:{width}}{count:12,}{accuracy:10}{overlap}")
        else:
            print(f"{name:{width}}{count:8,}{accuracy}")


def _known_images(model, name, split, data_dir):
    """Return a dataset's images and labels as the model has them, and what they are."""
    shape, facts, split = image_shape(model), data.describe(name), split or "test"
    masked = bool(facts.mask_values)
    if masked != is_segmenter(model):
        raise ValueError(
            f"`MODEL` must tell a class for every {'pixel' if masked else 'image'} to "
            f"be measured on {name}. Received: a model of {model.output_shape}"
        )
    if facts.input_shape != shape:
        raise ValueError(
            f"`MODEL` must take the images of {name}, {facts.input_shape}. "
            f"Received: a model of images {shape}"
        )
    order = _order_of_classes(model, name, facts.num_classes, facts.class_names)
    images, labels = data.load(name, split, data_dir)
    return images, _renumbered(labels, order), f"{name}, {split}"


def _renumbered(labels, order):
    """Return a dataset's labels as a model numbers them; -1 stays."""
    return np.where(labels < 0, -1, order[np.maximum(labels, 0)])


def _masked_images(model, source, split, ignore):
    """Return images and masks as the model has them, and what they are, in words."""
    _check_source(source)
    folder = pathlib.Path(source).expanduser()
    whole = is_mask_directory(folder)
    if not whole:
        split = split or "test"
        folder = folder / split
    size = image_shape(model)[:2]
    images, masks, names, _ = read_mask_directory(folder, size, ignore or 255)
    count = len(names) or max(int(masks.max()) + 1, model.output_shape[-1])
    order = _order_of_classes(model, folder, count, names)
    masks = _renumbered(masks, order)
    return _part(images, masks, source, split, whole, image_shape(model)[2])


def _part(images, labels, source, split, whole, channels):
    """Return the part of a folder's images that is asked for, and what it is.

    Of a folder that is whole it is what `train` holds out, or the others.
    """
    if whole and split:
        test, train = data.split(drawn_by(labels), TEST_SHARE, seed=0)
        rows = test if split == "test" else train
        images, labels = part_of(images, rows), labels[rows]
    if channels == 1:
        images = grey(images)
    return images, labels, f"{source}, {split}" if split else str(source)


def _labelled_images(model, source, split, on_error):
    """Return images and labels as the model has them, and what they are, in words."""
    shape = image_shape(model)
    _check_source(source)
    if shape[2] not in (1, 3):
        raise ValueError(
            "`MODEL` must take images of 1 channel or 3, as files have them. "
            f"Received: a model of images {shape}"
        )
    folder = pathlib.Path(source).expanduser()
    whole = not all((folder / name).is_dir() for name in ("train", "test"))
    if not whole:
        split = split or "test"
        folder = folder / split
    # Those that are skipped or made grey must all be there.
    stream = None if on_error == "raise" and shape[2] == 3 else False
    images, labels, facts = data.from_directory(folder, shape[:2], on_error, stream)
    classes = _order_of_classes(model, folder, facts.num_classes, facts.class_names)
    images, labels, what = _part(images, labels, source, split, whole, shape[2])
    return images, classes[labels], what


def _check_mirror(model, dataset=None):
    """Refuse to mirror images that are of other classes then, where that is known."""
    for name in (dataset, _dataset_of_run(pathlib.Path(model).expanduser())):
        if name in data.DATASETS and not data.describe(name).flip:
            raise ValueError(
                f"`--mirror` is not for {name}, whose mirrored images are of other "
                "classes: leave it out."
            )


def _dataset_of_run(path):
    """Return the dataset of the run beside a model's file, or `None`."""
    try:
        config = json.loads((path.parent / "config.json").read_text())
        return config["arguments"]["dataset"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _order_of_classes(model, source, count, names):
    """Return the model's class for each class of a dataset, after a check."""
    classes, known = number_of_classes(model), class_names(model)
    if known and names:
        missing, unknown = set(known) - set(names), set(names) - set(known)
        if missing or unknown:
            raise ValueError(
                f"The classes of {source} must be those of the model by name. "
                f"Only the model has {sorted(missing)}, only {source} has "
                f"{sorted(unknown)}."
            )
        return np.array([known.index(name) for name in names])
    if count != classes:
        raise ValueError(
            f"{source} must have as many classes as the model, {classes}. "
            f"Received: {count} classes"
        )
    return np.arange(classes)


def _class_names(model):
    return list(class_names(model) or map(str, range(number_of_classes(model))))


def predict(
    model,
    images=(),
    preset=None,
    top=5,
    csv_file=None,
    class_names=None,
    mirror=False,
    masks_folder=None,
):
    """Print the likeliest classes of image files, and write them into a table."""
    if preset is not None:
        model, images = preset, [model, *images]
    if not images:
        raise ValueError("There are no images: give their files behind the model's.")
    if csv_file:
        _check_output("--csv", csv_file)
    if mirror:
        _check_mirror(model)
    network = deploy.read_model(model)
    if is_segmenter(network):
        if csv_file or class_names:
            raise ValueError(
                "`--csv` and `--class-names` are not for models of pixels. "
                f"Received: a model of {network.output_shape}"
            )
        _predict_masks(network, images, masks_folder, top, mirror)
        return
    if masks_folder:
        raise ValueError(
            "`--masks` is for models of pixels. Received: a model of "
            f"{network.output_shape}"
        )
    model = network
    results = deploy.predict(model, images, top, class_names=class_names, mirror=mirror)
    for path, classes in zip(images, results, strict=True):
        print(shown(path))
        for name, probability in classes:
            print(f"    {probability:7.2%}  {shown(name)}")
    if csv_file:
        header = ["file"]
        for number in range(1, len(results[0]) + 1):
            header += [f"class_{number}", f"probability_{number}"]
        with (
            atomic(pathlib.Path(csv_file).expanduser()) as path,
            path.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(header)
            for image, classes in zip(images, results, strict=True):
                row = [shown(image)]
                for name, probability in classes:
                    row += [shown(name), f"{probability:.6f}"]
                writer.writerow(row)
        print(f"wrote {shown(csv_file)}")


def _predict_masks(model, paths, folder, top, mirror):
    """Print each class's share of images, and write their masks."""
    check_positive_int("--top", top)
    names, colors, paths = _class_names(model), colors_of(model), checked_files(paths)
    if folder is not None:
        folder = pathlib.Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        targets = [
            file.resolve() for path in paths for file in mask_files(folder, path)
        ]
        if len({*targets}) < len(targets) or {*targets} & {p.resolve() for p in paths}:
            raise ValueError(
                "`--masks` would write one file twice, or over an image: give another "
                "folder, or one of the images of a name at a time. "
                f"Received: {', '.join(map(str, paths[:5]))}"
            )
    for path in paths:
        (mask,) = deploy.predict_masks(model, [path], mirror=mirror)
        print(shown(path))
        shares = np.bincount(mask.reshape(-1), minlength=len(names)) / mask.size
        for index in np.argsort(-shares, kind="stable")[:top]:
            if shares[index]:
                print(f"    {shares[index]:7.2%}  {shown(names[index])}")
        if folder is not None:
            write_mask(folder, path, mask, colors)
    if folder is not None:
        print(f"wrote {shown(folder)}")


def export(model, output, no_fold=False, calibration=None, **given):
    """Export; `given` are arguments of `keras_lkca.deploy.export`."""
    if no_fold:
        given["fold_model"] = False
    if calibration is not None:
        model = deploy.read_model(model)
        given["calibration_images"] = _images_in(calibration, model)
    print(f"wrote {shown(deploy.export(model, output, **given))}")


def report(model, images, output, beside=None, average_over=64, data_dir=None):
    """Write the page of what a model learned."""
    check_positive_int("--average-over", average_over)
    title = _title_of_run(pathlib.Path(model).expanduser())
    model = deploy.read_model(model)
    beside = deploy.read_model(beside) if beside is not None else None
    if images in data.DATASETS:
        found, _ = data.load(images, "test", data_dir)
        found = found[_evenly(len(found), average_over)]
    else:
        found = _images_in(images, model, average_over)
    path = interpret.report(model, found, output, beside, title=title)
    print(f"wrote {shown(path)}")


def _title_of_run(path):
    """Return what the run beside a model's file calls itself, or `None`."""
    try:
        config = json.loads((path.parent / "config.json").read_text())
        if "name" in config:
            return config["name"]
        dataset = pathlib.Path(config["arguments"]["dataset"]).name  # a run of before
        return f"{config['preset']} on {dataset}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def calibrate(dtype=("float32", "bfloat16"), seconds=0.2, output=None):
    """Measure this machine."""
    ops.calibrate(output, tuple(dtype), seconds)


def _images_in(folder, model, count=None):
    """Return the images of a folder, or some, evenly from all of its folders."""
    _check_source(folder)
    paths = images_below(pathlib.Path(folder).expanduser())
    if not paths:
        raise ValueError(f"{folder} holds no images.")
    if count:
        paths = [paths[i] for i in _evenly(len(paths), count)]
    return deploy.read_images(paths, image_shape(model))


def _evenly(count, wanted):
    return np.linspace(0, count - 1, min(count, wanted)).astype(int)


def _check_source(source):
    if not pathlib.Path(source).expanduser().is_dir():
        raise ValueError(
            f"{source} is neither a folder nor one of the datasets "
            f"{', '.join(data.DATASETS)}."
        )


def _check_output(option, file, suffixes=None):
    """Check that a file can be written, before anything is computed."""
    path = pathlib.Path(file).expanduser()
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError(
            f"`{option}` must be a file in a folder that exists. Received: {file!r}"
        )
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(
            f"`{option}` must end with one of {', '.join(suffixes)}. Received: {file!r}"
        )
