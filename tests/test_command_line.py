"""The command line: what it prints, writes and refuses."""

import csv
import errno
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import keras
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import keras_lkca
from keras_lkca import LKCAViT, ViT, data, deploy, training
from keras_lkca.__main__ import NAMES, main, make_parser
from keras_lkca.training import Recipe, callbacks

COMMANDS = ("train", "evaluate", "predict", "export", "report", "calibrate")
SMALL = ("--recipe", "quick", "--batch-size", 32, "--steps-per-epoch", 12)
SMALL += ("--model-set", "depth=2", "patch_size=2")


def environment():
    """Return what a process of the user's has: TensorFlow's log is not turned off."""
    kept = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    backend = {"KERAS_BACKEND": keras.config.backend(), "PYTHONPATH": str(ROOT)}
    return {**kept, **backend}


def run(*arguments, expect=0, start=("-m", "keras_lkca")):
    """Run a command in a fresh process; return what it wrote, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, *map(str, (*start, *arguments))],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def call(capsys):
    """Run a command in this process; return what it wrote, stdout or stderr."""

    def run_here(*arguments, expect=0):
        code = 0
        try:
            main([*map(str, arguments)])
        except SystemExit as end:
            code = end.code
        out, error = capsys.readouterr()
        assert code == expect, out + error
        if not expect:
            assert not error
            return out
        (line,) = error.splitlines()
        assert line.startswith(f"keras-lkca {arguments[0]}: ")
        return line

    return run_here


@pytest.fixture(scope="module")
def digits_model(tmp_path_factory):
    """The file of a model of the digits that has learned a little."""
    model = LKCAViT(
        (8, 8, 1),
        patch_size=2,
        embed_dim=16,
        depth=1,
        num_classes=10,
        class_names=[f"digit {i}" for i in range(9, -1, -1)],
    )
    images, labels = data.digits("train")
    Recipe.quick(learning_rate=1e-2).compile(model, total_steps=200)
    one_hot = keras.utils.to_categorical(9 - labels, 10)
    model.fit(images, one_hot, batch_size=70, epochs=10, verbose=0)
    path = tmp_path_factory.mktemp("model") / "digits.keras"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def digit_folder(tmp_path_factory):
    """The first hundred test digits as PNG files, a folder per class."""
    folder = tmp_path_factory.mktemp("folder") / "digits here"
    write_images(folder, *data.digits("test"), 100)
    return folder


def write_images(folder, images, labels, count):
    for index in range(count):
        path = folder / f"digit {labels[index]}" / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index, ..., 0]).save(path)


# The parser


@pytest.mark.once
def test_help_and_version_need_no_keras():
    for arguments in (["--help"], ["--version"], ["train", "--help"]):
        out, times = run(*arguments, start=("-X", "importtime", "-m", "keras_lkca"))
        loaded = {line.split("|")[-1].strip() for line in times.splitlines()}
        assert "argparse" in loaded and not {"keras", "numpy"} & loaded
        assert "keras-lkca" in out and "__main__" not in out
    assert keras_lkca.__version__ in run("--version")[0]


@pytest.mark.once
def test_the_installed_script(tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, function = project["scripts"]["keras-lkca"].split(":")
    script = tmp_path / "keras-lkca"
    script.write_text(f"import sys\nfrom {module} import {function}\n{function}()\n")
    out, times = run("--help", start=("-X", "importtime", script))
    assert out.startswith("usage: keras-lkca ") and not re.search(r"\| +keras$", times)
    _, error = run("fly", expect=2, start=(script,))
    assert error.startswith("keras-lkca: ") and "invalid choice: 'fly'" in error
    _, error = run("predict", "none.keras", "a.png", expect=2, start=(script,))
    assert error == "keras-lkca predict: There is no none.keras.\n"


@pytest.mark.once
def test_help_names_what_the_tables_hold(capsys):
    assert set(NAMES.split(", ")) == set(data.DATASETS)
    texts = {}
    for command in COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        out = " ".join(capsys.readouterr().out.split())
        assert out.startswith(f"usage: keras-lkca {command} ")
        assert f" keras-lkca {command} " in out.partition("example")[2] or (
            command == "calibrate"
        )
        texts[command] = out
    for format in deploy.FORMATS:
        assert format in texts["export"]
    for name in (*data.PIPELINES, "lkca_net_08m", "vit_tiny", "validation", "quick"):
        assert name in texts["train"]
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(f"\n    {command} " in out for command in COMMANDS)
    assert all(f"\n  {code} " in out for code in (0, 1, 2, 130))


@pytest.mark.once
def test_the_commands_of_the_page_are_right():
    page = (ROOT / "docs" / "learn" / "command-line.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", page, re.S)
    lines = "".join(blocks).replace("\\\n", "").splitlines()
    parsed = [
        make_parser().parse_args(shlex.split(line.partition("keras-lkca ")[2])).command
        for line in lines
    ]
    assert set(parsed) == set(COMMANDS)


@pytest.mark.once
def test_every_argument_of_train_has_an_option(monkeypatch):
    received, known = {}, set(inspect.signature(training.train).parameters)
    monkeypatch.setattr(training, "train", lambda **given: received.update(given))
    main(
        "train pets --model vit --preset vit_05m --recipe quick --epochs 3 "
        "--batch-size 8 --set learning_rate=2e-3 flip=false --set crop_padding=1 "
        "--model-set num_heads=2 qkv_bias=True --output r --resume --seed 3 "
        "--fraction 0.5 --validation-split 0.2 --select test --pipeline arrays "
        "--dtype mixed_bfloat16 --no-jit-compile --tensorboard --steps-per-epoch 5 "
        "--data-dir d --image-size 32 --on-error skip --class-weight cat=2 0=5 "
        "--start-from a.keras --freeze 3 --teacher t.keras --task segmentation "
        "--ignore 3 4 --stream --distribute data".split()
    )
    assert received.keys() == known
    assert received.pop("recipe") == Recipe.quick(
        epochs=3, batch_size=8, learning_rate=2e-3, flip=False, crop_padding=1
    )
    assert received == {
        **{"dataset": "pets", "model": "vit", "preset": "vit_05m", "output": "r"},
        **{"resume": True, "seed": 3, "fraction": 0.5, "validation_split": 0.2},
        **{"select": "test", "pipeline": "arrays", "dtype": "mixed_bfloat16"},
        **{"jit_compile": False, "tensorboard": True, "steps_per_epoch": 5},
        **{"data_dir": "d", "image_size": 32, "on_error": "skip"},
        **{"teacher": "t.keras", "task": "segmentation", "ignore": [3, 4]},
        "model_options": {"num_heads": 2, "qkv_bias": True},
        **{"class_weight": {"cat": 2, "0": 5}, "start_from": "a.keras"},
        **{"freeze": 3, "stream": True, "distribute": "data"},
    }
    main(["train", "pets", "--class-weight", "balanced"])
    assert received["class_weight"] == "balanced"
    main(["train", "pets", "--freeze", "backbone"])
    assert received["freeze"] == "backbone"
    received.clear()
    main(["train", "--resume", "--output", "r"])
    assert received == {"resume": True, "output": "r"}  # the rest is `train`'s default


@pytest.mark.once
def test_a_recipe_from_a_file(tmp_path, monkeypatch):
    recipes = []
    monkeypatch.setattr(training, "train", lambda recipe, **_: recipes.append(recipe))
    (tmp_path / "recipe.json").write_text(Recipe.quick(flip=False).to_json())
    for name in (tmp_path / "recipe.json", "paper"):
        main(["train", "digits", "--recipe", str(name), "--epochs", "2"])
    main(["train", "digits", "--epochs", "2"])
    long, paper = Recipe.long(epochs=2), Recipe.paper(epochs=2)
    assert recipes == [Recipe.quick(flip=False, epochs=2), paper, long]


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train", "NAME or FOLDER is required, except with --resume"),
        ("train --output r", "NAME or FOLDER is required"),
        ("train digits --epochs few", "argument --epochs: invalid int value: 'few'"),
        ("train mnist", "must be a folder of images or one of .*'digits'"),
        ("train digits --set epochs", "`--set` takes NAME=VALUE. Received: 'epochs'"),
        ("train digits --model-set a", "`--model-set` takes NAME=VALUE"),
        ("train digits --set epoch=3", "epoch"),
        (
            "train digits --recipe slow",
            "`--recipe` must be one of long, paper, quick, segmentation, or a JSON",
        ),
        ("train digits --model-set depth=x", "depth"),
        ("evaluate", "arguments are required: MODEL, NAME|FOLDER"),
        ("evaluate none.keras digits", "There is no none.keras"),
        ("evaluate MODEL mnist", "mnist is neither a folder nor one of .*svhn_cropped"),
        ("evaluate MODEL cifar10", r"`MODEL` must take the images of cifar10, \(32"),
        ("evaluate MODEL digits --split val", "argument --split: invalid choice"),
        ("evaluate MODEL digits --batch-size 0", "`--batch-size` must be a positive"),
        ("evaluate MODEL digits --mirror", "`--mirror` is not for digits, whose mirr"),
        ("evaluate MODEL digits --json no/a", "`--json` must be a file in a folder"),
        ("evaluate MODEL digits --confusion a", "`--confusion` must end with one of"),
        ("predict MODEL none.png", "There is no none.png"),
        ("predict MODEL a.png --csv no/a.csv", "`--csv` must be a file in a folder"),
        ("predict MODEL a.png --top 0", "`top` must be a positive integer"),
        ("export MODEL x --format tflite", "`format` must be one of.*'tflite'"),
        ("export MODEL x --calibration no", "no is neither a folder nor one of"),
        ("report MODEL no a.html", "no is neither a folder nor one of"),
        ("report MODEL digits no/a.html", "`output` must lie in a folder that exists"),
        ("report MODEL digits a.html --average-over 0", "`--average-over` must be a"),
        ("calibrate --dtype int8", "argument --dtype: invalid choice: 'int8'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments, message, call, digits_model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = [digits_model if x == "MODEL" else x for x in arguments.split()]
    assert re.search(message.replace("|", r"\|"), call(*words, expect=2))
    assert not list(tmp_path.iterdir())


@pytest.mark.once
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("`x` must be"), 2, "`x` must be"),
        (TypeError("no such argument"), 2, "no such argument"),
        (ImportError("This needs matplotlib"), 2, "This needs matplotlib"),
        (FileNotFoundError("There is no"), 2, "There is no"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left"),
        (FloatingPointError("The loss became nan"), 1, "The loss became nan"),
        (MemoryError(), 1, "MemoryError"),
        (KeyboardInterrupt(), 130, "interrupted before the run began"),
    ],
)
def test_exit_codes(error, code, message, call, monkeypatch):
    def fail(**given):
        raise error

    monkeypatch.setattr(training, "train", fail)
    assert message in call("train", "digits", "--output", "nowhere", expect=code)


@pytest.mark.once
def test_ctrl_c_says_how_to_resume(call, monkeypatch, tmp_path):
    def interrupt(*arguments, **given):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupt)
    monkeypatch.setattr(deploy, "read_model", interrupt)
    output = tmp_path / "my run"
    output.mkdir()
    (output / "config.json").write_text("{}")
    error = call("train", "digits", "--output", output, expect=130)
    assert error.endswith(f"--resume --output '{output}'")
    given = "--output", output, "--distribute", "data"
    error = call("train", "digits", *given, expect=130)
    assert error.endswith(f"'{output}' --distribute data")
    error = call("train", "digits", expect=130)
    assert "--resume --output FOLDER, the run's folder below runs/" in error
    assert call("predict", "m", "a.png", expect=130).endswith("interrupted")


@pytest.mark.once
def test_a_backend_that_is_missing_is_named(monkeypatch, call):
    def missing(name):
        raise ModuleNotFoundError("No module named 'jax'", name="jax")

    monkeypatch.setattr("importlib.import_module", missing)
    error = call("predict", "model.keras", "a.png", expect=2)
    assert "Keras is set to jax, which is not installed" in error
    assert "KERAS_BACKEND" in error


# In fresh processes


def test_train_evaluate_predict(tmp_path):
    """The first line is ours, and stderr is empty."""
    best = tmp_path / "r" / "best.keras"
    out, error = run(
        "train", "digits", *SMALL, "--epochs", 1, "--output", tmp_path / "r"
    )
    assert not error and out.startswith("lkca_net_08m on digits: ")
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert config["arguments"]["model_options"] == {"depth": 2, "patch_size": 2}
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_text())

    out, error = run("evaluate", best, "digits", "--json", tmp_path / "a.json")
    assert not error and out.startswith("397 images of digits, test\naccuracy ")
    results = json.loads((tmp_path / "a.json").read_text())
    assert results["accuracy"] == pytest.approx(metrics["best"]["test_accuracy"])

    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    for path, image in zip(paths, data.digits("test")[0], strict=False):
        Image.fromarray(image[..., 0]).resize((50, 40)).save(path)
    out, error = run("predict", best, *paths, "--csv", tmp_path / "p.csv")
    assert not error and out.startswith(f"{paths[0]}\n")
    assert (tmp_path / "p.csv").read_text().startswith("file,class_1,probability_1,")


CALLED = """
import runpy, signal, sys
# Ignored, where the tests themselves run in the background of a shell.
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("keras_lkca", run_name="__main__", alter_sys=True)
"""


def test_ctrl_c_while_it_trains(tmp_path):
    output = tmp_path / "run"
    arguments = ["train", "digits", *SMALL, "--epochs", 300, "--output", output]
    process = subprocess.Popen(
        [sys.executable, "-c", CALLED, *map(str, arguments)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if (output / "last.keras").exists():
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 130
    line = (
        f"keras-lkca train: interrupted; resume the run with --resume --output {output}"
    )
    assert line in error.splitlines()  # TensorFlow may say that its threads stopped too
    assert "Traceback" not in error.split(line)[0]
    rows = len(callbacks.read_history(output / "history.csv"))
    assert 1 <= callbacks.epoch_of(output / "last.keras") <= rows


@pytest.mark.once
def test_a_reader_that_goes_away_is_no_error(digits_model, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    command = [sys.executable, "-m", "keras_lkca", "predict", digits_model]
    process = subprocess.Popen(
        [*map(str, command), *[str(tmp_path / "a.png")] * 2000],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=300) == 1
    process.stderr.close()


# evaluate


def test_evaluate_a_dataset(call, digits_model, tmp_path):
    """Whose classes the model has in another order."""
    bare = keras.models.load_model(digits_model, compile=False)
    config = {**bare.get_config(), "class_names": list("9876543210")}
    model = LKCAViT.from_config(config)
    model.set_weights(bare.get_weights())
    model.save(tmp_path / "model.keras")
    files = tmp_path / "a.json", tmp_path / "a.png"
    out = call(
        *("evaluate", tmp_path / "model.keras", "digits"),
        *("--json", files[0], "--confusion", files[1]),
    )
    images, labels = data.digits("test")
    scores, confusion = training.evaluate(model, images, 9 - labels)
    results = json.loads(files[0].read_text())
    assert results["accuracy"] == scores["test_accuracy"] > 0.5
    assert results["top5_accuracy"] == scores["test_top5_accuracy"]
    assert results["loss"] == pytest.approx(scores["test_loss"])
    assert results["confusion"] == confusion.tolist()
    assert results["class_names"] == list("9876543210")
    share = confusion[9, 9] / confusion[9].sum()
    assert results["per_class_accuracy"]["0"] == share
    assert f"accuracy       {scores['test_accuracy']:8.2%}" in out
    assert f"top-5 accuracy {scores['test_top5_accuracy']:8.2%}" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["0", str(confusion[9].sum()), f"{share:.2%}"] in lines
    with Image.open(files[1]) as picture:
        assert picture.size[0] > 500
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("a.json", "a.png", "model.keras")
    ]
    out = call("evaluate", tmp_path / "model.keras", "digits", "--split", "train")
    assert out.startswith("1,400 images of digits, train\n")


def test_evaluate_a_folder(call, digits_model, digit_folder, tmp_path):
    model = keras.models.load_model(digits_model, compile=False)
    images, labels = (part[:100] for part in data.digits("test"))
    scores, confusion = training.evaluate(model, images, 9 - labels)
    for model_file in (digits_model, with_softmax(model, tmp_path / "softmax.keras")):
        out = call("evaluate", model_file, digit_folder, "--json", tmp_path / "a.json")
        assert out.startswith(f"100 images of {digit_folder}\n")
        results = json.loads((tmp_path / "a.json").read_text())
        assert results["loss"] == pytest.approx(scores["test_loss"], rel=1e-4)
        assert results["accuracy"] == scores["test_accuracy"]
        if model_file is digits_model:
            assert results["confusion"] == confusion.tolist()


def with_softmax(model, path):
    """Save a model that names no classes, whose order is then the folders'."""
    flipped = keras.ops.flip(model.outputs[0], axis=1)
    keras.Model(model.inputs, keras.layers.Softmax()(flipped)).save(path)
    return path


