"""The command line: `keras-lkca`, or `python -m keras_lkca`.

Here is the parser, which needs no Keras, so that `--help` answers at once. What the
commands do is in `commands.py`, which is imported when one is to run.
"""

import argparse
import contextlib
import errno
import importlib
import os
import pathlib
import shlex
import sys

from keras_lkca import __version__

DESCRIPTION = """\
Large Kernel Convolutional Attention: compact image classifiers for small data.

  keras-lkca train digits --preset lkca_net_03m --recipe quick --batch-size 50 \\
      --set crop_padding=1 --output runs/digits
  keras-lkca evaluate runs/digits/best.keras digits
  keras-lkca predict runs/digits/best.keras 0.png 1.png
"""

EPILOG = """\
`keras-lkca COMMAND --help` explains a command. The environment variable
KERAS_BACKEND chooses tensorflow, jax or torch. TF_CPP_MIN_LOG_LEVEL=0 shows what
TensorFlow logs, which is silent here otherwise.

exit codes:
  0    The command is done.
  1    The work failed: the loss diverged, an export broke down, memory or disk is
       full. A message says what was kept.
  2    An argument is wrong, or a file is missing or damaged. A message says which.
  130  Ctrl-C. A training run can be resumed.
"""

# What a NAME may be; a test holds it against `keras_lkca.data.DATASETS`.
NAMES = "cifar10, cifar100, svhn_cropped, tiny_imagenet, oxford_iiit_pet, digits"
MODEL = "a .keras file, written under any backend, or the name of a trained preset"
CLASS_NAMES = "names of the classes, in their order (default: those of the model)"
IGNORE = "values in masks of pixels that do not count, beside 255"
DATA_DIR = (
    "where the dataset NAME lies or is downloaded to (default: the environment "
    "variable TFDS_DATA_DIR, or else ~/tensorflow_datasets)"
)
ON_ERROR = (
    "what to do with files of a FOLDER that cannot be decoded: raise an error "
    "(default), or skip them and print which"
)
MIRROR = (
    "average the probabilities of an image and of its mirror image, which takes twice "
    "the time (default: the image alone). Not for images such as digits"
)


def main(arguments=None):
    """Run a command, and exit with a code other than 0 if it fails.

    Args:
        arguments: Sequence of strings. Defaults to those of the process.
    """
    parser = make_parser()
    given = vars(parser.parse_args(arguments))
    command = given.pop("command")
    if command == "train" and not given.keys() & {"dataset", "resume"}:
        _fail(command, 2, "NAME or FOLDER is required, except with --resume")
    try:
        # Names of files and classes may hold what the terminal cannot show.
        with contextlib.suppress(AttributeError):  # a notebook's stdout is another
            sys.stdout.reconfigure(errors="backslashreplace")
        run = getattr(_import_commands(), command)
        run(**given)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _fail(command, 130, _interrupted(command, given))
    except BrokenPipeError:
        # The reader, such as `head`, has gone; Python must not flush to it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (FloatingPointError, RuntimeError, MemoryError) as error:
        _fail(command, 1, error)
    except (ValueError, TypeError, OSError, ImportError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC
        _fail(command, 1 if full else 2, error)


def _fail(command, code, message):
    message = str(message) or type(message).__name__
    print(f"keras-lkca {command}: {message}", file=sys.stderr)
    sys.exit(code)


def _interrupted(command, given):
    if command != "train":
        return "interrupted"
    output = given.get("output")
    if output is None:
        folder = "FOLDER, the run's folder below runs/"
    elif (pathlib.Path(output).expanduser() / "config.json").exists():
        folder = shlex.quote(output)
    else:
        return "interrupted before the run began"
    # Which a run does not keep: it may go on where there are fewer devices.
    again = " --distribute data" if given.get("distribute") else ""
    return f"interrupted; resume the run with --resume --output {folder}{again}"


def _import_commands():
    """Import the commands, and with them Keras and its backend, without their log."""
    level = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _silent_stderr() if level == "3" else contextlib.nullcontext():
        try:
            commands = importlib.import_module("keras_lkca.commands")
        except ModuleNotFoundError as error:
            if error.name not in ("tensorflow", "jax", "torch"):
                raise
            raise ImportError(
                f"Keras is set to {error.name}, which is not installed. Install it "
                f'with: pip install "keras-lkca[{error.name}]"; or set KERAS_BACKEND '
                "to the one of tensorflow, jax and torch that is."
            ) from error
        # Under the other backends Keras itself imports TensorFlow, where it is
        # installed, as soon as a model is built.
        with contextlib.suppress(ImportError):
            importlib.import_module("tensorflow")
    return commands


@contextlib.contextmanager
def _silent_stderr():
    """Drop what is written to the file descriptor of stderr.

    While TensorFlow's libraries load they log to it, whatever TF_CPP_MIN_LOG_LEVEL
    says: oneDNN, missing CUDA drivers, and a warning about absl's logging itself.
    """
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# The parser. What is left out is not among the arguments, and so it is the default of
# the function in commands.py. The help names those defaults.


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def __init__(self, **arguments):
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            **arguments,
        )

    def error(self, message):
        """Print the message, and where help is found."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="keras-lkca",
        usage="keras-lkca [--version] [--help] COMMAND ...",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument(
        *("-V", "--version"),
        action="version",
        version=f"keras-lkca {__version__}\n",
        help="print the version and exit",
    )
    commands = parser.add_subparsers(
        prog=parser.prog,
        dest="command",
        metavar="COMMAND",
        required=True,
        title="commands",
    )
    add_train(commands)
    add_evaluate(commands)
    add_predict(commands)
    add_export(commands)
    add_report(commands)
    add_calibrate(commands)
    return parser


def add_train(commands):
    """Add `train`, whose options are the arguments of `keras_lkca.training.train`."""
    parser = commands.add_parser(
        "train",
        help="train a model on a dataset or on your own images",
        usage="keras-lkca train NAME|FOLDER [options]\n"
        "       keras-lkca train --resume --output FOLDER",
        description="""\
