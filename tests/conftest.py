import io
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Nothing of the user's own: neither Keras's configuration nor measured costs.
os.environ["KERAS_HOME"] = tempfile.mkdtemp(prefix="keras-home-")
# XLA compiles small models for longer than they run: without its optimizations, in two
# thirds of the time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# What JAX compiles it keeps, for all tests, workers and processes, and the next time.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(__file__).resolve().parent.parent / "build" / "jax"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker and what it starts keep to one core: threads that wait for each other
    # on busy cores take many times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import keras
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
BACKENDS = ("tensorflow", "jax", "torch")
NAMES = ("ant", "bee", "cat", "dog")


def with_noise(model):
    """The model with weights of which none is what it started as."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        noise = rng.normal(0, 0.1, weight.shape)
        weight.assign(keras.ops.convert_to_numpy(weight) + noise)
    return model


def trained(**arguments):
    """A small LKCAViT, as if it were trained."""
    from keras_lkca import LKCAViT

    defaults = {"input_shape": (16, 24, 3), "depth": 2, "embed_dim": 24}
    return with_noise(LKCAViT(**{**defaults, **arguments}))


def every_layer(methods=("toeplitz", "depthwise", "hybrid")):
    """A model of every layer, with one kernel and several by each method."""
    from keras_lkca import layers
    from keras_lkca.models import ImageModel

    images = keras.Input((8, 12, 3))
    x = layers.PositionEmbedding()(layers.PatchEmbedding(2, 8)(images))
    for method in methods:
        for num_kernels in (1, 2):
            x = x + layers.LKCA(num_kernels=num_kernels, method=method)(x)
    kept = [layers.FixedConv((3, 5), method=name) for name in ("toeplitz", "hybrid")]
    gated = layers.LKCA(kernel_size=3, gate_activation="gelu", name="gated")
    for layer in (*kept, gated):
        x = x + layer(x)
    x = layers.StochasticDepth(0.1)(keras.layers.LayerNormalization()(x))
    x = layers.ClassToken()(keras.layers.Reshape((24, 8))(x))
    model = ImageModel(images, layers.TokenDense(4)(layers.SelfAttention(2)(x)))
    with_noise(model)
    for layer in kept:
        layer.prepare()
    return model


def tiny(**arguments):
    """A small LKCAViT for digits."""
    from keras_lkca import LKCAViT

    options = {"patch_size": 4, "embed_dim": 8, "depth": 1, "drop_path_rate": 0.0}
    return LKCAViT((8, 8, 1), **{**options, **arguments})


def quick(**changes):
    """A recipe for digits, which are not to be mirrored."""
    from keras_lkca.training import Recipe

    options = {"epochs": 2, "batch_size": 50, "flip": False, "crop_padding": 1}
    return Recipe.quick(**{**options, **changes})


class StopAfter(keras.callbacks.Callback):
    """Interrupt a run when some of its epochs are over."""

    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epochs:
            raise KeyboardInterrupt


def pack(folder, target, numbered, shards=2):
    """Write a folder of class folders to tars, as either convention has them."""
    target.mkdir(parents=True)
    classes = sorted(path.name for path in folder.iterdir())
    files = sorted(folder.glob("*/*"))
    if numbered:
        (target / "classes.txt").write_text("\n".join(classes))
        parts = np.array_split(np.array(files, object), shards)
    else:  # in no order
        files = files[::-1]
        parts = [files[first::shards] for first in range(shards)]
    for index, part in enumerate(parts):
        with tarfile.open(target / f"{index}.tar", "w") as tar:
            for path in part:
                name = path.parent.name
                if not numbered:
                    tar.add(path, f"./{name}/{path.name}")
                    continue
                key, text = f"{name}_{path.stem}", str(classes.index(name)).encode()
                entry = tarfile.TarInfo(f"{key}.cls")
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text))
                tar.add(path, key + path.suffix)
    return target


def needs(format):
    """Skip a test where a package is missing that a format takes."""
    from keras_lkca import deploy

    for package in deploy.FORMATS[format].packages:
        pytest.importorskip(package)


def pytest_collection_modifyitems(items):
    """Let one worker run all tests of the exported files, which are made once."""
    for item in items:
        if "exported" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("exported"))


@pytest.fixture(autouse=True)
def clean_state():
    """Every test starts from the same seed and the default configuration."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (3, 16, 24, 3)).astype("uint8")


@pytest.fixture(scope="session")
def classifier():
    """A classifier with names, which no test changes."""
    keras.utils.set_random_seed(0)
    return trained(num_classes=4, class_names=NAMES)


@pytest.fixture(scope="session")
def exported(classifier, tmp_path_factory):
    """The classifier in a format; each file is made once."""
    from keras_lkca import deploy

    found = {}

    def export(format):
        needs(format)
        if format not in found:
            folder = tmp_path_factory.mktemp("exported")
            row = deploy.FORMATS[format]
            options = {} if row.ending else {"version": 2, "image_bytes": True}
            found[format] = deploy.export(
                classifier, folder / f"pets{row.ending}", format, **options
            )
        return found[format]

    return export


@pytest.fixture
def run_python():
    """Run Python in a fresh process, under a backend, and return its output."""

    def run(*arguments, backend=None, expect=0):
        environment = {
            **os.environ,
            "KERAS_BACKEND": backend or keras.config.backend(),
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout if expect == 0 else done.stderr

    return run
