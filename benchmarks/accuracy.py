"""Train what the results in docs/results/ are of, and the models in the package.

    KERAS_BACKEND=torch python benchmarks/accuracy.py run --data-dir ~/data
    python benchmarks/accuracy.py left
    python benchmarks/accuracy.py report
    python benchmarks/accuracy.py pack cifar10-lkca_net_08m-10-seed0 NAME

`run` goes through the list of runs below, a folder below runs/accuracy for each. It
passes over those that are complete and resumes those that were interrupted, so it can
be stopped and started at any time. Two at once share it: --part 0/2 and --part 1/2.
`left` says what is not complete, and how many hours it takes. `report` puts the
figures of the runs that are complete into docs/results/. `pack` writes a run's best
model into the package as the preset NAME, whose row it prints.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import re

import numpy as np
from others import MODELS as OTHERS
from others import attention_net, compile_as_published
from others import recipe as as_published

from keras_lkca import LKCA, LKCANet, LKCASegmenter, data
from keras_lkca.files import atomic
from keras_lkca.models import adapt
from keras_lkca.models.adaptation import patch_size_of
from keras_lkca.models.presets import weights_file, write_weights
from keras_lkca.ops.calibration import processor
from keras_lkca.training import Recipe, evaluate, fit, train
from keras_lkca.training.callbacks import best_epoch, out_of_patience

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "accuracy"
PAGES = ROOT / "docs" / "results"
FRACTIONS = (0.05, 0.1, 0.25, 1.0)
PRESETS = {"lkca": "lkca_vit_05m", "vit": "vit_05m"}
STEPS, EPOCHS, BATCH = 2000, 10, 64
RECIPE = Recipe.quick(
    epochs=EPOCHS, batch_size=BATCH, drop_path_rate=0.1, learning_rate=1e-3
)
# What did best by validation in short trainings, see docs/results/.
PASSES_RATES = {
    **{"lkca_net_08m": 2e-3, "lkca_vit_tiny": 3e-3, "lkca_vit_05m": 3e-3},
    **{"vit_tiny": 1e-3, "vit_05m": 1e-3},
}
# Beside shifts and flips: CutMix in half of the batches, and RandAugment.
LONGER = {"rand_augment": 1, "mix_probability": 0.5, "mixup_alpha": 0.0}
CUTMIX = {"mix_probability": 0.5, "mixup_alpha": 0.0}
NET = "lkca_net_08m"
CARRIED_RATES = {"scratch": 2e-3, "carried": 2e-3}
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
    for rate, patch, seeds in ((1e-3, 4, 3), (1e-3, 2, 1), (3e-3, 4, 1)):
        for name, options in KERNELS.items():
            if (name == "one kernel") != (patch == 2):
                continue  # one kernel at patch 4 is among the other questions'
            other = f"-rate{rate:g}" if rate != RECIPE.learning_rate else ""
            for seed in range(seeds):
                yield (
                    f"{name.replace(' ', '-')}-patch{patch}{other}-seed{seed}",
                    {
                        "model": "lkca",
                        "preset": PRESETS["lkca"],
                        "fraction": 0.1,
                        "seed": seed,
                        "learning_rate": rate,
                        "model_options": {**options, "patch_size": patch},
                    },
                )


def rates():
    """Yield the runs at other learning rates."""
    for model, rate, fractions in (
        ("lkca", 3e-3, FRACTIONS),
        ("vit", 3e-3, FRACTIONS),
        ("vit", 5e-4, (0.1,)),
    ):
        for fraction in fractions:
            for seed in range(3 if model == "lkca" and fraction < 1 else 1):
                yield (
                    f"{model}-{fraction:g}-rate{rate:g}-seed{seed}",
                    {
                        "model": model,
                        "preset": PRESETS[model],
                        "fraction": fraction,
                        "seed": seed,
                        "learning_rate": rate,
                    },
                )


def passes():
    """Yield the runs on all images of a dataset, the most telling per hour first.

    Each model has its own learning rate, chosen on validation images of CIFAR-100.
    """
    both = ("cifar10", "cifar100")
    for datasets, presets, epochs, seeds in (
        (both, ("lkca_net_08m",), 10, (0,)),
        (both, ("lkca_net_08m",), 30, (0,)),
        (("cifar100",), ("lkca_vit_tiny", "vit_tiny"), 10, (0,)),
        (("cifar10",), ("lkca_vit_tiny", "vit_tiny"), 10, (0,)),
        (("cifar100",), ("lkca_vit_tiny", "vit_tiny"), 30, (0,)),
        (("cifar100", "cifar10"), ("lkca_net_08m",), 100, (0,)),
        (both, ("lkca_vit_05m", "vit_05m"), 50, (0, 1)),
        (("tiny_imagenet",), ("lkca_net_08m", "lkca_vit_tiny", "vit_tiny"), 30, (0,)),
    ):
        for dataset in datasets:
            for preset in presets:
                for seed in seeds:
                    recipe = Recipe.quick(
                        epochs=epochs,
                        learning_rate=PASSES_RATES[preset],
                        # Ten passes end before the images are known by heart.
                        **(LONGER if epochs > 10 else {}),
                    )
                    yield (
                        f"{dataset}-{preset}-{epochs}-seed{seed}",
                        {
                            "dataset": dataset,
                            "preset": preset,
                            "recipe": recipe,
                            "seed": seed,
                        },
                    )


def design():
    """Yield short runs of what an LKCANet may be made of, two seeds each."""
    narrow = {"value_ratio": 1, "mlp_ratio": 2, "num_kernels": 1, "stem_depth": 1}
    wide = {"value_ratio": 2, "mlp_ratio": None, "stem_depth": 1, "depth": 8}
    for name, options in (
        ("no-gate", {**narrow, "depth": 8, "gate_activation": None}),
        ("gate", {**narrow, "depth": 7}),
        ("gate-8-kernels", {**narrow, "depth": 7, "num_kernels": 8}),
        ("gate-deep-stem", {**narrow, "depth": 5, "stem_depth": 2}),
        ("wide-gate", {**wide, "num_kernels": 1}),
        ("wide-gate-8-kernels", wide),
        ("wide-gate-kernel-per-channel", {**wide, "num_kernels": 256}),
        ("wide-gate-8-kernels-of-7", {**wide, "kernel_size": 7}),
        ("wide-gate-deep-stem", {}),  # the preset
    ):
        for seed in (0, 1):
            yield (
                f"design-{name}-seed{seed}",
                {
                    "dataset": "cifar10",
                    "preset": "lkca_net_08m",
                    "recipe": Recipe.quick(epochs=4, learning_rate=2e-3),
                    "fraction": 0.4,
                    "seed": seed,
                    "model_options": options,
                },
            )


def carried():
    """Yield trainings on photographs, of a new model and of one that has learned.

    A model keeps its tokens of 4 x 4 pixels where it is carried over; new ones have as
    many pixels, or those of the preset at this size. Each way has its own learning
    rate, chosen on validation images of seed 0.
    """
    ways = {
        "scratch": {"preset": NET},
        "carried": {"start_from": f"{NET}_cifar100"},
        "scratch-patch4": {"preset": NET, "model_options": {"patch_size": 4}},
    }
    for size, seeds in ((64, 3), (96, 3)):
        for seed in range(seeds):
            for way, options in ways.items():
                rate = CARRIED_RATES[way.removesuffix("-patch4")]
                yield (
                    f"trashnet-{size}-{way}-seed{seed}",
                    {
                        **options,
                        "dataset": "trashnet",
                        "image_size": size,
                        "recipe": Recipe.quick(
                            epochs=20, batch_size=64, learning_rate=rate, **CUTMIX
                        ),
                        "seed": seed,
                    },
                )


def resized():
    """Yield trainings on a tenth of CIFAR-10 at 48 x 48, new and carried over.

    A carried kernel has no weight for offsets beyond those it learned, or, extended,
    its outermost weights, which fade to nothing.
    """
    start = {"start_from": f"{NET}_cifar100"}
    ways = {"scratch": {"preset": NET}, "carried": start}
    ways["extended"] = {**start, "extend": True}
    for seed in range(3):
        for way, options in ways.items():
            rate = CARRIED_RATES.get(way, CARRIED_RATES["carried"])
            yield (
                f"cifar10-48-{way}-seed{seed}",
                {
                    **options,
                    "dataset": "cifar10",
                    "image_size": 48,
                    "fraction": 0.1,
                    "recipe": Recipe.quick(epochs=10, learning_rate=rate, **CUTMIX),
                    "seed": seed,
                },
            )


def tools():
    """Yield trainings on a fifth of CIFAR-100, with a teacher and without."""
    for seed in range(3):
        for way in ("alone", "taught"):
            teacher = {"teacher": f"{NET}_cifar100"}
            yield (
                f"tools-{way}-seed{seed}",
                {
                    **(teacher if way == "taught" else {}),
                    "dataset": "cifar100",
                    "preset": "lkca_vit_05m",
                    "fraction": 0.2,
                    "recipe": Recipe.quick(epochs=20, learning_rate=3e-3),
                    "seed": seed,
                },
            )


def positions():
    """Yield runs with smaller positions than the paper's, at 10 % of the images."""
    for seed in range(3):
        for model, rate in (("lkca", 3e-3), ("vit", 1e-3)):
            for stddev in (0.02, 1.0):
                yield (
                    f"positions-{model}-{stddev:g}-seed{seed}",
                    {
                        "dataset": "cifar100",
                        "preset": PRESETS[model],
                        "fraction": 0.1,
                        "seed": seed,
                        "recipe": dataclasses.replace(RECIPE, learning_rate=rate),
                        "steps_per_epoch": STEPS // EPOCHS,
                        "model_options": {"position_stddev": stddev},
                    },
                )


