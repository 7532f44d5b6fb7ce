"""`bench.py` of models and of the images that they learn from."""

import pathlib
import tarfile
import tempfile
import time

import keras
import numpy as np
from harness import peak_memory
from others import attention_net
from PIL import Image

from keras_lkca import LKCANet, LKCASegmenter, LKCAViT, ViT, data
from keras_lkca.backend import repeatable
from keras_lkca.models import attention_block, lkca_block
from keras_lkca.ops.calibration import alternate
from keras_lkca.training import Recipe
from keras_lkca.training.memory import able_to_rematerialize
from keras_lkca.training.segmentation import SegmentationLoss

# Equal parameters: the paper's two pairs.
PAIRS = {
    "LKCA-T / ViT-Lite": ("lkca_vit_tiny", "vit_tiny"),
    "LKCA-B / ViT-Small": ("lkca_vit_base", "vit_small"),
}
SIZE, CLASSES = 32, 100


def jit_settings():
    """Return `jit_compile` settings worth comparing, the one `fit` takes first."""
    return {"tensorflow": (False, True), "jax": (True,), "torch": (False,)}[
        keras.config.backend()
    ]


def compiled(model, jit):
    """Compile a model with the recipe's optimizer and loss."""
    model.compile(
        keras.optimizers.AdamW(1e-3, weight_decay=0.05),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        jit_compile=jit,
    )
    return model


def steps(model, images, labels):
    """Return a training step and an inference as functions without arguments."""
    return (
        lambda: model.train_on_batch(images, labels),
        lambda: model.predict_on_batch(images),
    )


def measured(calls, arguments):
    """Time the calls, or measure their peak memory."""
    if arguments.only_memory:
        return {name: {"peak_mib": peak_memory(call)} for name, call in calls.items()}
    return alternate(calls, arguments.seconds, least=5, limit=arguments.limit)


