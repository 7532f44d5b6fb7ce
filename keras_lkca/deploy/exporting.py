"""From a `.keras` file of any backend to a format that is served."""

import contextlib
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import keras
import numpy as np

from keras_lkca.checks import check_finite, check_flag, check_number, check_positive_int
from keras_lkca.deploy import formats
from keras_lkca.deploy.folding import fold
from keras_lkca.deploy.formats import FORMATS, QUANTIZE
from keras_lkca.deploy.prediction import names_of, read_model
from keras_lkca.extras import require
from keras_lkca.internals import layers_by_path, sublayers
from keras_lkca.layers.dense import use_erf
from keras_lkca.models.classifiers import check_classifier, image_shape


def export(
    model,
    output,
    format: str = "tf_saved_model",
    fold_model: bool | None = None,
    version: int = 1,
    image_bytes: bool = False,
    quantize: str | None = None,
    calibration_images=None,
    tolerance: float | None = None,
    overwrite: bool = False,
    class_names=None,
) -> pathlib.Path:
    """Export a classifier or segmenter of any backend, and check the result.

    The model is rebuilt in float32, exported in a fresh process by a backend that can,
    loaded back by the runtime that serves the format, and compared with the Keras
    model on seeded images, or on the first that calibrate. Images go in as float32 in
    [0, 255]; the normalisation is within. Out come `probabilities`
    `(batch, classes)` as `predict` gives them, so two of a model with one column, and,
    in a SavedModel, `classes`, the likeliest ones, and `labels`, their names where they
    are known; of a segmenter `(batch, height, width, classes)`, and no `labels`.
    LKCA by Fourier transforms is computed by `method="hybrid"` instead in a format that
    lacks them.

    Args:
        model: A classifier, or the path of its `.keras` file.
        output: Where to write: the folder that holds the versions for
            `"tf_saved_model"`, a file otherwise (`.onnx`, `.tflite`, `.xml` with a
            `.bin` beside it, `.pt2`).
        format: `"tf_saved_model"` for TensorFlow Serving, `"onnx"` for ONNX Runtime,
            `"litert"` for LiteRT (TensorFlow Lite), `"openvino"`, or `"torch"` for
            `torch.export.load`. The batch is of any size but in `"litert"`, where it
            is 1. So are the images of a model that resizes them itself, but in
            `"litert"` and where the converter cannot, which is printed.
        fold_model: Whether to fold a model with LKCA layers before, see
            `keras_lkca.deploy.fold`; `None` does where it can, which is not where they
            are quantized.
        version: Positive integer, the folder below `output`, for
            `"tf_saved_model"`.
        image_bytes: Whether a SavedModel also gets the signature `image_bytes`: JPEG or
            PNG files as strings, which are turned, cropped and resized as `predict`
            does. It refuses other files, and JPEG files in CMYK.
        quantize: For `"litert"`: `"weights"` keeps the weights as 8-bit integers,
            `"int8"` also computes with them, between float inputs and outputs.
        calibration_images: For `"int8"`: some hundred images like those that will
            come, `(n, height, width, channels)` in [0, 255].
        tolerance: Largest difference of a probability that is accepted. Defaults to
            1e-4, or 0.1 with `quantize`. What it came to is printed.
        overwrite: Whether to replace what is there.
        class_names: See `keras_lkca.predict`; a SavedModel answers with them.

    Returns:
        The path that was written.

    Raises:
        ValueError: If an argument is not as above, `output` exists, or the result
            differs by more than `tolerance`; then nothing is written.
        FileNotFoundError: If there is no such `.keras` file.
        ImportError: If a package is missing that the format takes.
        RuntimeError: If the export fails in another process, with its message.

    Example:

    ```python
    export("model.keras", "serving/pets")  # serving/pets/1/saved_model.pb
    export("model.keras", "model.onnx", format="onnx")
    ```
    """
    if format not in FORMATS:
        raise ValueError(
            f"`format` must be one of {sorted(FORMATS)}. Received: format={format!r}"
        )
    row = FORMATS[format]
    check_positive_int("version", version)
    check_flag("overwrite", overwrite)
    check_flag("image_bytes", image_bytes)
    if fold_model is not None:
        check_flag("fold_model", fold_model)
    for package in row.packages:
        # Only looked for here: importing them is the other process's part.
        if importlib.util.find_spec(package) is None:
            require(package, row.extra)
    options = {
        "version": None if version == 1 else version,
        "image_bytes": image_bytes or None,
        "quantize": quantize,
        "calibration_images": calibration_images,
    }
    for name, value in options.items():
        if value is not None and name not in row.options:
            takers = [key for key, other in FORMATS.items() if name in other.options]
            raise ValueError(
                f"`{name}` is for {' or '.join(f'format={key!r}' for key in takers)}. "
                f"Received: {name}={value!r}, format={format!r}"
            )
    if quantize not in (None, *QUANTIZE):
        raise ValueError(
            f"`quantize` must be one of {QUANTIZE} or None. "
            f"Received: quantize={quantize!r}"
        )
    target = _target(pathlib.Path(output).expanduser(), row, format, version, overwrite)
    if tolerance is None:
        tolerance = 0.1 if quantize else 1e-4
    tolerance = check_number("tolerance", tolerance)
    model = read_model(model)
    check_classifier(model, pixels=True)
    if image_bytes and image_shape(model)[2] not in (1, 3):
        raise ValueError(
            "`image_bytes` is for images of 1 channel or 3, as files have them. "
            f"Received: image_bytes=True, a model of images {image_shape(model)}"
        )
    class_names = names_of(model, class_names)
    calibration_images = _calibration(model, quantize, calibration_images)
    if fold_model is not False:
        try:
            fold(model)
        except ValueError:
            if fold_model:
                raise
            fold_model = False
    options = {
        "format": format,
        "fold_model": fold_model is not False,
        "tolerance": tolerance,
        "image_bytes": image_bytes,
        "quantize": quantize,
        "class_names": class_names,
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=target.parent, prefix=".writing-")
    except OSError as error:
        raise ValueError(
            f"{target} cannot be written to ({error}). Received: output={str(output)!r}"
        ) from error
    with folder as name:
        new = pathlib.Path(name) / "new"
        new.mkdir()
        _write_elsewhere(row, model, new / target.name, calibration_images, options)
        _replace(target, new, pathlib.Path(name) / "old")
    return target


