"""Files that former versions wrote: they load, go on and are exported.

`tests/former` holds what the version before the layout of today wrote: models of
each kind with their outputs, and a run under each backend that was killed after the
second of its three epochs, with the weights that it would have ended with.
"""

import shutil

import keras
import numpy as np
import pytest
from conftest import ROOT

import keras_lkca
from keras_lkca import deploy
from keras_lkca.training import train

FORMER = ROOT / "tests" / "former"
MODELS = ("lkca", "vit", "folded-lkca", "folded-one-kernel", "quantized")


@pytest.mark.parametrize("name", MODELS)
def test_a_former_model_loads(name, tmp_path):
    with np.load(FORMER / "outputs.npz") as arrays:
        images, expected = arrays["images"], arrays[name]
    model = keras.models.load_model(FORMER / f"{name}.keras")
    close = {"rtol": 1e-4, "atol": 1e-5 if name != "quantized" else 1e-2}
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, **close)
    model.save(tmp_path / "again.keras")
    again = keras.models.load_model(tmp_path / "again.keras")
    np.testing.assert_allclose(again.predict(images, verbose=0), expected, **close)


def test_a_former_model_has_its_names():
    with np.load(FORMER / "outputs.npz") as arrays:
        images = arrays["images"]
    for name in ("lkca", "folded-lkca"):
        model = keras.models.load_model(FORMER / f"{name}.keras")
        assert model.class_names == tuple("0123456789")
        assert keras_lkca.predict(model, images, top=1)[0][0][0] in model.class_names


@pytest.mark.once
@pytest.mark.filterwarnings("ignore")  # the converter's own
def test_a_former_model_is_exported(tmp_path):
    pytest.importorskip("tf2onnx")
    path = deploy.export(FORMER / "lkca.keras", tmp_path / "model.onnx", format="onnx")
    assert path.exists()


def test_a_former_run_goes_on(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(FORMER / f"run-{keras.config.backend()}", run)
    metrics = train(output=run, resume=True)
    assert metrics["epochs"] == 3
    model = keras.models.load_model(run / "last.keras", compile=False)
    with np.load(run / "expected.npz") as arrays:
        expected = [arrays[key] for key in arrays]
    for value, wanted in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-3, atol=1e-4)
