"""`train` from the command line."""

import argparse
import json
import pathlib

from keras_lkca.data import PIPELINES
from keras_lkca.training.recipe import Recipe
from keras_lkca.training.run import MODELS, SELECT, train


def main(dataset: str | None, description: str, argv=None) -> dict:
    """Run `train` with arguments from the command line.

    Args:
        dataset: A name of `keras_lkca.data.DATASETS`, or `None` to take a folder of
            images as the first argument.
        description: What `--help` says.
        argv: The arguments. Defaults to the command line's.

    Returns:
        What `train` returns.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # what is left out is `train`'s default
    )
    add = parser.add_argument
    if dataset is None:
        folder = "of one folder of images a class; may be left out with --resume"
        add("dataset", nargs="?", metavar="FOLDER", help=folder)
        add("--image-size", type=int, help="pixels to resize to; default: 64")
        add("--on-error", choices=("raise", "skip"), help="damaged files")
    else:
        add("--data-dir", help="default: $TFDS_DATA_DIR or ~/tensorflow_datasets")
    add("--model", choices=sorted(MODELS), help="default: lkca")
    add("--preset", help="default: lkca_vit_tiny, or vit_tiny with --model vit")
    add("--recipe", help="paper (default), quick or a JSON file")
    add("--epochs", type=int, help="default: the recipe's")
    add("--batch-size", type=int, help="default: the recipe's")
    add("--set", nargs="+", metavar="FIELD=VALUE", help="other fields of the recipe")
    add("--model-set", nargs="+", metavar="NAME=VALUE", help="arguments of the model")
    add("--output", help="default: a new folder below runs/")
    add("--resume", action="store_true", help="continue the run in --output")
    add("--seed", type=int, help="default: 0")
    add("--fraction", type=float, help="share of the training images; default: 1")
    add("--validation-split", type=float, help="share that validates; default: 0.1")
    add("--select", choices=SELECT, help="what chooses the best epoch")
    add("--pipeline", choices=PIPELINES, help="where the augmentation runs")
    add("--dtype", help="dtype policy, such as mixed_bfloat16")
    add("--jit-compile", action=argparse.BooleanOptionalAction, help="default: Keras's")
    add("--tensorboard", action="store_true", help="log into OUTPUT/tensorboard")
    add("--steps-per-epoch", type=int, help="default: the recipe's passes")
    given = vars(parser.parse_args(argv))
    if dataset is not None:
        given["dataset"] = dataset
    elif "dataset" not in given and not given.get("resume"):
        parser.error("FOLDER is required, but to --resume")
    try:
        if recipe := _recipe(given):
            given["recipe"] = recipe
        if "model_set" in given:
            given["model_options"] = _assignments(given.pop("model_set"))
        if dataset is None and "dataset" in given:  # whatever its name: a folder
            given["dataset"] = str(
                pathlib.Path(given["dataset"]).expanduser().resolve()
            )
        return train(**given)
    except (ValueError, TypeError, OSError, ImportError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except FloatingPointError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


def _recipe(given):
    """Return the recipe that the arguments ask for, `None` for none."""
    name = given.pop("recipe", None)
    changes = _assignments(given.pop("set", []))
    for field in ("epochs", "batch_size"):
        if field in given:
            changes[field] = given.pop(field)
    if name is None and not changes:
        return None
    if name in (None, "paper"):
        return Recipe.paper(**changes)
    if name == "quick":
        return Recipe.quick(**changes)
    path = pathlib.Path(name)
    if not path.exists():
        raise ValueError(
            "`--recipe` must be paper, quick or a JSON file that exists. "
            f"Received: {name!r}"
        )
    return Recipe.from_dict({**Recipe.from_json(path.read_text()).to_dict(), **changes})


def _assignments(texts):
    """Read NAME=VALUE, the value as JSON."""
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"An assignment must be NAME=VALUE. Received: {text!r}")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = {"True": True, "False": False, "None": None}.get(
                value, value
            )
    return values