Train a model, choose its best epoch on validation images, and test it.

example:
  keras-lkca train pets/ --recipe quick --image-size 64 --output runs/pets

written into --output:
  config.json                           all that repeats the run
  history.csv, best.keras, last.keras   after every epoch
  metrics.json                          at the end: the accuracy on the test images
  curves.png, confusion.png             at the end, where matplotlib is installed""",
    )
    add = parser.add_argument
    add(
        "dataset",
        nargs="?",
        metavar="NAME|FOLDER",
        help=f"a dataset ({NAMES}), or a folder with one folder of images per class, "
        "or with .tar files of images. A FOLDER with folders train and test has its "
        "split, and val beside them validates; of another a fifth is held out for the "
        "test. May be left out with --resume.",
    )
    add(
        "--task",
        metavar="TASK",
        help="classification (default), or segmentation: a class for every pixel. Its "
        "FOLDER holds folders images and masks, files paired by name, or does so in "
        "folders train, test and if you like val",
    )
    add = parser.add_argument_group("the model").add_argument
    add(
        "--model",
        metavar="KIND",
        help="net (default), lkca for the paper's, or vit for softmax attention",
    )
    add(
        "--preset",
        metavar="NAME",
        help="its size (default: lkca_net_08m, lkca_vit_tiny or vit_tiny)",
    )
    add(
        "--start-from",
        metavar="MODEL",
        help="train on from there in place of a new model: " + MODEL,
    )
    add(
        "--freeze",
        metavar="backbone|N",
        help="train the classifier alone: all along (backbone), or for N epochs",
    )
    add(
        "--teacher",
        metavar="MODEL",
        help="learn its answers beside the labels: " + MODEL,
    )
    add(
        "--model-set",
        nargs="+",
        action="extend",
        metavar="ARGUMENT=VALUE",
        help="other arguments of the model, such as patch_size=4 num_kernels=4",
    )
    add(
        "--dtype",
        metavar="POLICY",
        help="dtype policy, such as mixed_bfloat16 (default: Keras's, float32)",
    )
    add = parser.add_argument_group("the recipe").add_argument
    add(
        "--recipe",
        metavar="RECIPE",
        help="long (default), paper, quick for a first look, segmentation (default "
        "for that), or a JSON file",
    )
    add("--epochs", type=int, metavar="N", help="default: the recipe's")
    add("--batch-size", type=int, metavar="N", help="default: the recipe's")
    add(
        "--set",
        nargs="+",
        action="extend",
        dest="recipe_set",
        metavar="FIELD=VALUE",
        help="other fields of the recipe, such as learning_rate=2e-3 flip=false",
    )
    add(
        "--steps-per-epoch",
        type=int,
        metavar="N",
        help="end epochs early (default: the recipe's passes over the images)",
    )
    add(
        "--class-weight",
        nargs="+",
        metavar="balanced|CLASS=WEIGHT",
        help="what an image of a class counts in the loss: balanced, which makes up "
        "for classes of few images, or weights such as cat=2 dog=0.5 (default: 1 each)",
    )
    add = parser.add_argument_group("the images").add_argument
    add("--data-dir", metavar="DIR", help=DATA_DIR)
    add(
        "--image-size",
        type=_size,
        metavar="PIXELS|HxW",
        help="height and width that the images of a FOLDER get (default: 64; with "
        "masks their own)",
    )
    add(
        "--ignore",
        nargs="+",
        type=int,
        metavar="VALUE",
        help=IGNORE,
    )
    add("--on-error", metavar="raise|skip", help=ON_ERROR)
    add(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="decode the training images of a FOLDER batch by batch, so that they need "
        "not fit in memory (default: where they would take more than 16 GiB)",
    )
    add(
        "--fraction",
        type=float,
        metavar="SHARE",
        help="share of the training images to use (default: 1)",
    )
    add(
        "--validation-split",
        type=float,
        metavar="SHARE",
        help="share of these that validates (default: 0.1)",
    )
    add(
        "--select",
        metavar="validation|test",
        help="images that choose the best epoch (default: validation). test trains on "
        "all the others, and its figures flatter",
    )
    add = parser.add_argument_group("the run").add_argument
    add("--output", metavar="FOLDER", help="default: a new folder below runs/")
    add(
        "--resume",
        action="store_true",
        help="continue the run in --output after its last whole epoch",
    )
    add(
        "--seed",
        type=int,
        metavar="N",
        help="of weights, splits, order and augmentation (default: 0)",
    )
    add(
        "--pipeline",
        metavar="tf.data|arrays",
        help="where the augmentation runs (default: tf.data on a CPU where TensorFlow "
        "is installed, else arrays)",
    )
    add(
        "--jit-compile",
        action=argparse.BooleanOptionalAction,
        help="compile the training step (default: Keras's choice)",
    )
    add("--tensorboard", action="store_true", help="log into OUTPUT/tensorboard")
    add(
        "--distribute",
        metavar="data",
        help="share each batch among all devices; under torch among the processes that "
        "torchrun starts: torchrun --nproc-per-node N -m keras_lkca train ...",
    )


def _size(text):
    """Read a size: PIXELS of both sides, or HEIGHTxWIDTH."""
    try:
        sides = [int(part) for part in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise argparse.ArgumentTypeError(
            f"must be a number of pixels, or HEIGHTxWIDTH as 180x240, not {text!r}"
        )
    return sides[0] if len(sides) == 1 else tuple(sides)


def add_evaluate(commands):
    """Add `evaluate`."""
    parser = commands.add_parser(
        "evaluate",
        help="measure a model's accuracy, per class too",
        usage="keras-lkca evaluate MODEL NAME|FOLDER [options]",
        description="""\
