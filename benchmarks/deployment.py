"""`bench.py deploy` and `quantize`: exported files, in the runtimes that serve them."""

import pathlib
import tempfile

import keras
import numpy as np
from models import CLASSES, PAIRS, SIZE

from keras_lkca import LKCANet, LKCAViT, ViT, data, deploy
from keras_lkca.ops.calibration import alternate


def size(path):
    """Return the kB of a file, or of all in a folder, or of OpenVINO's two."""
    if path.suffix == ".xml":
        return size(path.with_suffix(".bin")) + path.stat().st_size / 1000
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1000


def deploy_rows(arguments):
    """Measure each format's file of LKCANet, folded and whole LKCA-T, and ViT-Lite."""
    lkca, vit = PAIRS["LKCA-T / ViT-Lite"]
    net = LKCANet.from_preset("lkca_net_08m", num_classes=CLASSES)
    models = {
        "lkca_net_08m, folded": (net, True),
        "LKCA-T, folded": (LKCAViT.from_preset(lkca, num_classes=CLASSES), True),
        "LKCA-T": (LKCAViT.from_preset(lkca, num_classes=CLASSES), False),
        "ViT-Lite": (ViT.from_preset(vit, num_classes=CLASSES), None),
    }
    rng = np.random.default_rng(0)
    for model, _ in models.values():
        # As after training: zeros would be stored once, or left out.
        for weight in model.trainable_weights:
            noise = rng.normal(0, 0.02, weight.shape)
            weight.assign(keras.ops.convert_to_numpy(weight) + noise)
    images = rng.uniform(0, 255, (128, SIZE, SIZE, 3)).astype("float32")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for format in arguments.formats:
            row = deploy.FORMATS[format]
            files = {
                name: deploy.export(
                    model,
                    pathlib.Path(folder) / f"{format}-{name}{row.ending}",
                    format=format,
                    fold_model=fold,
                )
                for name, (model, fold) in models.items()
            }
            read = {name: row.read(file) for name, file in files.items()}
            for batch in (1, 128):
                calls = {
                    name: lambda f=function, x=images[:batch]: f(x)
                    for name, function in read.items()
                }
                results = alternate(
                    calls, arguments.seconds, least=15, limit=arguments.limit
                )
                for name, result in results.items():
                    result["kB"] = round(size(files[name]))
                rows.append({"format": format, "batch": batch, "results": results})
                print(rows[-1], flush=True)
    return rows


def quantize_rows(arguments):
    """Measure a trained model's size, speed and accuracy, whole and quantized."""
    model = deploy.read_model(arguments.model)
    train, _ = data.load(arguments.dataset, "train", arguments.data_dir)
    images, labels = data.load(arguments.dataset, "test", arguments.data_dir)
    chosen = np.random.default_rng(0).choice(len(train), 200, replace=False)
    folded = deploy.fold(model)
    small = deploy.fold(model)
    small.quantize("int8")
    keras_models = {"model": model, "folded": folded, "folded, int8": small}
    calls, sizes, answers = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name, kept in keras_models.items():
            file = folder / f"{name}.keras"
            kept.save(file)
            name = f"Keras, {name}"
            sizes[name] = size(file)
            calls[name] = lambda x, m=kept: m.predict_on_batch(x)
            answers[name] = kept.predict(images, batch_size=128, verbose=0)
        for how in (None, "weights", "int8"):
            file = deploy.export(
                model,
                folder / f"{how}.tflite",
                format="litert",
                quantize=how,
                calibration_images=train[chosen] if how == "int8" else None,
            )
            name = f"LiteRT, {how or 'float32'}"
            sizes[name] = size(file)
            calls[name] = deploy.FORMATS["litert"].read(file)
            answers[name] = calls[name](images.astype("float32"))
        one = images[:1].astype("float32")
        results = alternate(
            {name: lambda f=function: f(one) for name, function in calls.items()},
            arguments.seconds,
            least=15,
            limit=arguments.limit,
        )
    for name, result in results.items():
        result["kB"] = round(sizes[name])
        result["accuracy"] = round(float((answers[name].argmax(1) == labels).mean()), 4)
    return [{"results": results}]


def quantize_table(rows, cell):
    """Return the measurements as a table with a line each."""
    lines = ["| | one image, size | accuracy |", "|---|---|---|"]
    for name, result in rows[0]["results"].items():
        lines.append(f"| {name} | {cell(result)} | {result['accuracy']:.2%} |")
    return "\n".join(lines) + "\n"
