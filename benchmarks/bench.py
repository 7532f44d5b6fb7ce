"""Measure keras_lkca against what it replaces; see README.md beside this file.

KERAS_BACKEND=torch python benchmarks/bench.py operator
python benchmarks/bench.py figures
"""

import argparse
import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Beside an installed package, the one this file belongs to.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import deployment
import figures
import keras
import models
import operators
from harness import conditions, in_memory_process, write

from keras_lkca import deploy
from keras_lkca.backend import device_kind

GRIDS = tuple(operators.SHAPES)


def parse():
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (
        ("operator", "every method and baseline, forward and with gradients"),
        ("model", "training step and inference, LKCA against ViT"),
        ("scaling", "one block on 64 to 16,384 tokens, LKCA against attention"),
        ("dense", "segmenters on 2,700 and 16,384 tokens, LKCA against attention"),
        ("rematerialize", "training steps that compute again what they could keep"),
        ("pipeline", "images per second of the input pipeline and of fit"),
        ("files", "images per second decoded from folders and tar files"),
        ("deploy", "exported files in the runtimes that serve them"),
        ("quantize", "size, speed and accuracy of a trained model's 8-bit files"),
        ("figures", "draw what results/ holds"),
    ):
        command = commands.add_parser(name, help=about, description=about)
        if name == "figures":
            command.add_argument("--output", default=str(figures.FOLDER))
            continue
        command.add_argument("--output", help="folder, by default results/")
        command.add_argument("--label", default="", help="added to the file's name")
        batch = 32 if name == "rematerialize" else 128
        command.add_argument("--batch", type=int, default=batch)
        command.add_argument(
            "--seconds", type=float, default=0.3, help="timing, for each call"
        )
        command.add_argument(
            "--limit", type=float, default=1.0, help="slower calls are timed once"
        )
        command.add_argument(
            "--limit-gib",
            type=float,
            default=12 if name == "dense" else 1.5,
            help="of one method's matrices, or a model's attention weights",
        )
        command.add_argument(
            "--only-memory", action="store_true", help="JSON to stdout"
        )
        command.add_argument("--no-memory", action="store_true")
        if name == "deploy":
            command.add_argument("--formats", nargs="+", default=list(deploy.FORMATS))
        if name == "quantize":
            command.add_argument("--model", required=True, help="a .keras file")
            command.add_argument("--dataset", default="cifar100")
            command.add_argument("--data-dir")
        if name == "model":
            command.add_argument("--pairs", nargs="+", default=list(models.PAIRS))
        if name in ("operator", "pipeline"):
            command.add_argument("--dtype", default="float32")
        if name == "operator":
            command.add_argument("--xla", action="store_true", help="TensorFlow only")
            command.add_argument("--kernels", nargs="+", default=[])
        if name in ("operator", "scaling"):
            default = GRIDS if name == "operator" else (8, 16, 32, 64, 128)
            command.add_argument("--grids", nargs="+", type=int, default=default)
    return parser.parse_args()


def merge(rows, memory):
    """Put the peak memory beside the times."""

    def key(row):
        return json.dumps({k: v for k, v in row.items() if k != "results"})

    peaks = {key(row): row["results"] for row in memory}
    for row in rows:
        for name, result in peaks.get(key(row), {}).items():
            row["results"].setdefault(name, {}).update(result)
    return rows


def table(rows, columns):
    """Return rows as a Markdown table: times in ms, then the peak memory."""
    names = list(dict.fromkeys(name for row in rows for name in row["results"]))
    has_choice = any("auto" in row for row in rows)
    header = [*columns, *names, *(["auto takes"] if has_choice else [])]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        cells = [str(row[column]) for column in columns]
        cells += [cell(row["results"].get(name)) for name in names]
        cells += [row["auto"]] if has_choice else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(result):
    """Return a measurement as text."""
    if result is None:
        return ""
    if "median" not in result and "peak_mib" not in result:
        return f"({result['skipped']})"
    text = ""
    if "median" in result:
        text = f"{result['median']:.3g}"
        if result["rounds"] > 1:
            text += f" [{result['low']:.3g}, {result['high']:.3g}]"
        else:
            text += " (once)"
    if "peak_mib" in result:
        text += f" {result['peak_mib']:.3g} MiB"
    if "kB" in result:
        text += f" {result['kB']:,} kB"
    return text.strip()


def main():
    """Measure, and write what came of it."""
    arguments = parse()
    if arguments.command == "figures":
        figures.draw(arguments.output)
        return
    measure = {
        "operator": operators.measure,
        "model": models.model_rows,
        "scaling": models.scaling_rows,
        "dense": models.dense_rows,
        "rematerialize": models.rematerialize_rows,
        "pipeline": models.pipeline_rows,
        "files": models.file_rows,
        "deploy": deployment.deploy_rows,
        "quantize": deployment.quantize_rows,
    }[arguments.command]
    if arguments.only_memory:
        print(json.dumps(measure(arguments)))
        return
    dtype = getattr(arguments, "dtype", None)
    xla = getattr(arguments, "xla", False)
    where = conditions(**({"dtype": dtype, "xla": xla} if dtype else {}))
    parts = (
        arguments.command,
        where["backend"],
        "xla" if xla else "",
        where["device"],
        dtype,
        arguments.label,
    )
    name = "-".join(filter(None, parts))

    def store(rows):
        record = {"conditions": where, "rows": rows}
        write(name, record, markdown(arguments.command, record), arguments.output)

    rows = measure(arguments)
    store(rows)
    counts = arguments.command in (
        *("operator", "model", "scaling", "dense"),
        "rematerialize",
    )
    if counts and not arguments.no_memory and countable():
        store(merge(rows, in_memory_process(sys.argv[1:], rows)))


def countable():
    """Whether the process's memory shows what a call takes.

    On an accelerator it is elsewhere; TensorFlow's allocator keeps what it had.
    """
    return device_kind() == "cpu" and keras.config.backend() != "tensorflow"


def markdown(command, record):
    """Return a record as Markdown."""
    about = "\n".join(
        f"- {key}: {value}" for key, value in record["conditions"].items()
    )
    text = (
        "Milliseconds a call, median [quartiles]; MiB, the peak above what the "
        "process held before the call.\n\n"
    )
    rows = record["rows"]
    if command in ("pipeline", "files"):
        text = "| | images per second | range |\n|---|---|---|\n"
        for row in rows:
            rate = row["images_per_second"]
            text += f"| {row['what']} | {rate['median']} "
            text += f"| {rate['low']} to {rate['high']} |\n"
    elif command == "quantize":
        text += deployment.quantize_table(rows, cell)
    elif command == "model":
        for row in rows:
            text += f"{row['pair']}, {row['pass']}\n\n{models.tall(row, cell)}\n"
    else:
        columns = {
            "deploy": ("format", "batch"),
            "operator": ("grid", "kernel", "pass"),
            "scaling": ("tokens", "pass"),
            "dense": ("size", "tokens", "pass"),
            "rematerialize": ("model", "size"),
        }
        text += table(rows, columns[command])
    return f"# {command}\n\n{about}\n\n{text}"


if __name__ == "__main__":
    main()
