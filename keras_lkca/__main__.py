"""The command line: `python -m keras_lkca`, installed as `keras-lkca`."""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from keras_lkca import __version__, ops


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
    parsed = parser.parse_args(arguments)
    ops.calibrate(parsed.output, tuple(parsed.dtype), parsed.seconds)


if __name__ == "__main__":
    main()