def random_batch(batch, size):
    """Return images of noise, and one-hot labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, size, size, 3)).astype("uint8")
    return images, np.eye(CLASSES, dtype="float32")[rng.integers(0, CLASSES, batch)]


def model_rows(arguments):
    """Measure the models of the paper against the baselines of equal parameters."""
    images, labels = random_batch(arguments.batch, SIZE)
    rows = []
    for pair in arguments.pairs:
        lkca, vit = PAIRS[pair]
        calls = {"training step": {}, "inference": {}}
        for dtype in ("float32", "mixed_bfloat16"):
            for jit in jit_settings():
                for kind, preset in ((LKCAViT, lkca), (ViT, vit)):
                    model = kind.from_preset(preset, num_classes=CLASSES, dtype=dtype)
                    name = f"{preset}, {dtype}" + (", XLA" if jit else "")
                    train, infer = steps(compiled(model, jit), images, labels)
                    calls["training step"][name] = train
                    calls["inference"][name] = infer
        for kind, group in calls.items():
            row = {"pair": pair, "pass": kind, "results": measured(group, arguments)}
            rows.append(row)
    return rows if arguments.only_memory else [*rows, product_row(arguments)]


def scaling_rows(arguments):
    """Measure one block of each kind on ever more tokens."""
    rng = np.random.default_rng(0)
    channels, heads, rows = 136, 8, []
    for grid in arguments.grids:
        calls = {"forward": {}, "training step": {}}
        tokens = rng.normal(size=(1, grid, grid, channels)).astype("float32")
        scores = heads * grid**4 * 4
        skipped = {}
        for name in ("LKCA block", "attention block"):
            limit = arguments.limit_gib * 2**30
            if name == "attention block" and keras.config.backend() != "torch":
                if 3 * scores > limit:
                    skipped[name] = {
                        "skipped": f"{scores / 2**30:.0f} GiB of attention weights"
                    }
                    continue
            inputs = keras.Input((grid, grid, channels))
            if name == "LKCA block":
                outputs = lkca_block(inputs)
            else:
                outputs = keras.layers.Reshape((-1, channels))(inputs)
                outputs = attention_block(outputs, heads)
                outputs = keras.layers.Reshape((grid, grid, channels))(outputs)
            model = keras.Model(inputs, outputs)
            model.compile("sgd", "mse", jit_compile=jit_settings()[0])
            train, infer = steps(model, tokens, tokens)
            calls["forward"][name] = infer
            calls["training step"][name] = train
        for kind, group in calls.items():
            results = measured(group, arguments) | skipped
            rows.append(
                {"grid": grid, "tokens": grid**2, "pass": kind, "results": results}
            )
            print(rows[-1], flush=True)
    return rows


def dense_rows(arguments):
    """Measure segmenters: LKCA of some reaches, and softmax attention.

    All have as many weights but for the kernels.
    """
    rng = np.random.default_rng(0)
    rows = []
    for height, width in ((180, 240), (512, 512)):
        shape, tokens = (height, width, 3), height * width // 16
        images = rng.integers(0, 256, (1, *shape)).astype("uint8")
        masks = rng.integers(0, 11, (1, height, width)).astype("int32")

        backbones = {
            "LKCA, global": _dense_net(shape, None, 1),
            "LKCA, 31 x 31": _dense_net(shape, 31, 8),
            "LKCA, 7 x 7": _dense_net(shape, 7, 8),
            "softmax attention": attention_net(shape),
        }
        calls = {"training step": {}, "inference": {}}
        skipped = {}
        # What is kept for the gradients of six blocks, three times the weights.
        needed = 3 * 6 * 4 * tokens**2 * 4
        # torch's attention writes no weights out.
        if keras.config.backend() != "torch" and needed > arguments.limit_gib * 2**30:
            text = f"{needed / 2**30:.0f} GiB of attention weights"
            skipped = {"softmax attention": {"skipped": text}}
        for name, backbone in backbones.items():
            if name in skipped:
                continue
            model = LKCASegmenter(backbone, num_classes=11)
            model.compile("adamw", SegmentationLoss(), jit_compile=jit_settings()[0])
            train, infer = steps(model, images, masks)
            calls["training step"][name] = train
            calls["inference"][name] = infer
        for kind, group in calls.items():
            size = f"{width} x {height}"
            results = measured(group, arguments) | skipped
            rows.append(
                {"size": size, "tokens": tokens, "pass": kind, "results": results}
            )
            print(rows[-1], flush=True)
    return rows


def rematerialize_rows(arguments):
    """Measure training steps that keep everything for the gradient, and that do not."""
    rows = []
    for kind, preset, size in (
        (LKCANet, "lkca_net_08m", 96),
        (LKCAViT, "lkca_vit_tiny", 64),
        (ViT, "vit_tiny", 64),
    ):
        images, labels = random_batch(arguments.batch, size)
        calls = {}
        for name, wanted in (("everything kept", False), ("rematerialized", True)):
            model = kind.from_preset(
                preset,
                *((size, size, 3), CLASSES),
                patch_size=4,
                load_weights=False,
            )
            for layer in able_to_rematerialize(model):
                layer.rematerialize = wanted
            calls[name], _ = steps(compiled(model, jit_settings()[0]), images, labels)
        row = {"model": preset, "size": size, "results": measured(calls, arguments)}
        rows.append(row)
        print(row, flush=True)
    return rows


def _dense_net(shape, kernel_size, num_kernels):
    return LKCANet.from_preset(
        "lkca_net_03m",
        *(shape, 11),
        include_top=False,
        pooling=None,
        patch_size=4,
        kernel_size=kernel_size,
        num_kernels=num_kernels,
    )


def pipeline_rows(arguments):
    """Measure images per second: the batches alone, made either way, and `fit`."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (128 * 8, SIZE, SIZE, 3)).astype("uint8")
    labels = rng.integers(0, CLASSES, len(images))
    steps = len(images) // arguments.batch
    rows = []

    def batches(augmentation, pipeline):
        return data.training_batches(
            *(images, labels, arguments.batch, CLASSES, augmentation),
            pipeline=pipeline,
        )

    def note(what, seconds):
        rows.append({"what": what, "images_per_second": rate(len(images), seconds)})
        print(rows[-1], flush=True)

    dtype = arguments.dtype
    for name, recipe in (("quick", Recipe.quick()), ("long", Recipe.long())):
        augmentation = recipe.augmentation(mean=(0.5, 0.5, 0.5))
        for pipeline in data.PIPELINES:
            iterator = iter(batches(augmentation, pipeline))
            times = []
            for _ in range(6):
                start = time.perf_counter()
                for _ in range(steps):
                    np.asarray(next(iterator)[0])
                times.append(time.perf_counter() - start)
            note(f"batches alone, {name}, {pipeline}", times[1:])
        for pipeline in data.PIPELINES:
            model = LKCAViT.from_preset(
                "lkca_vit_tiny", num_classes=CLASSES, dtype=dtype
            )
            clock = Clock()
            model = compiled(model, "auto")
            model.fit(
                batches(augmentation, pipeline),
                steps_per_epoch=steps,
                epochs=4,
                shuffle=False,
                verbose=0,
                callbacks=[clock],
            )
            note(f"fit lkca_vit_tiny, {dtype}, {name}, {pipeline}", clock.times[1:])
    clock = Clock()
    model.fit(
        *(images, np.eye(CLASSES, dtype="float32")[labels], arguments.batch),
        epochs=4,
        verbose=0,
        callbacks=[clock],
    )
    note(f"fit lkca_vit_tiny, {dtype}, no augmentation", clock.times[1:])
    return rows


