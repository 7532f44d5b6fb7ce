"""Does LKCA beat attention on little data? Train both, equally often, and count.

    KERAS_BACKEND=tensorflow python benchmarks/accuracy.py run --data-dir ~/data
    python benchmarks/accuracy.py report

`run` goes through the list of runs below, a folder below runs/accuracy for each. It
passes over those that are complete and resumes those that were interrupted, so it can
be stopped and started at any time. Two at once share it: --part 0/2 and --part 1/2.
`report` writes docs/results/ from the runs that are complete.
"""

import argparse
import pathlib

from keras_lkca.training import Recipe, train

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "accuracy"
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
        resume = (folder / "last.keras").exists()
        if folder.exists() and not resume:
            for path in folder.iterdir():  # killed within its first epoch
                path.unlink()
        train(
            "cifar100",
            recipe=RECIPE,
            output=folder,
            resume=resume,
            data_dir=arguments.data_dir,
            steps_per_epoch=STEPS // EPOCHS,
            dtype=arguments.dtype,
            jit_compile=False,
            **options,
        )


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
    parsed = parser.parse_args()
    run(parsed)


if __name__ == "__main__":
    main()