def test_mirrored_images_are_evaluated_and_predicted(
    call, digits_model, digit_folder, tmp_path
):
    """Of a folder, of which nobody knows; and not where the run's dataset is known."""
    model = keras.models.load_model(digits_model, compile=False)
    images, labels = (part[:100] for part in data.digits("test"))
    scores, _ = training.evaluate(model, images, 9 - labels, mirror=True)
    results = tmp_path / "a.json"
    call("evaluate", digits_model, digit_folder, "--mirror", "--json", results)
    results = json.loads(results.read_text())
    assert results["loss"] == pytest.approx(scores["test_loss"]) and results["mirror"]
    image = sorted(digit_folder.rglob("*.png"))[0]
    outs = {call("predict", digits_model, image, *x) for x in ((), ("--mirror",))}
    assert len(outs) == 2
    model.save(tmp_path / "best.keras")
    config = {"arguments": {"dataset": "digits"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    line = call("predict", tmp_path / "best.keras", image, "--mirror", expect=2)
    assert "`--mirror` is not for digits" in line


def test_evaluate_a_share_of_a_folder(call, digits_model, digit_folder, tmp_path):
    """The share that `train` holds out; or the folder's own."""
    counts = []
    for split in ("test", "train"):
        out = call("evaluate", digits_model, digit_folder, "--split", split)
        count, rest = re.match(r"(\d+) images of (.*)\n", out).groups()
        assert rest == f"{digit_folder}, {split}"
        counts.append(int(count))
    assert counts == [20, 80]
    (tmp_path / "pets").mkdir()
    for split in ("train", "test"):
        (tmp_path / "pets" / split).symlink_to(digit_folder)
    out = call("evaluate", digits_model, tmp_path / "pets")
    assert out.startswith(f"100 images of {tmp_path / 'pets'}, test\n")


def test_classes_that_are_not_the_model_s_are_named(call, digits_model, tmp_path):
    write_images(tmp_path / "a", *data.digits("test"), 100)
    (tmp_path / "a" / "digit 3").rename(tmp_path / "a" / "digit three")
    error = call("evaluate", digits_model, tmp_path / "a", expect=2)
    assert "Only the model has ['digit 3'], only " in error
    assert f"{tmp_path}/a has ['digit three']" in error
    error = call("evaluate", digits_model, "digits", expect=2)
    assert "Only the model has ['digit 0'," in error
    nameless = tmp_path / "nameless.keras"
    LKCAViT((8, 8, 1), patch_size=2, embed_dim=8, depth=1, num_classes=7).save(nameless)
    error = call("evaluate", nameless, tmp_path / "a", expect=2)
    assert "as many classes as the model, 7. Received: 10 classes" in error
    deep = tmp_path / "deep.keras"
    LKCAViT((8, 8, 4), patch_size=2, embed_dim=8, depth=1).save(deep)
    error = call("evaluate", deep, tmp_path / "a", expect=2)
    assert "images of 1 channel or 3" in error


def test_evaluate_one_column_and_not_several_labels(call, tmp_path):
    images, labels = data.digits("test")
    few = labels < 2
    write_images(tmp_path / "a", images[few], labels[few], 40)
    options = {"patch_size": 4, "embed_dim": 8, "depth": 1}
    names = ["digit 1", "digit 0"]
    LKCAViT((8, 8, 1), 1, class_names=names, **options).save(tmp_path / "one.keras")
    out = call("evaluate", tmp_path / "one.keras", tmp_path / "a")
    assert "40 images of" in out and out.index("digit 1") < out.index("digit 0")
    options |= {"classifier_activation": "sigmoid"}
    LKCAViT((8, 8, 1), 3, **options).save(tmp_path / "several.keras")
    error = call("evaluate", tmp_path / "several.keras", tmp_path / "a", expect=2)
    assert "gives any number of labels an image" in error


def test_evaluate_skips_damaged_files_if_asked(call, capsys, digits_model, tmp_path):
    write_images(tmp_path / "a", *data.digits("test"), 100)
    (tmp_path / "a" / "digit 3" / "broken.png").write_text("no image")
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", str(digits_model), str(tmp_path / "a")])
    assert "broken.png" in capsys.readouterr().err
    out = call("evaluate", digits_model, tmp_path / "a", "--on-error", "skip")
    assert "broken.png" in out and "100 images of" in out


# predict


def test_predict_by_a_trained_preset(call, digit_folder):
    path = sorted(digit_folder.rglob("*.png"))[0]
    out = call("predict", "--preset", "lkca_net_08m_cifar10", path, "--top", 1)
    assert out == call("predict", "lkca_net_08m_cifar10", path, "--top", 1)
    assert out.splitlines()[0] == str(path) and len(out.splitlines()) == 2


def test_predict_files(call, digits_model, digit_folder, tmp_path):
    paths = sorted(digit_folder.rglob("*.png"))[:3]
    file = tmp_path / "a.csv"
    out = call("predict", digits_model, *paths, "--top", 2, "--csv", file)
    results = keras_lkca.predict(digits_model, paths, top=2)
    lines = out.splitlines()
    assert lines.pop() == f"wrote {file}"
    for number, (path, result) in enumerate(zip(paths, results, strict=True)):
        assert lines[3 * number] == str(path)
        expected = [f"    {p:7.2%}  {name}" for name, p in result]
        assert lines[3 * number + 1 : 3 * number + 3] == expected
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    columns = "file class_1 probability_1 class_2 probability_2".split()
    assert list(rows[0]) == columns
    for path, result, row in zip(paths, results, rows, strict=True):
        assert row["file"] == str(path)
        assert [row["class_1"], row["class_2"]] == [name for name, _ in result]
        assert float(row["probability_2"]) == pytest.approx(result[1][1], abs=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
    call("predict", digits_model, expect=2)
    named = call("predict", digits_model, paths[0], "--class-names", *"abcdefghij")
    assert named.splitlines()[1].split()[1] in "abcdefghij"
    call("predict", digits_model, *paths, "--top", 99, "--csv", file)
    assert len(file.read_text().splitlines()[0].split(",")) == 1 + 2 * 10


@pytest.mark.once
def test_names_that_are_no_utf_8(digits_model, tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9, two\nlines.png"
    try:
        Image.new("L", (8, 8)).save(os.fsdecode(path))
    except (OSError, UnicodeError):
        pytest.skip("the file system takes no such names")
    file = tmp_path / "a.csv"
    out, error = run(
        *("predict", digits_model, os.fsdecode(path), "--top", 1, "--csv", file)
    )
    assert not error and r"caf\xe9, two" in out
    with file.open(newline="", encoding="utf-8") as opened:
        (row,) = csv.DictReader(opened)
    assert row["file"] == f"{tmp_path}/caf\\xe9, two\nlines.png"


# export, report, calibrate


@pytest.mark.once
def test_export_writes_and_checks(call, digits_model, tmp_path):
    for package in deploy.FORMATS["onnx"].packages:
        pytest.importorskip(package)
    command = ("export", digits_model, tmp_path / "model.onnx", "--format", "onnx")
    out = call(*command)
    assert "probabilities differ by" in out and f"wrote {tmp_path}/model.onnx" in out
    assert "exists; choose another" in call(*command, expect=2)
    assert f"wrote {tmp_path}/model.onnx" in call(*command, "--overwrite", "--no-fold")


def test_every_argument_of_export_has_an_option(
    call, digits_model, digit_folder, monkeypatch
):
    received = {}

    def export(model, output, **given):
        received.update(given, model=model, output=output)
        return output

    known = set(inspect.signature(deploy.export).parameters)
    monkeypatch.setattr(deploy, "export", export)
    call(
        *("export", digits_model, "out", "--format", "litert", "--no-fold"),
        *("--version", 3, "--image-bytes", "--quantize", "int8", "--tolerance", 0.5),
        *("--calibration", digit_folder, "--overwrite", "--class-names", "no", "yes"),
    )
    assert received.keys() == known
    images = received.pop("calibration_images")
    assert images.shape == (100, 8, 8, 1) and images.dtype == "uint8"
    received.pop("model")
    assert received == {
        **{"output": "out", "format": "litert", "fold_model": False, "version": 3},
        **{"image_bytes": True, "quantize": "int8", "tolerance": 0.5},
        **{"overwrite": True, "class_names": ["no", "yes"]},
    }
    received.clear()
    call("export", digits_model, "out")
    assert received == {"model": str(digits_model), "output": "out"}


@pytest.mark.once
def test_report_on_a_folder_and_on_a_dataset(
    call, digits_model, digit_folder, tmp_path, monkeypatch
):
    pytest.importorskip("matplotlib")
    page = tmp_path / "a.html"
    out = call("report", digits_model, "digits", page, "--average-over", 4)
    assert out == f"wrote {page}\n" and "<svg" in page.read_text()
    received = []

    def report(model, images, output, beside, title):
        received.append((images, beside, title))
        return output

    monkeypatch.setattr("keras_lkca.interpret.report", report)
    vit = ViT((8, 8, 1), patch_size=2, embed_dim=8, num_heads=2, depth=1)
    vit.save(tmp_path / "vit.keras")
    call("report", digits_model, digit_folder, page, "--beside", tmp_path / "vit.keras")
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(digits_model, run / "best.keras")
    config = {"preset": "lkca_vit_tiny", "arguments": {"dataset": "/data/pets"}}
    for more in ({}, {"name": "mine"}):  # as a former version wrote it, and as now
        (run / "config.json").write_text(json.dumps({**config, **more}))
        call("report", run / "best.keras", "digits", page)
    (images, other, title), (of_name, _, former), (*_, named) = received
    assert (title, former, named) == (None, "lkca_vit_tiny on pets", "mine")
    assert images.shape == of_name.shape == (64, 8, 8, 1) and type(other) is ViT
    assert of_name.any(axis=(1, 2, 3)).all()
    (tmp_path / "empty").mkdir()
    error = call("report", digits_model, tmp_path / "empty", page, expect=2)
    assert "holds no images" in error


def test_calibrate(call, monkeypatch):
    calls = []
    monkeypatch.setattr("keras_lkca.ops.calibrate", lambda *a: calls.append(a))
    call("calibrate", "--dtype", "float32", "--seconds", 0.5, "--output", "c.json")
    call("calibrate")
    assert calls == [
        ("c.json", ("float32",), 0.5),
        (None, ("float32", "bfloat16"), 0.2),
    ]


# train


@pytest.mark.once
def test_train_on_own_images(rng, tmp_path, call):
    """Reddish cats and bluish dogs, in a folder called as a dataset is not."""
    pets = tmp_path / "pets"
    for name, channel in (("cat", 0), ("dog", 2)):
        (pets / name).mkdir(parents=True)
        for index in range(20):
            pixels = rng.integers(0, 60, (12, 12, 3)).astype("uint8")
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(pets / name / f"{index}.png")
    (pets / "cat" / "broken.jpg").write_text("no image")
    arguments = [
        *("train", pets, "--recipe", "quick", "--epochs", 10, "--batch-size", 8),
        *("--image-size", 8, "--output", tmp_path / "run"),
        *("--model-set", "depth=1", "embed_dim=16", "patch_size=4"),
    ]
    _, error = run(*arguments, expect=2)
    assert "broken.jpg" in error and "--on-error skip" in error
    assert "Traceback" not in error and not (tmp_path / "run").exists()
    out = call(*arguments, "--on-error", "skip")
    assert "skipped: 1 of 41" in out and "broken.jpg" in out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["images"] == {"train": 29, "validation": 3, "test": 8}
    assert set(metrics["best_per_class_accuracy"]) == {"cat", "dog"}
    assert metrics["last"]["test_accuracy"] >= 0.75  # of eight images
    assert "test_top5_accuracy" not in metrics["last"]
    out = call("train", "--resume", "--output", tmp_path / "run")
    assert "is complete" in out

    # The test images are found again.
    again = ("evaluate", tmp_path / "run" / "best.keras", pets, "--on-error", "skip")
    out = call(*again, "--split", "test", "--json", tmp_path / "a.json")
    assert "8 images of" in out and "top-5" not in out
    results = json.loads((tmp_path / "a.json").read_text())
    assert results["accuracy"] == metrics["best"]["test_accuracy"]
    assert results["top5_accuracy"] is None


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory):
    """A prepared TFDS folder of a few random images."""
    if "LKCA_DATA" in os.environ:
        return os.environ["LKCA_DATA"] + "/tfds"
    tfds = pytest.importorskip("tensorflow_datasets")

    class Cifar100(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "cifar100"
        VERSION = tfds.core.Version("3.0.2")
        pkg_dir_path = ROOT

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(32, 32, 3)),
                        "label": tfds.features.ClassLabel(num_classes=100),
                    }
                ),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples(16), "test": self._examples(8)}

        def _examples(self, count):
            rng = np.random.default_rng(0)
            for index in range(count):
                image = rng.integers(0, 256, (32, 32, 3)).astype("uint8")
                yield index, {"image": image, "label": index}

        _generate_examples = _examples

    root = tmp_path_factory.mktemp("tfds")
    Cifar100(data_dir=str(root)).download_and_prepare()
    return root