def file_rows(arguments):
    """Measure images per second decoded from JPEG files, in a folder and in a tar.

    The pictures are noise whose spectrum falls as that of photographs does.
    """
    rng, count, rows = np.random.default_rng(0), 256, []
    frequency = np.hypot(np.fft.fftfreq(375)[:, None], np.fft.rfftfreq(500))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        places = [folder / name for name in ("files", "tar")]
        (places[0] / "class").mkdir(parents=True)
        places[1].mkdir()
        for index in range(count):
            noise = np.fft.rfft2(rng.normal(size=(3, 375, 500)))
            pixels = np.fft.irfft2(noise / np.maximum(frequency, 1e-3), (375, 500))
            pixels = 128 + 50 * pixels / pixels.std()
            picture = np.clip(pixels, 0, 255).astype("uint8").transpose(1, 2, 0)
            path = places[0] / "class" / f"{index:04}.jpg"
            Image.fromarray(picture).save(path, quality=95)
        with tarfile.open(places[1] / "0.tar", "w") as tar:
            tar.add(places[0] / "class", "class")
        size = sum(path.stat().st_size for path in places[0].rglob("*.jpg"))
        what = f"500 x 375, {size / count / 1000:.0f} kB each"

        def note(name, times):
            rows.append({"what": name, "images_per_second": rate(count, times)})
            print(rows[-1], flush=True)

        for place in places:
            for side in (64, 224):
                times = []
                for _ in range(6):
                    start = time.perf_counter()
                    images, *_ = data.from_directory(place, side)
                    times.append(time.perf_counter() - start)
                note(f"{what}, from {place.name}, to {side} x {side}", times[1:])
        clock = Clock()
        model = compiled(LKCANet.from_preset("lkca_net_08m", (224, 224, 3)), "auto")
        labels = np.eye(10, dtype="float32")[np.zeros(count, int)]
        model.fit(images, labels, 32, epochs=4, verbose=0, callbacks=[clock])
        note("fit lkca_net_08m, 224 x 224", clock.times[1:])
    return rows


def rate(count, seconds):
    """Return images per second: the median and the range."""
    rates = sorted(count / s for s in seconds)
    return {
        "median": round(float(np.median(rates))),
        "low": round(rates[0]),
        "high": round(rates[-1]),
    }


class Clock(keras.callbacks.Callback):
    """Note how long each epoch takes."""

    def __init__(self):
        super().__init__()
        self.times = []

    def on_epoch_begin(self, epoch, logs=None):
        """Start the watch."""
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Note the time."""
        self.times.append(time.perf_counter() - self._start)


def tall(row, cell):
    """Return one comparison as a table with a line each."""
    lines = ["| model | time and memory |", "|---|---|"]
    lines += [f"| {name} | {cell(r)} |" for name, r in row["results"].items()]
    return "\n".join(lines) + "\n"


def product_row(arguments):
    """Measure the matrix products of one training step of LKCA-T, each by itself."""
    preset = LKCAViT.from_preset("lkca_vit_tiny", num_classes=CLASSES)
    blocks, channels = preset.get_config()["depth"], preset.get_config()["embed_dim"]
    images, tokens = arguments.batch, (SIZE // 4) ** 2
    rows = images * tokens
    shapes = {
        (rows, 4 * 4 * 3, channels): 1,
        (rows, channels, channels): 2 * blocks,
        (rows, channels, 2 * channels): blocks,
        (rows, 2 * channels, channels): blocks,
        (tokens, tokens, images * channels): blocks,
        (images, channels, CLASSES): 1,
    }
    rng = np.random.default_rng(0)
    results = {}
    for dtype in ("float32", "bfloat16"):
        for jit in jit_settings():
            calls = {}
            for left, inner, right in shapes:
                arrays = rng.normal(size=(left, inner)), rng.normal(size=(inner, right))
                calls[left, inner, right] = repeatable(
                    keras.ops.matmul, arrays, True, jit, dtype
                )
            times = alternate(calls, arguments.seconds / len(calls), least=7)
            total = {
                key: sum(times[shape][key] * n for shape, n in shapes.items())
                for key in ("median", "low", "high")
            }
            flops = sum(6.0 * np.prod(shape) * n for shape, n in shapes.items())
            name = f"{dtype}{', XLA' if jit else ''}"
            name += f" ({flops / total['median'] / 1e6:.0f} GFLOP/s)"
            results[name] = {
                **total,
                "rounds": min(t["rounds"] for t in times.values()),
            }
    return {"pair": "LKCA-T", "pass": "its matrix products alone", "results": results}
