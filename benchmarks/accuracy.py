"""Does LKCA beat attention on little data? Train both, equally often, and count.

    KERAS_BACKEND=tensorflow python benchmarks/accuracy.py run --data-dir ~/data
    python benchmarks/accuracy.py report

`run` goes through the list of runs below, a folder below runs/accuracy for each. It
passes over those that are complete and resumes those that were interrupted, so it can
be stopped and started at any time. Two at once share it: --part 0/2 and --part 1/2.
`report` puts the figures of the runs that are complete into docs/results/.
"""

import argparse
import json
import pathlib
import re

import numpy as np

from keras_lkca.files import atomic
from keras_lkca.training import Recipe, train

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "accuracy"
PAGES = ROOT / "docs" / "results"
FRACTIONS = (0.05, 0.1, 0.25, 1.0)
PRESETS = {"lkca": "lkca_vit_05m", "vit": "vit_05m"}
STEPS, EPOCHS, BATCH = 2000, 10, 64
RECIPE = Recipe.quick(epochs=EPOCHS, batch_size=BATCH, drop_path_rate=0.1)
# What a user may choose, at a tenth of the images: "one" is the preset itself.
KERNELS = {
    "one kernel": {"num_kernels": 1},
    "a kernel a head": {"num_kernels": 4},
    "a kernel a channel": {"num_kernels": 100},
}


def scarcity():
    """Yield the runs of the first question, the cheapest data first."""
    for fraction in FRACTIONS:
        for seed in range(3 if fraction < 1 else 1):
            for model in PRESETS:
                yield (
                    f"{model}-{fraction:g}-seed{seed}",
                    {
                        "model": model,
                        "preset": PRESETS[model],
                        "fraction": fraction,
                        "seed": seed,
                    },
                )


def kernels():
    """Yield the runs of the second question, at 10 % of the images."""
    for patch in (4, 2):
        for name, options in KERNELS.items():
            for seed in range(3 if patch == 4 else 1):
                if name == "one kernel" and patch == 4:
                    continue  # among the first question's
                yield (
                    f"{name.replace(' ', '-')}-patch{patch}-seed{seed}",
                    {
                        "model": "lkca",
                        "preset": PRESETS["lkca"],
                        "fraction": 0.1,
                        "seed": seed,
                        "model_options": {**options, "patch_size": patch},
                    },
                )


def run(arguments):
    """Train what has not been trained."""
    part, parts = map(int, arguments.part.split("/"))
    for index, (name, options) in enumerate([*scarcity(), *kernels()]):
        folder = RUNS / name
        if index % parts != part or (folder / "metrics.json").exists():
            continue
        print(f"== {name}", flush=True)
        train(
            "cifar100",
            recipe=RECIPE,
            output=folder,
            resume=(folder / "config.json").exists(),
            data_dir=arguments.data_dir,
            steps_per_epoch=STEPS // EPOCHS,
            dtype=arguments.dtype,
            jit_compile=False,
            **options,
        )


def results(arguments):
    """Return what each complete run came to, one after the other."""
    rows = []
    for question, runs in (("scarcity", scarcity()), ("kernels", kernels())):
        for name, options in runs:
            path = pathlib.Path(arguments.runs) / name / "metrics.json"
            if not path.exists():
                continue
            metrics = json.loads(path.read_text())
            config = json.loads((path.parent / "config.json").read_text())
            saved = config["arguments"]
            if (saved["recipe"], saved["steps_per_epoch"] * EPOCHS) != (
                RECIPE.to_dict(),
                STEPS,
            ):
                raise SystemExit(f"{path.parent} was trained by another recipe")
            rows.append(
                {
                    "question": question,
                    "name": name,
                    **options,
                    **{k: metrics[k] for k in ("parameters", "images", "fit_seconds")},
                    "last": metrics["last"],
                    "best": metrics["best"],
                    "dtype": config["dtype"],
                    "backend": config["backend"],
                    "versions": config["versions"],
                }
            )
    return rows


def spread(values):
    """Return mean, and the lowest and the highest where there are several."""
    text = f"{100 * np.mean(values):.1f}"
    if len(values) > 1:
        text += f" ({100 * min(values):.1f} to {100 * max(values):.1f})"
    return text


