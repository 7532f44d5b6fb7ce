"""The examples' clients over real sockets, against a stand-in of the server."""

import base64
import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from conftest import NAMES, ROOT
from PIL import Image

import keras_lkca

pytest.importorskip("tensorflow")
pytest.importorskip("tensorflow_serving")

# What is served is TensorFlow's; that each backend's models become it, test_deploy.py
# shows.
pytestmark = pytest.mark.once


def serve(folder):
    """Serve the versions in a folder, and yield the addresses of REST and gRPC."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "serving_stand_in.py"), folder, "pets"],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    rest, grpc = process.stdout.readline().split()
    yield f"http://localhost:{rest}", f"localhost:{grpc}"
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def addresses(exported):
    yield from serve(exported("tf_saved_model").parent)


@pytest.fixture(scope="module")
def server(addresses):
    return addresses[0]


@pytest.fixture
def pictures(rng, tmp_path):
    images = rng.integers(0, 256, (2, 16, 24, 3)).astype("uint8")
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    return images, [tmp_path / "0.png", tmp_path / "1.png"]


def post(server, value, path="/v1/models/pets:predict"):
    """Return the status and the answer."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    try:
        with urllib.request.urlopen(server + path, body, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_segmenter_answers_for_every_pixel(tmp_path, rng):
    net = keras_lkca.LKCANet((12, 16, 3), patch_size=2, embed_dim=8, depth=1)
    model = keras_lkca.LKCASegmenter(net, 3, decoder_dim=8)
    keras_lkca.deploy.export(model, tmp_path)
    images = rng.integers(0, 256, (2, 12, 16, 3))
    for rest, _ in serve(tmp_path):
        status, answer = post(rest, {"instances": images.tolist()})
    assert status == 200
    classes = np.array([answer["classes"] for answer in answer["predictions"]])
    expected = keras_lkca.deploy.predict_masks(model, images)
    assert (classes == expected).mean() > 0.99  # of equal chances either


def test_the_client_prints_what_predict_says(classifier, server, pictures, run_python):
    images, paths = pictures
    out = run_python(
        *(ROOT / "examples" / "serving" / "rest_client.py", "--model", "pets"),
        *("--server", server, "--top", 2, *paths),
    )
    lines = out.splitlines()
    results = keras_lkca.predict(classifier, images, top=2)
    for number, (path, result) in enumerate(zip(paths, results, strict=True)):
        assert lines[3 * number] == f"{path}: {result[0][0]}"
        for line, (name, probability) in zip(
            lines[3 * number + 1 :], result, strict=False
        ):
            assert line.split() == [
                f"{probability:.2%}",
                "class",
                str(NAMES.index(name)),
            ]


def test_the_client_says_what_is_wrong(server, pictures, run_python, tmp_path):
    client = ROOT / "examples" / "serving" / "rest_client.py"
    arguments = (client, "--server", server, "--model")
    (tmp_path / "text.jpg").write_text("no image")
    for rest, code, message in (
        (("dogs", pictures[1][0]), 1, "the server refused (404): Servable not found"),
        (("pets", tmp_path / "text.jpg"), 1, "the server refused (400)"),
        (("pets", tmp_path / "missing.jpg"), 2, "No such file"),
        (
            ("pets", pictures[1][0], "--server", "http://localhost:9"),
            1,
            "no server answers at",
        ),
    ):
        error = run_python(*arguments, *rest, expect=code)
        assert message in error and "Traceback" not in error


def test_the_grpc_client(classifier, addresses, pictures, run_python, tmp_path):
    images, paths = pictures
    client = ROOT / "examples" / "serving" / "grpc_client.py"
    arguments = (client, "--server", addresses[1], "--model")
    out = run_python(*arguments, "pets", *paths)
    results = keras_lkca.predict(classifier, images, top=1)
    assert out.splitlines() == [
        f"{path}: {name}, {probability:.2%}"
        for path, [(name, probability)] in zip(paths, results, strict=True)
    ]
    (tmp_path / "text.jpg").write_text("no image")
    for rest, code, message in (
        (("dogs", paths[0]), 1, "NOT_FOUND"),
        (("pets", tmp_path / "text.jpg"), 1, "INVALID_ARGUMENT"),
        (("pets", tmp_path / "missing.jpg"), 2, "No such file"),
        (("pets", paths[0], "--server", "localhost:9"), 1, "UNAVAILABLE"),
    ):
        error = run_python(*arguments, *rest, expect=code)
        assert message in error and "Traceback" not in error


def test_rows_and_columns(classifier, server, pictures):
    images = pictures[0]
    expected = classifier.predict(images.astype("float32"), verbose=0)
    expected = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    values = images.tolist()
    for path in ("/v1/models/pets:predict", "/v1/models/pets/versions/2:predict"):
        for rows in (values, [{"images": image} for image in values]):
            status, answer = post(server, {"instances": rows}, path)
            assert status == 200
            found = [row["probabilities"] for row in answer["predictions"]]
            np.testing.assert_allclose(found, expected, atol=1e-5)
            assert answer["predictions"][0]["labels"] in NAMES
    for columns in (values, {"images": values}):
        status, answer = post(server, {"inputs": columns})
        found = answer["outputs"]["probabilities"]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def test_bad_requests_are_refused_and_the_server_lives_on(server, pictures):
    image = pictures[0][0]
    good = {"signature_name": "image_bytes", "instances": [{"b64": png(image)}]}
    for request, status in (
        (b"{", 400),
        ({}, 400),
        ({"instances": []}, 400),
        ({"instances": [image[:8].tolist()]}, 400),
        ({"instances": ["text"]}, 400),
        ({"signature_name": "classify", "instances": [0]}, 404),
        ({**good, "instances": [{"b64": "no base64!"}]}, 400),
        ({**good, "instances": [{"b64": base64.b64encode(b"text").decode()}]}, 400),
    ):
        code, answer = post(server, request)
        assert code == status and answer["error"], request
    assert post(server, good)[0] == 200
    with urllib.request.urlopen(f"{server}/v1/models/pets", timeout=60) as response:
        state = json.load(response)["model_version_status"][0]
    assert (state["version"], state["state"]) == ("2", "AVAILABLE")