Print a model's accuracy, its loss and the accuracy per class on labelled images;
above five classes also how often the right class is among the five likeliest.

example:
  keras-lkca evaluate runs/pets/best.keras pets/ --split test --json pets.json""",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL)
    add(
        "dataset",
        metavar="NAME|FOLDER",
        help=f"a dataset ({NAMES}), or a folder with one folder of images per class, "
        "or .tar files of images, named as the model's classes, or with folders train "
        "and test of these; for a model of pixels folders images and masks",
    )
    add(
        "--ignore",
        nargs="+",
        type=int,
        metavar="VALUE",
        help=IGNORE,
    )
    add(
        "--split",
        choices=("test", "train"),
        help="which images (default: test). Of a FOLDER without folders train and "
        "test: the share that `train` holds out for the test, or the others "
        "(default: all)",
    )
    add("--data-dir", metavar="DIR", help=DATA_DIR)
    add("--on-error", metavar="raise|skip", help=ON_ERROR)
    add("--batch-size", type=int, metavar="N", help="images per step (default: 128)")
    add("--mirror", action="store_true", help=MIRROR)
    add(
        "--json",
        dest="json_file",
        metavar="FILE",
        help="write all of it, and the confusion matrix, as JSON",
    )
    add(
        "--confusion",
        dest="confusion_file",
        metavar="FILE.png",
        help="draw the confusion matrix; needs matplotlib",
    )


def add_predict(commands):
    """Add `predict`."""
    parser = commands.add_parser(
        "predict",
        help="classify image files",
        usage="keras-lkca predict MODEL IMAGE [IMAGE ...] [options]\n"
        "       keras-lkca predict --preset NAME IMAGE [IMAGE ...] [options]",
        description="""\
Print the likeliest classes of image files. Images of any size are turned as their
EXIF data says, cropped about their centre and resized to what the model takes. Of a
model of pixels print each class's share of the image, and write masks.