def report(arguments):
    """Write the tables into the pages, the figure and the figures beside them."""
    rows = results(arguments)
    if not rows:
        raise SystemExit(f"no run is complete in {arguments.runs}")
    groups = {}
    for row in rows:
        if row["question"] == "scarcity":
            groups.setdefault((row["fraction"], row["model"]), []).append(row)
    lines = [
        "| training images | model | seeds | test accuracy, % | top-5, % | "
        "training accuracy, % | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for (fraction, model), runs in groups.items():
        final = [history(arguments, run)[-1]["accuracy"] for run in runs]
        minutes = np.median([run["fit_seconds"] for run in runs]) / 60
        lines.append(
            f"| {runs[0]['images']['train']:,} ({fraction:.0%}) | {PRESETS[model]} | "
            f"{len(runs)} | {spread([r['last']['test_accuracy'] for r in runs])} | "
            f"{spread([r['last']['test_top5_accuracy'] for r in runs])} | "
            f"{spread(final)} | {minutes:.0f} |"
        )
    fill(PAGES / "small-data.md", "scarcity", lines)
    lines = [
        "| patch | kernels a layer | parameters | seeds | test accuracy, % | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for patch in (4, 2):
        for name, options in KERNELS.items():
            runs = [
                row
                for row in rows
                if row["fraction"] == 0.1
                and row["model"] == "lkca"
                and (row.get("model_options") or {"num_kernels": 1, "patch_size": 4})
                == {**options, "patch_size": patch}
            ]
            if runs:
                lines.append(
                    f"| {patch} | {name} | {runs[0]['parameters']:,} | {len(runs)} | "
                    f"{spread([r['last']['test_accuracy'] for r in runs])} | "
                    f"{np.median([r['fit_seconds'] for r in runs]) / 60:.0f} |"
                )
    fill(PAGES / "small-data.md", "kernels", lines)
    with atomic(PAGES / "small-data.json") as path:
        command = "KERAS_BACKEND=tensorflow python benchmarks/accuracy.py run"
        values = {"command": command, "recipe": RECIPE.to_dict(), "runs": rows}
        path.write_text(json.dumps(values, indent=1) + "\n")
    with atomic(PAGES / "small-data.svg") as path:
        draw(groups).savefig(path)


def history(arguments, row):
    """Read a run's epochs."""
    path = pathlib.Path(arguments.runs) / row["name"] / "history.csv"
    header, *lines = path.read_text().splitlines()
    names = header.split(",")
    return [
        dict(zip(names, map(float, line.split(",")), strict=True)) for line in lines
    ]


def fill(page, name, lines):
    """Put a table between its two marks in a page."""
    marks = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    pattern = re.escape(marks[0]) + ".*?" + re.escape(marks[1])
    table = marks[0] + "\n" + "\n".join(lines) + "\n\n" + marks[1]
    text, count = re.subn(pattern, lambda _: table, page.read_text(), flags=re.S)
    if count != 1:
        raise SystemExit(f"{page} lacks the marks of {name!r}")
    with atomic(page) as path:
        path.write_text(text)


def draw(groups):
    """Draw accuracy against the number of images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for model, marker, color in (("lkca", "o", "#0072b2"), ("vit", "s", "#d55e00")):
        runs = [group for (_, name), group in groups.items() if name == model]
        if not runs:
            continue
        x = [group[0]["images"]["train"] for group in runs]
        values = [[100 * r["last"]["test_accuracy"] for r in group] for group in runs]
        means = [np.mean(v) for v in values]
        label = f"{PRESETS[model]}, {runs[0][0]['parameters']:,} parameters"
        axes.plot(x, means, color=color, marker=marker, label=label)
        for count, all_seeds in zip(x, values, strict=True):
            axes.plot([count] * len(all_seeds), all_seeds, "_", color=color, ms=10)
    axes.set(
        xscale="log",
        xlabel="training images of CIFAR-100",
        ylabel="test accuracy, %",
        title=f"{STEPS:,} steps of {BATCH} images",
    )
    axes.set_xticks(x, [f"{count:,}" for count in x])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def main():
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="train what has not been trained")
    command.add_argument("--data-dir", help="folder that holds cifar100")
    command.add_argument("--dtype", default="mixed_bfloat16")
    command.add_argument("--part", default="0/1", help="this one's share of the runs")
    command = commands.add_parser("report", help="write docs/results/")
    command.add_argument("--runs", default=str(RUNS), help="folder of the runs")
    parsed = parser.parse_args()
    {"run": run, "report": report}[parsed.command](parsed)


if __name__ == "__main__":
    main()