def camvid():
    """Yield segmentations of street scenes by kernels of different reach.

    The global kernel is one per layer, the others eight: nearly as many parameters.
    And by the same network with softmax attention in the place of the kernels, which
    takes five times as long: hence the shorter trainings.
    """
    for epochs, seeds in ((15, 3), (40, 1)):
        recipe = Recipe.segmentation(epochs=epochs, batch_size=8, learning_rate=2e-3)
        common = {"dataset": "camvid", "ignore": 11, "recipe": recipe}
        length = "" if epochs == 40 else f"-{epochs}"
        for seed in range(seeds):
            for size in (None, 3, 31, 7, 15):
                reach = "global" if size is None else f"{size}x{size}"
                options = {"kernel_size": size, "num_kernels": 1 if size is None else 8}
                yield (
                    f"camvid{length}-{reach}-seed{seed}",
                    {
                        **common,
                        "task": "segmentation",
                        "preset": "lkca_net_03m",
                        "seed": seed,
                        "model_options": options,
                    },
                )
            if epochs == 15:
                name = f"camvid{length}-attention-seed{seed}"
                yield name, {**common, "preset": "attention_net", "seed": seed}


def others():
    """Yield trainings of what a Keras user would take instead, as published."""
    for dataset, epochs in (("cifar100", 30), ("cifar10", 10), ("cifar10", 30)):
        for name in OTHERS:
            yield (
                f"{dataset}-{name}-{epochs}-seed0",
                {
                    "dataset": dataset,
                    "preset": name,
                    "recipe": as_published(epochs),
                    "seed": 0,
                },
            )


