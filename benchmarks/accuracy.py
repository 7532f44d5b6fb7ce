"""Does LKCA beat attention on little data? Train both, equally often, and count.

    KERAS_BACKEND=tensorflow python benchmarks/accuracy.py run --data-dir ~/data
    python benchmarks/accuracy.py report

`run` goes through the list of runs below, a folder below runs/accuracy for each. It
passes over those that are complete and resumes those that were interrupted, so it can
be stopped and started at any time. Two at once share it: --part 0/2 and --part 1/2.
`report` puts the figures of the runs that are complete into docs/results/.
"""

import argparse
import dataclasses
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


def reasons():
    """Yield the runs of the third question, at 10 % of the images."""
    for name, changes, seeds in (
        ("rate-3e-3", {"learning_rate": 3e-3}, 3),
        ("steps-6000", {"steps": 6000}, 1),
    ):
        for seed in range(seeds):
            for model in PRESETS:
                yield (
                    f"{model}-{name}-seed{seed}",
                    {
                        "model": model,
                        "preset": PRESETS[model],
                        "fraction": 0.1,
                        "seed": seed,
                        **changes,
                    },
                )


QUESTIONS = {"scarcity": scarcity, "kernels": kernels, "reasons": reasons}


def every_run():
    """Yield question, name, recipe, steps and what else `train` is to be told."""
    for question, runs in QUESTIONS.items():
        for name, options in runs():
            rate = options.pop("learning_rate", RECIPE.learning_rate)
            recipe = dataclasses.replace(RECIPE, learning_rate=rate)
            yield question, name, recipe, options.pop("steps", STEPS), options


def run(arguments):
    """Train what has not been trained."""
    part, parts = map(int, arguments.part.split("/"))
    for index, (_, name, recipe, steps, options) in enumerate(every_run()):
        folder = RUNS / name
        if index % parts != part or (folder / "metrics.json").exists():
            continue
        print(f"== {name}", flush=True)
        train(
            "cifar100",
            recipe=recipe,
            output=folder,
            resume=(folder / "config.json").exists(),
            data_dir=arguments.data_dir,
            steps_per_epoch=steps // EPOCHS,
            dtype=arguments.dtype,
            jit_compile=False,
            **options,
        )


def results(arguments):
    """Return what each complete run came to, one after the other."""
    rows = []
    for question, name, recipe, steps, options in every_run():
        path = pathlib.Path(arguments.runs) / name / "metrics.json"
        if not path.exists():
            continue
        metrics = json.loads(path.read_text())
        config = json.loads((path.parent / "config.json").read_text())
        saved = config["arguments"]
        if (saved["recipe"], saved["steps_per_epoch"] * EPOCHS) != (
            recipe.to_dict(),
            steps,
        ):
            raise SystemExit(f"{path.parent} was trained by another recipe")
        rows.append(
            {
                "question": question,
                "name": name,
                **options,
                "learning_rate": recipe.learning_rate,
                "steps": steps,
                **{k: metrics[k] for k in ("parameters", "images", "fit_seconds")},
                "training_accuracy": history(arguments, name)[-1]["accuracy"],
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


def table(name, columns, groups):
    """Write a table of the runs' groups, by what they have in common, into the page."""
    columns = [*columns, "seeds", "test accuracy, %", "top-5, %"]
    columns += ["training accuracy, %", "minutes"]
    lines = [columns, ["---"] * len(columns)]
    for key, runs in groups.items():
        line = [*map(str, key), str(len(runs))]
        for metric in ("test_accuracy", "test_top5_accuracy"):
            line.append(spread([run["last"][metric] for run in runs]))
        line.append(spread([run["training_accuracy"] for run in runs]))
        line.append(f"{np.median([run['fit_seconds'] for run in runs]) / 60:.0f}")
        lines.append(line)
    lines = [f"| {' | '.join(line)} |" for line in lines]
    fill(PAGES / "small-data.md", name, lines)


def report(arguments):
    """Write the tables into the pages, the figure and the figures beside them."""
    rows = results(arguments)
    if not rows:
        raise SystemExit(f"no run is complete in {arguments.runs}")
    shares, kernels, reasons = {}, {}, {}
    for row in rows:
        model = PRESETS[row["model"]]
        tenth = row["fraction"] == 0.1
        if row["question"] == "scarcity":
            share = f"{row['images']['train']:,} ({row['fraction']:.0%})"
            shares.setdefault((share, model), []).append(row)
        if row["question"] == "kernels" or (
            row["question"] == "scarcity" and tenth and row["model"] == "lkca"
        ):
            options = row.get("model_options") or {"patch_size": 4, "num_kernels": 1}
            names = {value["num_kernels"]: name for name, value in KERNELS.items()}
            key = (options["patch_size"], names[options["num_kernels"]])
            kernels.setdefault((*key, f"{row['parameters']:,}"), []).append(row)
        if row["question"] == "reasons" or tenth and row["question"] == "scarcity":
            key = (f"{row['steps']:,}", f"{row['learning_rate']:g}", model)
            reasons.setdefault(key, []).append(row)
    table("scarcity", ["training images", "model"], shares)
    table("kernels", ["patch", "kernels a layer", "parameters"], kernels)
    table("reasons", ["steps", "learning rate", "model"], reasons)
    with atomic(PAGES / "small-data.json") as path:
        command = "KERAS_BACKEND=tensorflow python benchmarks/accuracy.py run"
        values = {"command": command, "recipe": RECIPE.to_dict(), "runs": rows}
        path.write_text(json.dumps(values, indent=1) + "\n")
    with atomic(PAGES / "small-data.svg") as path:
        draw(shares).savefig(path, metadata={"Date": None})


def history(arguments, name):
    """Read a run's epochs."""
    path = pathlib.Path(arguments.runs) / name / "history.csv"
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
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "keras_lkca"  # the same file every time
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for model, marker, color in (("lkca", "o", "#0072b2"), ("vit", "s", "#d55e00")):
        name = PRESETS[model]
        runs = [group for (_, other), group in groups.items() if other == name]
        if not runs:
            continue
        x = [group[0]["images"]["train"] for group in runs]
        values = [[100 * r["last"]["test_accuracy"] for r in group] for group in runs]
        means = [np.mean(v) for v in values]
        label = f"{name}, {runs[0][0]['parameters']:,} parameters"
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