@pytest.mark.once
@pytest.mark.filterwarnings("ignore")  # what TFDS does while it writes is its own
def test_train_on_a_prepared_dataset(cifar100, tmp_path):
    out, _ = run(
        *("train", "cifar100", "--preset", "lkca_vit_05m", "--epochs", 1),
        *("--steps-per-epoch", 2, "--batch-size", 4, "--validation-split", 0.25),
        *("--data-dir", cifar100, "--output", tmp_path / "run", "--seed", 3),
    )
    assert "509,800 parameters" in out and "test accuracy" in out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["seed"] == 3 and metrics["epochs"] == 1
    if "LKCA_DATA" not in os.environ:
        assert metrics["images"] == {"train": 12, "validation": 4, "test": 8}
    assert (tmp_path / "run" / "best.keras").exists()


WITHOUT_TENSORFLOW = """
import importlib.machinery, runpy, sys

find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *rest: (
    None if name.split(".")[0].startswith("tensorflow") else find(name, *rest)
)
runpy.run_module("keras_lkca", run_name="__main__", alter_sys=True)
assert "tensorflow" not in sys.modules
"""


@pytest.mark.skipif(
    keras.config.backend() == "tensorflow", reason="TensorFlow is the backend"
)
@pytest.mark.parametrize("options", [("--recipe", "quick"), ("--pipeline", "arrays")])
def test_train_without_tensorflow(options, tmp_path, rng):
    """From a file of arrays; the second time with the paper's whole augmentation."""
    np.savez(
        tmp_path / "cifar100.npz",
        x_train=rng.integers(0, 256, (64, 32, 32, 3)).astype("uint8"),
        y_train=np.arange(64),
        x_test=rng.integers(0, 256, (8, 32, 32, 3)).astype("uint8"),
        y_test=np.arange(8),
    )
    start = ("-c", WITHOUT_TENSORFLOW)
    where = ("--data-dir", tmp_path)
    run(
        *("train", "cifar100", *where, "--output", tmp_path / "run", "--epochs", 1),
        *("--batch-size", 16, "--steps-per-epoch", 2, *options),
        *("--model-set", "depth=1", "embed_dim=16"),
        start=start,
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["pipeline"] == "arrays"
    expected = 0 if "quick" in options else 2
    assert config["arguments"]["recipe"]["rand_augment"] == expected
    assert (tmp_path / "run" / "metrics.json").exists()
    arguments = ("train", "cifar100", *where, "--pipeline", "tf.data")
    _, error = run(*arguments, expect=2, start=start)
    assert "needs tensorflow" in error and 'keras-lkca[tensorflow]"' in error
    _, error = run("train", "svhn_cropped", *where, expect=2, start=start)
    assert "Without TensorFlow, put its arrays" in error


def test_a_dataset_that_is_not_there(tmp_path):
    _, error = run("train", "tiny_imagenet", "--data-dir", tmp_path, expect=2)
    assert error.startswith("keras-lkca train: The dataset 'tiny_imagenet' is not in")
    assert "Traceback" not in error