QUESTIONS = {
    **{"passes": passes, "others": others, "carried": carried, "resized": resized},
    "tools": tools,
    **{"positions": positions, "camvid": camvid, "design": design},
    **{"scarcity": scarcity, "kernels": kernels, "rates": rates},
}
TOOLS = "carried", "resized", "tools", "positions", "camvid"
SMALL_DATA = "scarcity", "kernels", "rates"


def every_run():
    """Yield question, name and what `train` is to be told."""
    for question, runs in QUESTIONS.items():
        for name, options in runs():
            if question not in SMALL_DATA:
                yield question, name, options
                continue
            rate = options.pop("learning_rate", RECIPE.learning_rate)
            options["recipe"] = dataclasses.replace(RECIPE, learning_rate=rate)
            options["steps_per_epoch"] = STEPS // EPOCHS
            yield question, name, {"dataset": "cifar100", **options}


def run(arguments):
    """Train what has not been trained."""
    part, parts = map(int, arguments.part.split("/"))
    for index, (question, name, options) in enumerate(every_run()):
        folder = RUNS / name
        if index % parts != part or (folder / "metrics.json").exists():
            continue
        if arguments.question not in (None, question):
            continue
        if arguments.only not in (None, name):
            continue
        print(f"== {name}", flush=True)
        if options["dataset"] in ("trashnet", "camvid"):  # folders of images
            options["dataset"] = pathlib.Path(arguments.data_dir) / options["dataset"]
        resume = (folder / "config.json").exists()
        if options.get("preset") in OTHERS:
            run_other(folder, resume, arguments, **options)
        elif options.get("preset") == "attention_net":
            run_attention(folder, resume, arguments, **options)
        elif question == "resized":
            run_resized(folder, resume, arguments, **options)
        else:
            train(
                output=folder,
                resume=resume,
                data_dir=arguments.data_dir,
                dtype=arguments.dtype,
                jit_compile=False,
                # In few threads, those of tf.data cost more than they give.
                pipeline="arrays",
                **options,
            )
        if question == "tools":
            score_mirrored(folder, arguments.data_dir)
        where = {"processor": processor(), "cores": len(os.sched_getaffinity(0))}
        (folder / "machine.json").write_text(json.dumps(where) + "\n")


