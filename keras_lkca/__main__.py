"""The command line: `python -m keras_lkca`, installed as `keras-lkca`."""

import argparse
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from keras_lkca import __version__, deploy, interpret, ops, predict
from keras_lkca.checks import check_positive_int
from keras_lkca.data.folders import images_below


def main(arguments=None):
    """Run a command."""
    parser = argparse.ArgumentParser(prog="keras-lkca", description="keras_lkca")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    about = (
        "Measure what each method of the operator costs on this machine under the "
        "backend of KERAS_BACKEND, and store it where method='auto' finds it."
    )
    command = commands.add_parser("calibrate", help=about, description=about)
    command.add_argument(
        "--dtype",
        nargs="+",
        choices=("float32", "bfloat16"),
        default=["float32", "bfloat16"],
    )
    command.add_argument("--seconds", type=float, default=0.2, help="for each method")
    command.add_argument("--output", help="by default in the Keras home directory")
    about = "Print the likeliest classes of images under a saved model."
    command = commands.add_parser("predict", help=about, description=about)
    command.add_argument("model", help="a .keras file")
    command.add_argument("images", nargs="+", help="image files")
    command.add_argument("--top", type=int, default=5, help="classes an image")
    about = "Export a saved model to a format that is served, and check the result."
    command = commands.add_parser("export", help=about, description=about)
    command.add_argument("model", help="a .keras file, of any backend")
    command.add_argument("output", help="a file; a folder for tf_saved_model")
    command.add_argument(
        "--format", choices=sorted(deploy.FORMATS), default="tf_saved_model"
    )
    command.add_argument("--no-fold", action="store_true", help="keep every layer")
    command.add_argument(
        "--version", type=int, default=1, help="folder below a tf_saved_model's output"
    )
    command.add_argument(
        "--image-bytes",
        action="store_true",
        help="a tf_saved_model's signature for JPEG and PNG files",
    )
    command.add_argument(
        "--quantize", choices=deploy.formats.QUANTIZE, help="litert only"
    )
    command.add_argument(
        "--calibration", metavar="FOLDER", help="of images, for --quantize int8"
    )
    command.add_argument("--tolerance", type=float, help="default: 1e-4, quantized 0.1")
    command.add_argument("--overwrite", action="store_true")
    about = "Write one HTML page with what a saved model learned."
    command = commands.add_parser("report", help=about, description=about)
    command.add_argument("model", help="a .keras file with LKCA layers")
    command.add_argument("images", help="a folder of image files")
    command.add_argument("output", help="the page, .html")
    command.add_argument("--beside", metavar="MODEL", help="a second model")
    command.add_argument(
        "--average-over", type=int, default=64, help="images of the folder"
    )
    parsed = parser.parse_args(arguments)
    try:
        {
            "calibrate": _calibrate,
            "export": _export,
            "predict": _predict,
            "report": _report,
        }[parsed.command](parsed)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _calibrate(parsed):
    ops.calibrate(parsed.output, tuple(parsed.dtype), parsed.seconds)


def _export(parsed):
    images = None
    if parsed.calibration:
        model = deploy.read_model(parsed.model)
        images = _images_in(parsed.calibration, model)
    path = deploy.export(
        parsed.model,
        parsed.output,
        parsed.format,
        fold_model=False if parsed.no_fold else None,
        version=parsed.version,
        image_bytes=parsed.image_bytes,
        quantize=parsed.quantize,
        calibration_images=images,
        tolerance=parsed.tolerance,
        overwrite=parsed.overwrite,
    )
    print(f"wrote {path}")


def _images_in(folder, model, count=None):
    paths = images_below(pathlib.Path(folder).expanduser())
    if not paths:
        raise ValueError(f"{folder} holds no images.")
    if count:  # evenly from all of its folders
        chosen = np.linspace(0, len(paths) - 1, min(count, len(paths)))
        paths = [paths[int(i)] for i in chosen]
    return deploy.read_images(paths, model.input_shape[1:])


def _report(parsed):
    check_positive_int("--average-over", parsed.average_over)
    model = deploy.read_model(parsed.model)
    beside = parsed.beside and deploy.read_model(parsed.beside)
    images = _images_in(parsed.images, model, parsed.average_over)
    title = _title_of_run(pathlib.Path(parsed.model).expanduser())
    path = interpret.report(model, images, parsed.output, beside, title=title)
    print(f"wrote {path}")


def _title_of_run(path):
    """Return what a run's folder says of a model: its preset and its dataset."""
    try:
        config = json.loads((path.parent / "config.json").read_text())
        dataset = pathlib.Path(config["arguments"]["dataset"]).name
        return f"{config['preset']} on {dataset}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _predict(parsed):
    results = predict(parsed.model, parsed.images, parsed.top)
    for path, classes in zip(parsed.images, results, strict=True):
        print(path)
        for name, probability in classes:
            print(f"    {probability:7.2%}  {name}")


if __name__ == "__main__":
    main()