example:
  keras-lkca predict runs/pets/best.keras cat.jpg dog.jpg --top 2 --csv pets.csv""",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL)
    add("images", nargs="*", metavar="IMAGE", help="files, of any kind Pillow reads")
    add("--preset", metavar="NAME", help="a trained preset, in place of MODEL")
    add("--top", type=int, metavar="N", help="classes per image (default: 5)")
    add("--class-names", nargs="+", metavar="NAME", help=CLASS_NAMES)
    add("--mirror", action="store_true", help=MIRROR)
    add(
        "--masks",
        dest="masks_folder",
        metavar="FOLDER",
        help="of a model of pixels: write NAME-mask.png, a palette image whose values "
        "are the classes' numbers, and NAME-over.png, its colours over the image",
    )
    add(
        "--csv",
        dest="csv_file",
        metavar="FILE",
        help="also write them as a table with the columns file, class_1, "
        "probability_1, class_2, ...",
    )


def add_export(commands):
    """Add `export`, whose options are the arguments of `keras_lkca.deploy.export`."""
    parser = commands.add_parser(
        "export",
        help="write a model in a format that is served",
        usage="keras-lkca export MODEL OUTPUT [options]",
        description="""\
Export a model, load the result by the runtime that serves it, and compare the
probabilities of both. Nothing is written if they differ by more than --tolerance.

examples:
  keras-lkca export runs/pets/best.keras serving/pets --image-bytes
  keras-lkca export runs/pets/best.keras pets.onnx --format onnx""",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL)
    add(
        "output",
        metavar="OUTPUT",
        help="the file to write; for tf_saved_model the folder that holds the versions",
    )
    add(
        "--format",
        metavar="FORMAT",
        help="tf_saved_model (default), onnx, litert, openvino or torch",
    )
    add("--no-fold", action="store_true", help="keep every layer of an LKCA model")
    add("--tolerance", type=float, metavar="P", help="default: 1e-4, quantized 0.1")
    add("--overwrite", action="store_true", help="replace what is there")
    add = parser.add_argument_group("for tf_saved_model").add_argument
    add("--class-names", nargs="+", metavar="NAME", help=CLASS_NAMES)
    add(
        "--version",
        type=int,
        metavar="N",
        help="the folder below OUTPUT (default: 1)",
    )
    add(
        "--image-bytes",
        action="store_true",
        help="add a signature that takes JPEG and PNG files",
    )
    add = parser.add_argument_group("for litert").add_argument
    add(
        "--quantize",
        metavar="weights|int8",
        help="keep the weights in 8 bits, or compute in them too (default: neither)",
    )
    add(
        "--calibration",
        metavar="FOLDER",
        help="images like those that will come, for --quantize int8",
    )


def add_report(commands):
    """Add `report`."""
    parser = commands.add_parser(
        "report",
        help="write one HTML page with what a model learned",
        usage="keras-lkca report MODEL NAME|FOLDER OUTPUT [options]",
        description="""\
Write one HTML page with a model's kernels, attention maps, receptive field and
statistics. It is whole in itself. Needs matplotlib.

example:
  keras-lkca report runs/pets/best.keras pets/ pets.html""",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a .keras file with LKCA layers")
    add(
        "images",
        metavar="NAME|FOLDER",
        help=f"a dataset ({NAMES}), of which the test images are taken, or a folder of "
        "image files, in folders or not",
    )
    add("output", metavar="OUTPUT", help="the page, .html")
    add("--beside", metavar="MODEL", help="a second model, shown beside it")
    add(
        "--average-over",
        type=int,
        metavar="N",
        help="images that the receptive field is averaged over (default: 64)",
    )
    add("--data-dir", metavar="DIR", help=DATA_DIR)


def add_calibrate(commands):
    """Add `calibrate`."""
    parser = commands.add_parser(
        "calibrate",
        help="measure this machine, so that method='auto' knows it",
        usage="keras-lkca calibrate [options]",
        description="""\
Measure what each method of the operator costs on this machine under the backend of
KERAS_BACKEND, and store it where method="auto" finds it. It takes some minutes; leave
the machine alone meanwhile.

example:
  KERAS_BACKEND=jax keras-lkca calibrate""",
    )
    add = parser.add_argument
    add(
        "--dtype",
        nargs="+",
        choices=("float32", "bfloat16"),
        help="what to measure, of float32 and bfloat16 (default: both)",
    )
    add(
        "--seconds",
        type=float,
        metavar="S",
        help="time for each method on each shape (default: 0.2)",
    )
    add(
        "--output",
        metavar="FILE",
        help="JSON file to write (default: one in the Keras home directory)",
    )


if __name__ == "__main__":
    main()