def _target(output, row, format, version, overwrite):
    """Return the path to write, or raise a `ValueError` where something is there."""
    target = output if row.ending else output / str(version)
    if row.ending and target.is_dir():
        raise ValueError(
            f"{target} is a folder; {format!r} writes a file. "
            f"Received: output={str(output)!r}"
        )
    beside = target.with_suffix(row.beside) if row.beside else target
    if (target.exists() or beside.exists()) and not overwrite:
        raise ValueError(
            f"{target} exists; choose another{'' if row.ending else ' version'} or "
            "replace it: overwrite=True, --overwrite. "
            f"Received: output={str(output)!r}"
        )
    return target


def _calibration(model, quantize, images):
    """Return the images from which `"int8"` takes the ranges, in float32."""
    if (quantize == "int8") != (images is not None):
        raise ValueError(
            "`calibration_images` are for quantize='int8', which needs them. Received: "
            f"quantize={quantize!r}"
        )
    if images is None:
        return None
    images, shape = np.asarray(images, "float32"), image_shape(model)
    if images.shape[1:] != shape or not len(images):
        raise ValueError(
            f"`calibration_images` must be {('n', *shape)}. "
            f"Received: shape {images.shape}"
        )
    check_finite("calibration_images", images)
    return images


def write(model, path, format, fold_model, tolerance, **options):
    """Write and check one format; the backend is one that can, the model ours."""
    row, model = FORMATS[format], in_float32(model)
    shape, own = image_shape(model), model.input_shape[1:]
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (3, *shape)).astype("float32")]
    if options["calibration_images"] is not None:  # the ranges are theirs
        images = [options["calibration_images"][:3]]
    if None in own and row.any_size:
        other = [known or size + 8 for known, size in zip(own, shape, strict=True)]
        images.append(rng.integers(0, 256, (2, *other)).astype("float32"))
    expected = [
        keras.ops.convert_to_numpy(formats.probabilities(model, x)) for x in images
    ]
    if fold_model:
        model = fold(model)
    use_erf(model)
    if not row.transforms:
        formats.use_products(model)
    options = {key: value for key, value in options.items() if key in row.options}

    def difference(shape, count):
        row.write(model, path, shape, **options)
        read = row.read(path)
        pairs = zip(images[:count], expected[:count], strict=True)
        return max(float(np.abs(read(x) - y).max()) for x, y in pairs)

    found = np.nan
    if len(images) > 1:
        with contextlib.suppress(Exception):  # each converter has errors of its own
            found = difference(own, 2)
        if not found <= tolerance:
            print(f"{format}: images of any size cannot be exported, only {shape}")
    if not found <= tolerance:
        found = difference(shape, 1)
    print(f"{format}: probabilities differ by {found:.1e} at most", flush=True)
    if not found <= tolerance:
        raise ValueError(
            f"The export's probabilities differ by {found:.1e} from the Keras "
            "model's, more than `tolerance`; nothing was written. Received: "
            f"tolerance={tolerance!r}"
        )