def score_mirrored(folder, data_dir):
    """Write what a run's best model reaches where images are mirrored as well."""
    import keras

    model = keras.models.load_model(folder / "best.keras", compile=False)
    scores, _ = evaluate(model, *data.load("cifar100", "test", data_dir), mirror=True)
    (folder / "mirrored.json").write_text(json.dumps(scores) + "\n")


def run_other(folder, resume, arguments, dataset, preset, recipe, seed):
    """Train one of the others' models, on the same images as ours."""
    import keras

    keras.config.set_dtype_policy(arguments.dtype)
    keras.utils.set_random_seed(seed)
    facts = data.describe(dataset)
    model = OTHERS[preset](facts.input_shape, facts.num_classes)
    compile_as_published(model)
    train_images, test_images = (
        data.load(dataset, split, arguments.data_dir) for split in ("train", "test")
    )
    parts = train_images, 0.1, test_images
    train_model(model, parts, recipe, folder, resume, seed, facts)


def run_attention(folder, resume, arguments, dataset, ignore, recipe, seed, preset):
    """Train a segmenter with softmax attention, as the others of its question."""
    import keras

    keras.config.set_dtype_policy(arguments.dtype)
    keras.utils.set_random_seed(seed)
    read = [
        data.from_mask_directory(dataset / name, ignore=ignore)
        for name in ("train", "val", "test")
    ]
    parts, facts = [(images, masks) for images, masks, _ in read], read[0][2]
    model = LKCASegmenter(
        attention_net(
            facts.input_shape,
            image_mean=facts.mean,
            image_std=facts.std,
            drop_path_rate=recipe.drop_path_rate,
        ),
        num_classes=facts.num_classes,
        class_names=facts.class_names,
    )
    train_model(model, parts, recipe, folder, resume, seed, facts)


def train_model(model, parts, recipe, folder, resume, seed, facts):
    """Train a model in hand, as `train` does one that it is told the name of.

    The parts are what to train, to validate and to test with.
    """
    fit(
        *(model, *parts, recipe),
        output=folder,
        resume=resume,
        seed=seed,
        pipeline="arrays",
        facts=facts,
    )


def run_resized(
    folder,
    resume,
    arguments,
    dataset,
    image_size,
    fraction,
    recipe,
    seed,
    preset=None,
    start_from=None,
    extend=False,
):
    """Train a new model, or one that has learned, on a dataset's images enlarged."""
    import keras
    from PIL import Image

    keras.config.set_dtype_policy(arguments.dtype)
    keras.utils.set_random_seed(seed)
    size = image_size, image_size
    facts = dataclasses.replace(data.describe(dataset), input_shape=(*size, 3))

    def enlarged(images):
        return np.stack(
            [
                np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BICUBIC))
                for x in images
            ]
        )

    images, labels = data.load(dataset, "train", arguments.data_dir)
    part, _ = data.split(labels, fraction, seed)
    test_images, test_labels = data.load(dataset, "test", arguments.data_dir)
    if preset is not None:
        model = LKCANet.from_preset(
            preset,
            facts.input_shape,
            facts.num_classes,
            image_mean=facts.mean,
            image_std=facts.std,
            class_names=facts.class_names,
            drop_path_rate=recipe.drop_path_rate,
        )
    else:
        known = LKCANet.from_preset(
            start_from,
            dtype=arguments.dtype,
            drop_path_rate=recipe.drop_path_rate,
        )
        model = adapt(known, facts.input_shape, class_names=facts.class_names)
        if extend:
            extend_kernels(known, model)
    trained_on = enlarged(images[part]), labels[part]
    parts = trained_on, 0.1, (enlarged(test_images), test_labels)
    train_model(model, parts, recipe, folder, resume, seed, facts)


