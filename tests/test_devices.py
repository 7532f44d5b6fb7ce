"""Several devices train as one does; here they are parts of one processor."""

import concurrent.futures
import json
import os
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT, quick, tiny
from several_devices import train

from keras_lkca import data, devices
from keras_lkca.training import fit

TORCH, JAX = (keras.config.backend() == name for name in ("torch", "jax"))
SCRIPT = str(ROOT / "tests" / "several_devices.py")
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
}


def launch(folder, *steps, processes=1, expect=0):
    """Take the script's steps, and return what it printed."""
    launcher = [sys.executable]
    if TORCH:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*launcher, SCRIPT, str(folder), *steps],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == expect, printed
    return printed


def connect(*command):
    """Run Python in two processes under JAX: what ended them, and was printed."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    started = []
    for process in range(2):
        keras_reads = {
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"localhost:{port}",
            "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
            "KERAS_DISTRIBUTION_PROCESS_ID": str(process),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        }
        started.append(
            subprocess.Popen(
                [sys.executable, *command],
                env={**ENVIRONMENT, **keras_reads},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        with concurrent.futures.ThreadPoolExecutor() as threads:  # both pipes at once
            texts = threads.map(lambda each: each.communicate(timeout=600)[0], started)
            printed = "".join(texts)
    finally:
        for each in started:
            each.kill()
            each.wait()
            each.stdout.close()
    return [each.returncode for each in started], printed


@pytest.fixture(scope="module")
def processes(runs):
    """The runs of several processes, and what was printed of them."""
    if TORCH:
        return runs
    folder, _ = runs
    ended, printed = connect(SCRIPT, folder, "processes", "dies")
    assert ended[0] and ended[1] == 7, printed
    ended, more = connect(SCRIPT, folder, "resume")
    assert ended == [0, 0], more
    return folder, printed + more


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The runs on one, two and four devices, and what was printed of the two."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "1", distribute=None)
    if TORCH:
        steps = "2", "odd", "diverges", "dies"
        printed = launch(folder, *steps, processes=2, expect=1)
        printed += launch(folder, "resume", processes=2)
        launch(folder, "4", processes=4)
    elif JAX:
        printed = launch(folder, "2", "odd", "4", "model")
    else:  # whose devices work together in one way alone, in a process
        printed = launch(folder, "2", "odd") + launch(folder, "4")
    return folder, printed


def kept(folder):
    """What the processes kept, each."""
    files = sorted(folder.glob("process*.npz"))
    return [dict(np.load(file)) for file in files]


def close(arrays, wanted, prefix):
    for key in wanted:
        if key.startswith(prefix):
            options = {"rtol": 1e-3, "atol": 1e-4}
            np.testing.assert_allclose(arrays[key], wanted[key], **options)


@pytest.mark.parametrize("count", (2, 4))
def test_several_devices_train_as_one(count, runs):
    (one,), several = kept(runs[0] / "1"), kept(runs[0] / str(count))
    assert len(several) == (count if TORCH else 1)
    # The mean of the epoch so far; of a process under torch that of its own images.
    losses = np.mean([arrays["losses"] for arrays in several], 0)
    assert losses.shape == (50,)
    np.testing.assert_allclose(losses, one["losses"], rtol=1e-4)
    for arrays in several:
        close(arrays, one, "weight")
        close(arrays, one, "test_loss")
        close(arrays, one, "validation_accuracy")
        # Each takes BatchNormalization's statistics of its own images, and all agree.
        close(arrays, several[0], "net")
        if JAX and count == 2:
            close(arrays, one, "net")  # whose statistics are of all images there


@pytest.mark.skipif(not JAX, reason="the other engines share no model out")
def test_devices_that_share_a_model_out_train_as_one(runs):
    (one,), (parts,) = kept(runs[0] / "1"), kept(runs[0] / "model")
    assert one["whole"] and not parts["whole"]
    np.testing.assert_allclose(parts["losses"], one["losses"], rtol=1e-4)
    close(parts, one, "weight")
    close(parts, one, "test_loss")


def test_one_process_writes(runs):
    folder, printed = runs
    # Once for each run, whatever the number of processes.
    assert printed.count("epoch 1/2") == 2 + JAX
    names = {path.name for path in (folder / "2").iterdir()}
    assert {"config.json", "history.csv", "last.keras", "metrics.json"} <= names
    config = json.loads((folder / "2" / "config.json").read_text())
    recipe = config["arguments"]["recipe"]
    assert (recipe["batch_size"], recipe["learning_rate"]) == (32, 3e-3)


def test_a_batch_that_devices_cannot_share(runs):
    folder, printed = runs
    message = "`batch_size` of the recipe must be a multiple of the number of devices,"
    assert f"{message} 2. Received: 31" in printed
    message = "The images of a batch must be a multiple of the number of devices,"
    assert f"{message} 2. Received: 31" in printed
    assert not list((folder / "odd").glob("*.keras"))


@pytest.mark.skipif(not JAX, reason="the other engines are above")
def test_several_processes_train_as_one(processes):
    folder, printed = processes
    (one,), several = kept(folder / "1"), kept(folder / "processes")
    assert len(several) == 2
    for arrays in several:
        np.testing.assert_allclose(arrays["losses"], one["losses"], rtol=1e-4)
        for prefix in ("weight", "test_loss", "validation_accuracy", "net"):
            close(arrays, one, prefix)
    # The run, and that which is to die: the first process printed them alone.
    assert printed.count("epoch 1/2") == 2


@pytest.mark.skipif(not JAX, reason="torch's are started by torchrun")
def test_the_command_line_in_several_processes(tmp_path):
    command = ["-m", "keras_lkca", "train", "digits", "--model", "lkca", "--recipe"]
    command += ["quick", "--epochs", "1", "--steps-per-epoch", "2", "--model-set"]
    command += ["patch_size=4", "depth=1", "embed_dim=8", "--output", tmp_path / "run"]
    ended, printed = connect(*command, "--distribute", "data")
    assert ended == [0, 0], printed
    assert printed.count("steps per epoch on 4 devices") == 1


@pytest.mark.skipif(not TORCH, reason="the other engines know the loss of all")
def test_a_loss_that_diverges_on_one_stops_all(runs):
    _, printed = runs
    for process in (0, 1):
        assert f"process {process}: The loss became nan in epoch 1 at" in printed


@pytest.mark.skipif(not (TORCH or JAX), reason="TensorFlow's engine has one process")
def test_a_process_that_ends_loses_nothing(processes):
    folder, printed = processes
    assert "resumed after epoch 1" in printed
    (one,), several = kept(folder / "1"), kept(folder / "dies")
    assert len(several) == 2
    for arrays in several:
        close(arrays, one, "weight")


def test_what_distribute_may_be(tmp_path, monkeypatch):
    digits = data.digits("test")
    options = {"recipe": quick(epochs=1), "output": tmp_path / "run"}
    with pytest.raises(ValueError, match="`distribute` must be None or one of"):
        fit(tiny(), digits, distribute="model", **options)
    if TORCH:
        monkeypatch.delenv("RANK", raising=False)
        with pytest.raises(ValueError, match="torchrun --nproc-per-node 2 SCRIPT"):
            devices.several("data")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ValueError, match="`distribute` must be 'data'"):
            fit(tiny(), digits, **options)
        return
    if JAX:
        with monkeypatch.context() as patch:
            patch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
            patch.setenv("KERAS_DISTRIBUTION_PROCESS_ID", "0")
            patch.setenv("KERAS_DISTRIBUTION_JOB_ADDRESSES", "localhost:1")
            with pytest.raises(ValueError, match="`distribute` must be 'data'"):
                fit(tiny(), digits, **options)
            with pytest.raises(ValueError, match="before JAX computes"):
                fit(tiny(), digits, distribute="data", **options)
            patch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "1")
            devices.several(None)
            patch.delenv("KERAS_DISTRIBUTION_NUM_PROCESSES")
            with pytest.raises(ValueError, match="Received: .*JOB_ADDRESSES=localhost"):
                devices.several(None)
    else:
        import tensorflow as tf

        machines = tf.distribute.MultiWorkerMirroredStrategy()
        with machines.scope(), pytest.raises(ValueError, match="of one machine"):
            fit(tiny(), digits, distribute="data", **options)
    compiled = tiny()
    compiled.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="`distribute` needs a model that is not"):
        fit(compiled, digits, distribute="data", **options)
    assert not (tmp_path / "run").exists()
    model = tiny()
    fit(model, digits, distribute="data", **options)  # one device is enough
    last = keras.models.load_model(tmp_path / "run" / "last.keras", compile=False)
    for value, wanted in zip(model.get_weights(), last.get_weights(), strict=True):
        np.testing.assert_array_equal(value, wanted)
    assert model.optimizer is not None  # compiled, as after any run
    again = tiny()
    fit(again, digits, distribute="data", resume=True, **options)  # is complete
    for value, wanted in zip(again.get_weights(), last.get_weights(), strict=True):
        np.testing.assert_array_equal(value, wanted)
    with pytest.raises(ValueError, match="`gradient_accumulation_steps`.*for 7 steps"):
        recipe = quick(epochs=1, gradient_accumulation_steps=8)
        fit(tiny(), digits, recipe=recipe, output=tmp_path / "none")