def in_float32(model):
    """Return a model that computes in float32, of the same weights."""
    if _dtypes(model) <= {"float32"}:
        return model
    config = _policies_in_float32(keras.saving.serialize_keras_object(model))
    rebuilt = keras.saving.deserialize_keras_object(config)
    rebuilt.set_weights(model.get_weights())
    if not _dtypes(rebuilt) <= {"float32"}:
        raise ValueError(
            "`model` must be in float32, or of layers whose `dtype` is one of their "
            "arguments, so that it can be rebuilt. Received: layers that compute in "
            f"{sorted(_dtypes(rebuilt))}"
        )
    return rebuilt


def _dtypes(model):
    return {layer.compute_dtype for layer in layers_by_path(model).values()}


def _policies_in_float32(config):
    """Return a model's configuration with each dtype policy in float32."""
    if isinstance(config, (list, tuple)):
        return [_policies_in_float32(value) for value in config]
    if not isinstance(config, dict):
        return config
    config = {key: _policies_in_float32(value) for key, value in config.items()}
    if str(config.get("class_name")).endswith("DTypePolicy"):
        name = re.sub("(mixed_)?b?float16", "float32", config["config"]["name"])
        config["config"]["name"] = name
    return config


# What a fresh process runs: the model, the images and the options lie in its folder.
_ELSEWHERE = """
import importlib, json, pathlib, sys
import numpy as np
from keras_lkca.deploy.exporting import write
from keras_lkca.deploy.prediction import read_model

folder, path = map(pathlib.Path, sys.argv[1:])
for module in json.loads((folder / "modules.json").read_text()):
    importlib.import_module(module)  # which registers the model's own layers
images = folder / "images.npy"
images = np.load(images) if images.exists() else None
options = json.loads((folder / "options.json").read_text())
model = read_model(folder / "model.keras")
write(model, path, calibration_images=images, **options)
"""


def _own_modules(model):
    """Return the modules of the layers that are neither Keras's nor ours."""
    kinds = {type(layer) for layer in [model, *sublayers(model)]}
    own = {kind.__module__: kind.__name__ for kind in kinds}
    modules = sorted(
        name for name in own if name.split(".")[0] not in ("keras", "keras_lkca")
    )
    if "__main__" in modules:
        raise ValueError(
            f"The model's {own['__main__']} is defined in the program itself, which "
            "the process that exports cannot import: put it into a module of its own."
        )
    return modules


def _write_elsewhere(row, model, path, calibration_images, options):
    """Export in a fresh process, under the backend that can, without a GPU.

    The runtimes that serve compute on the CPU; and another process may be training.
    """
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model.save(folder / "model.keras")
        (folder / "options.json").write_text(json.dumps(options))
        (folder / "modules.json").write_text(json.dumps(_own_modules(model)))
        if calibration_images is not None:
            np.save(folder / "images.npy", calibration_images)
        done = subprocess.run(
            [sys.executable, "-c", _ELSEWHERE, str(folder), str(path)],
            env={
                **os.environ,
                "KERAS_BACKEND": row.backend,
                "CUDA_VISIBLE_DEVICES": "-1",
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
            capture_output=True,
            text=True,
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        wrong = [line for line in lines if line.startswith("ValueError: ")]
        if wrong:
            raise ValueError(wrong[-1].removeprefix("ValueError: "))
        tail = "\n".join(lines[-15:]) or "it said nothing"
        raise RuntimeError(
            f"The export under {row.backend} failed with status {done.returncode}:"
            f"\n{tail}"
        )
    lines = done.stdout.splitlines()
    print(*(x for x in lines if x.startswith(options["format"])), sep="\n", flush=True)


def _replace(target, new, old):
    """Put what was written into its place, and what was there back if that fails."""
    old.mkdir()
    try:
        for path in new.iterdir():  # OpenVINO's weights lie beside its file
            place = target.parent / path.name
            if place.exists():
                place.rename(old / path.name)
            path.rename(place)
    except BaseException:
        for path in old.iterdir():
            place = target.parent / path.name
            if place.is_dir():
                shutil.rmtree(place)
            path.rename(place)
        raise