def extend_kernels(known, model):
    """Let the kernels of a larger grid fade out beyond the offsets they learned."""
    import keras

    for layer in known.layers:
        if not isinstance(layer, LKCA):
            continue
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        again = model.get_layer(layer.name).kernel
        for axis in (0, 1):
            old, new = kernel.shape[axis], again.shape[axis]
            offsets = np.arange(new) - new // 2
            near = np.clip(offsets, -(old // 2), old // 2)
            fade = 1 - abs(offsets - near) / (1 + (new - old) // 2)
            kernel = kernel.take(near + old // 2, axis)
            kernel *= fade.reshape([-1 if i == axis else 1 for i in range(3)])
        again.assign(kernel)


def left(arguments):
    """Print what is not complete, and the hours it takes."""
    runs = pathlib.Path(arguments.runs)
    seconds, unknown = 0, []
    for question, name, options in every_run():
        folder = runs / name
        if (folder / "metrics.json").exists():
            continue
        if arguments.question not in (None, question):
            continue
        epochs, done = options["recipe"].epochs, []
        if (folder / "history.csv").exists():
            done = [epoch["seconds"] for epoch in history(runs, name)]
        rest = epochs - len(done)
        print(f"{name}: {rest} of {epochs} epochs")
        if done:
            seconds += rest * float(np.median(done))
        else:
            unknown.append(name)
    print(f"{seconds / 3600:.1f} hours, and {len(unknown)} runs not begun")


def pack(arguments):
    """Write a run's best model into the package, and print its row."""
    import keras

    folder = pathlib.Path(arguments.runs) / arguments.run
    config = json.loads((folder / "config.json").read_text())["arguments"]
    metrics = json.loads((folder / "metrics.json").read_text())
    model = keras.models.load_model(folder / "best.keras", compile=False)
    path = weights_file(arguments.name)
    path.parent.mkdir(exist_ok=True)
    write_weights(path, model)
    before = model.get_weights()
    for weight in model.weights:
        value = keras.ops.convert_to_numpy(weight)
        weight.assign(value.astype("float16").astype("float32"))
    images, labels = data.load(config["dataset"], "test", arguments.data_dir)
    accuracy = {}
    for name, values in (("float16", model.get_weights()), ("float32", before)):
        model.set_weights(values)
        outputs = model.predict(images, batch_size=250, verbose=0)
        accuracy[name] = float((outputs.argmax(1) == labels).mean())
    print(f"test accuracy: {accuracy}, in the run: {metrics['best']['test_accuracy']}")
    facts = data.DATASETS[config["dataset"]]
    print(f"image_mean={facts.mean}, image_std={facts.std}")
    print(f"sha256: {hashlib.sha256(path.read_bytes()).hexdigest()}")
    print(f"{path}: {path.stat().st_size:,} bytes")


def results(arguments):
    """Return what each complete run came to, one after the other."""
    rows = []
    for question, name, options in every_run():
        path = pathlib.Path(arguments.runs) / name / "metrics.json"
        if not path.exists():
            continue
        metrics = json.loads(path.read_text())
        config = json.loads((path.parent / "config.json").read_text())
        saved = config["arguments"]
        recipe = options.pop("recipe")
        steps = options.pop("steps_per_epoch", None)
        trained_by = Recipe.from_dict(saved["recipe"]), saved["steps_per_epoch"]
        if trained_by != (recipe, steps):
            raise SystemExit(f"{path.parent} was trained by another recipe")
        epochs = history(arguments.runs, name)
        by_class = metrics.get("best_per_class_iou")
        whole = {"recipe": recipe.to_dict(), "history": epochs}
        rows.append(
            {
                **({} if question in SMALL_DATA else whole),
                "question": question,
                "name": name,
                **options,
                "learning_rate": recipe.learning_rate,
                **{k: metrics[k] for k in ("parameters", "images", "fit_seconds")},
                "epochs": recipe.epochs,
                "training_accuracy": epochs[-1]["accuracy"],
                "last": metrics["last"],
                "best": metrics["best"],
                "dtype": config["dtype"],
                "backend": config["backend"],
                "versions": config["versions"],
                **told(path.parent, "machine.json"),
                "mirrored": told(path.parent, "mirrored.json"),
                **({"per_class_iou": by_class} if by_class else {}),
            }
        )
    return rows


def told(folder, name):
    """Return what a file beside a run says, where there is one."""
    path = folder / name
    return json.loads(path.read_text()) if path.exists() else {}


def spread(values):
    """Return mean, and the lowest and the highest where there are several."""
    text = f"{100 * np.mean(values):.1f}"
    if len(values) > 1:
        text += f" ({100 * min(values):.1f} to {100 * max(values):.1f})"
    return text


def table(page, name, columns, groups, epoch="last"):
    """Write a table of the runs' groups, by what they have in common, into a page."""
    columns = [*columns, "seeds", "test accuracy, %", "top-5, %"]
    columns += ["training accuracy, %", "minutes"]
    lines = [columns]
    for key, runs in groups.items():
        line = [*map(str, key), str(len(runs))]
        for metric in ("test_accuracy", "test_top5_accuracy"):
            line.append(spread([run[epoch].get(metric, np.nan) for run in runs]))
        line.append(spread([run["training_accuracy"] for run in runs]))
        lines.append([*line, minutes(runs)])
    write_table(page, name, lines)


def minutes(runs):
    """Return how long runs took: the median on each processor, never over several."""
    of = {}
    for run in runs:
        of.setdefault(run.get("processor"), []).append(run["fit_seconds"] / 60)
    return " or ".join(f"{np.median(each):.0f}" for each in of.values())


def write_table(page, name, lines):
    """Write lines of cells, of which the first is the head, into a page."""
    head, *rows = [[str(cell) for cell in line] for line in lines]
    lines = [head, ["---"] * len(head), *rows]
    fill(PAGES / page, name, [f"| {' | '.join(line)} |" for line in lines])


def report(arguments):
    """Write the tables into the pages, the figure and the figures beside them."""
    every = results(arguments)
    if not every:
        raise SystemExit(f"no run is complete in {arguments.runs}")
    of = {}
    for row in every:
        of.setdefault(row["question"], []).append(row)
    report_passes(
        [row for q in ("passes", "others", "design") for row in of.get(q, [])]
    )
    report_tools([row for q in TOOLS for row in of.get(q, [])])
    if any(question in of for question in SMALL_DATA):
        report_small_data([row for q in SMALL_DATA for row in of.get(q, [])])


def with_former(name, rows, command):
    """Return runs and those of before, and keep all of them in a file.

    What is there of runs made elsewhere stays: one machine has seldom all of them.
    """
    page = PAGES / name
    here = {row["name"] for row in rows}
    before = json.loads(page.read_text())["runs"] if page.exists() else []
    rows = [row for row in before if row["name"] not in here] + rows
    command = f"KERAS_BACKEND=torch python benchmarks/accuracy.py run {command}"
    with atomic(page) as path:
        text = json.dumps({"command": command, "runs": rows}, indent=1)
        path.write_text(text + "\n")
    return rows


def report_passes(rows):
    """Write the table of the trainings on all images."""
    rows = with_former("accuracy.json", rows, "--question passes")
    groups, designs = {}, {}
    for row in rows:
        parameters = f"{row['parameters']:,}"
        if row["question"] == "design":
            name = row["name"].removeprefix("design-").rpartition("-seed")[0]
            designs.setdefault((name.replace("-", " "), parameters), []).append(row)
        else:
            key = row["dataset"], row["epochs"], row["preset"], parameters
            groups.setdefault(key, []).append(row)
    groups = dict(sorted(groups.items(), key=lambda item: item[0][:3]))
    columns = ["dataset", "passes", "model", "parameters"]
    table("accuracy.md", "passes", columns, groups, epoch="best")
    if designs:
        table("accuracy.md", "design", ["model", "parameters"], designs, epoch="best")


def report_tools(rows):
    """Write the tables of what is carried over, of the tools and of the positions."""
    rows = with_former("tools.json", rows, "--question carried  # tools, positions")
    of = {question: {} for question in TOOLS}
    for row in rows:
        group = row["name"].rpartition("-seed")[0]
        of[row["question"]].setdefault(group, []).append(row)
    lines = [["images", "start", "a token, pixels", "seeds", "test accuracy, %"]]
    lines[0] += ["epochs to 95 % of the best validation accuracy", "minutes"]
    every = [*of["carried"].values(), *of["resized"].values()]
    every.sort(
        key=lambda runs: (runs[0]["dataset"] == "cifar10", runs[0]["image_size"])
    )
    for runs in every:
        first = runs[0]
        accuracy = spread([run["best"]["test_accuracy"] for run in runs])
        epochs = [str(nearly_best(run["history"])) for run in runs]
        start = first.get("start_from", "new")
        start += ", kernels extended" if first.get("extend") else ""
        dataset = {"trashnet": "TrashNet", "cifar10": "CIFAR-10, a tenth"}
        size = f"{first['image_size']} x {first['image_size']}"
        images = f"{dataset[first['dataset']]}, {size}"
        # A new model's follow the size; one that is carried keeps those of 32 x 32.
        learned_at = 32 if "start_from" in first else first["image_size"]
        options = first.get("model_options") or {}
        model = LKCANet.from_preset(NET, (learned_at, learned_at, 3), **options)
        patch, _ = patch_size_of(model)
        line = [images, start, f"{patch} x {patch}", len(runs), accuracy]
        lines.append([*line, ", ".join(epochs), minutes(runs)])
    write_table("carried-over.md", "carried", lines)
    lines = [["model", "positions at", "seeds", "test accuracy, %"]]
    for runs in of["positions"].values():
        stddev = runs[0]["model_options"]["position_stddev"]
        accuracy = spread([run["last"]["test_accuracy"] for run in runs])
        lines.append([runs[0]["preset"], f"{stddev:g}", len(runs), accuracy])
    if of["positions"]:
        write_table("small-data.md", "positions", lines)
    lines = [["epochs", "mixing, tokens", "parameters", "seeds", "test mean IoU, %"]]
    lines[0] += ["validation mean IoU, %", "pixel accuracy, %", "minutes"]
    every = sorted(of["camvid"].values(), key=lambda runs: -runs[0]["epochs"])
    for runs in every:
        line = [runs[0]["epochs"], mixing(runs[0])]
        line += [f"{runs[0]['parameters']:,}", len(runs)]
        for metric in ("test_mean_iou", "validation_mean_iou", "test_accuracy"):
            line.append(spread([run["best"][metric] for run in runs]))
        lines.append([*line, minutes(runs)])
    write_table("street-scenes.md", "camvid", lines)
    classed = [runs for runs in every if all("per_class_iou" in run for run in runs)]
    if classed:
        names = list(classed[0][0]["per_class_iou"])
        lines = [["epochs", "mixing, tokens", *names]]
        for runs in classed:
            ious = [[run["per_class_iou"][name] for run in runs] for name in names]
            means = [f"{100 * np.mean(values):.1f}" for values in ious]
            lines.append([runs[0]["epochs"], mixing(runs[0]), *means])
        write_table("street-scenes.md", "camvid classes", lines)
    alone, taught = (of["tools"].get(f"tools-{way}") for way in ("alone", "taught"))
    if alone and taught:
        write_table("../learn/small-data-tools.md", "tools", tools_table(alone, taught))


def mixing(run):
    """Return by what the tokens of a run's segmenter are mixed."""
    if run["preset"] == "attention_net":
        return "softmax attention, all tokens"
    size = run["model_options"]["kernel_size"]
    return f"kernels of {size} x {size}" if size else "kernels of 119 x 89, all tokens"


def nearly_best(epochs):
    """Return after how many epochs 95 % of the best validation accuracy are there."""
    enough = 0.95 * max(row["val_accuracy"] for row in epochs)
    return 1 + next(i for i, row in enumerate(epochs) if row["val_accuracy"] >= enough)


def tools_table(alone, taught):
    """Return the lines of what each tool does, without and with it."""

    def best(runs, name):
        return spread([run["best"][name] for run in runs])

    mirrored = spread([run["mirrored"]["test_accuracy"] for run in alone])
    stops, reached = [], []
    for run in alone:
        epochs = run["history"]
        stop = next(
            (n for n in range(1, len(epochs)) if out_of_patience(epochs[:n], 3)),
            len(epochs),
        )
        stops.append(str(stop))
        reached.append(epochs[best_epoch(epochs[:stop]) - 1]["val_accuracy"])
    validation = spread([run["best"]["validation_accuracy"] for run in alone])
    accuracy = best(alone, "test_accuracy")
    return [
        ["tool", "what is measured", "without", "with"],
        ["a teacher", "test accuracy, %", accuracy, best(taught, "test_accuracy")],
        ["mirroring", "test accuracy, %", accuracy, mirrored],
        [
            *("temperature", "expected calibration error, %"),
            *(best(alone, "test_ece"), best(alone, "test_ece_at_temperature")),
        ],
        [
            *("early stopping, patience 3", "validation accuracy, %"),
            *(validation, f"{spread(reached)}, after {', '.join(stops)} epochs"),
        ],
    ]


def report_small_data(rows):
    """Write the tables and the figure of little data."""
    rows.sort(key=lambda row: (row["fraction"], row["model"], row["learning_rate"]))
    by_share, by_kernels = {}, {}
    names = {
        options["num_kernels"]: name.replace("kernel a ", "kernel per ")
        for name, options in KERNELS.items()
    }
    for row in rows:
        rate = f"{row['learning_rate']:g}"
        if row["question"] != "kernels":
            share = f"{row['images']['train']:,} ({row['fraction']:.0%})"
            by_share.setdefault((share, PRESETS[row["model"]], rate), []).append(row)
        options = row.get("model_options") or {"patch_size": 4, "num_kernels": 1}
        if (row["fraction"], row["model"]) == (0.1, "lkca"):
            patch, number = options["patch_size"], names[options["num_kernels"]]
            key = patch, rate, number, f"{row['parameters']:,}"
            by_kernels.setdefault(key, []).append(row)
    by_kernels = dict(sorted(by_kernels.items(), key=lambda item: -item[0][0]))
    page = "small-data.md"
    table(page, "scarcity", ["training images", "model", "learning rate"], by_share)
    columns = ["patch", "learning rate", "kernels per layer", "parameters"]
    table(page, "kernels", columns, by_kernels)
    with atomic(PAGES / "small-data.json") as path:
        command = "KERAS_BACKEND=tensorflow python benchmarks/accuracy.py run"
        values = {"command": command, "recipe": RECIPE.to_dict(), "runs": rows}
        path.write_text(json.dumps(values, indent=1) + "\n")
    with atomic(PAGES / "small-data.svg") as path:
        draw(by_share).savefig(path, metadata={"Date": None})


def history(runs, name):
    """Read a run's epochs."""
    path = pathlib.Path(runs) / name / "history.csv"
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
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for model, color in (("lkca", "#0072b2"), ("vit", "#d55e00")):
        for rate, style in (("0.003", "o-"), ("0.001", "s--")):
            runs = [r for key, r in groups.items() if key[1:] == (PRESETS[model], rate)]
            if not runs:
                continue
            x = [group[0]["images"]["train"] for group in runs]
            values = [[100 * r["last"]["test_accuracy"] for r in g] for g in runs]
            means = [np.mean(v) for v in values]
            label = f"{PRESETS[model]}, learning rate {rate}"
            axes.plot(x, means, style, color=color, label=label)
            for count, all_seeds in zip(x, values, strict=True):
                axes.plot([count] * len(all_seeds), all_seeds, "_", color=color, ms=10)
    axes.set(
        xscale="log",
        xlabel="training images of CIFAR-100",
        ylabel="test accuracy, %",
        title=f"{STEPS:,} steps of {BATCH} images",
    )
    counts = sorted({r["images"]["train"] for group in groups.values() for r in group})
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


QUESTION = f"one of {', '.join(QUESTIONS)} alone"


def main():
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="train what has not been trained")
    command.add_argument("--data-dir", help="folder that holds the datasets")
    command.add_argument("--dtype", default="mixed_bfloat16")
    command.add_argument("--question", help=QUESTION)
    command.add_argument("--only", help="the name of one run")
    command.add_argument("--part", default="0/1", help="this one's share of the runs")
    for name, text in (
        ("left", "say what is not complete"),
        ("report", "write docs/results/"),
        ("pack", "write a run's best model into the package"),
    ):
        command = commands.add_parser(name, help=text)
        if name == "left":
            command.add_argument("--question", help=QUESTION)
        command.add_argument("--runs", default=str(RUNS), help="folder of the runs")
    command.add_argument("run", help="name of the run")
    command.add_argument("name", help="name of the preset")
    command.add_argument("--data-dir", help="folder that holds the datasets")
    parsed = parser.parse_args()
    {"run": run, "left": left, "report": report, "pack": pack}[parsed.command](parsed)


if __name__ == "__main__":
    main()
