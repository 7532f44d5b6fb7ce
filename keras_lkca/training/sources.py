"""The images of a run: training, validation and test."""

import dataclasses
import pathlib

from keras_lkca import data
from keras_lkca.data.folders import statistics

# What a folder given as dataset holds out for the test, if it has no test/ of its own.
TEST_SHARE = 0.2


def load_split(given):
    """Load the training images, or a share of them, and the test images."""
    name, seed = given["dataset"], given["seed"]
    if name in data.DATASETS:
        for option, default in (("image_size", None), ("on_error", "raise")):
            if given[option] != default:
                raise ValueError(
                    f"`{option}` is for a folder of images. "
                    f"Received: {option}={given[option]!r}, dataset={name!r}"
                )
        facts = data.describe(name)
        train = data.load(name, "train", given["data_dir"])
        test = data.load(name, "test", given["data_dir"])
    else:
        train, test, facts = _folder(given)
    if given["fraction"] < 1:
        rows, _ = data.split(train[1], given["fraction"], seed)
        if not len(rows):
            raise ValueError(
                f"`fraction` leaves none of the {len(train[1])} training images. "
                f"Received: fraction={given['fraction']!r}"
            )
        train = train[0][rows], train[1][rows]
    return train, test, facts


def _folder(given):
    folder = pathlib.Path(given["dataset"])
    if not folder.is_dir():
        data.describe(given["dataset"])  # neither a name nor a folder
    arguments = given["image_size"] or 64, given["on_error"]
    splits = {
        path.name
        for path in folder.iterdir()
        if path.name.lower() in ("train", "test", "val", "valid", "validation")
    }
    if splits and not {"train", "test"} <= splits:
        raise ValueError(
            f"{folder} holds {sorted(splits)}, which are no classes. Give it a folder "
            "train and a folder test, each of one folder a class; or name a folder of "
            "class folders, of which a fifth is held out for the test."
        )
    if not ((folder / "train").is_dir() and (folder / "test").is_dir()):
        images, labels, facts = data.from_directory(folder, *arguments)
        test, train = data.split(labels, TEST_SHARE, seed=0)
        if not len(test):
            raise ValueError(
                f"{folder} holds {len(labels)} images, too few to hold out any for the "
                "test."
            )
        facts = _at_least_two_classes(folder, facts)
        # What normalises the images must not have seen the test.
        mean, std = statistics(images[train])
        facts = dataclasses.replace(facts, mean=mean, std=std)
        return (images[train], labels[train]), (images[test], labels[test]), facts
    images, labels, facts = data.from_directory(folder / "train", *arguments)
    *test, test_facts = data.from_directory(folder / "test", *arguments)
    if facts.class_names != test_facts.class_names:
        differ = sorted(set(facts.class_names) ^ set(test_facts.class_names))
        raise ValueError(
            f"{folder}/train and {folder}/test must hold the same classes. One of them "
            f"lacks {differ[:3]}."
        )
    return (images, labels), tuple(test), _at_least_two_classes(folder, facts)


def _at_least_two_classes(folder, facts):
    if facts.num_classes < 2:
        raise ValueError(
            f"{folder} holds one class, {facts.class_names[0]!r}; there must be two or "
            "more. Name the folder that holds the class folders."
        )
    return facts


def cut_validation(train, test, given):
    """Cut the validation images off the training images."""
    if given["select"] == "test":
        return train, test
    images, labels = train
    rows, others = data.split(labels, given["validation_split"], given["seed"])
    if not len(rows) or not len(others):
        raise ValueError(
            f"`validation_split` must leave images on both sides of {len(labels)}; use "
            "more of them, or select='test' to do without. Received: "
            f"validation_split={given['validation_split']!r}"
        )
    return (images[others], labels[others]), (images[rows], labels[rows])
