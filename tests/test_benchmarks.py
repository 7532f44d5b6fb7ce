import json

import keras
import pytest
from conftest import ROOT

from keras_lkca import LKCAViT, deploy

BENCH = ROOT / "benchmarks" / "bench.py"


def bench(run_python, folder, *arguments):
    briefly = ("--seconds", "0", "--limit", "0")  # each call twice, and timed once
    run_python(BENCH, *arguments, "--output", folder, *briefly)
    (path,) = folder.glob(f"{arguments[0]}*.json")
    assert keras.config.backend() in path.stem
    return json.loads(path.read_text()), path.with_suffix(".md").read_text()


def test_operator(tmp_path, run_python):
    arguments = ("operator", "--grids", "8", "--kernels", "7 x 7", "--no-memory")
    record, text = bench(run_python, tmp_path, *arguments)
    assert len(record["rows"]) == 2  # forward, and with gradients
    for row in record["rows"]:
        assert row["auto"] in row["results"]
        for result in row["results"].values():
            assert result["low"] <= result["median"] <= result["high"]
    for key in ("command", "machine", "keras", "commit", "date"):
        assert record["conditions"][key]
    assert "| 8 | 7 x 7 | forward |" in text


def test_scaling_with_memory(tmp_path, run_python):
    record, _ = bench(run_python, tmp_path, "scaling", "--grids", "8")
    for row in record["rows"]:
        for result in row["results"].values():
            assert result["median"] > 0
            # TensorFlow's allocator keeps what it had: nothing to measure.
            measured = keras.config.backend() != "tensorflow"
            assert ("peak_mib" in result) == measured


@pytest.mark.once
def test_figures_of_the_committed_results(tmp_path, run_python):
    run_python(BENCH, "figures", "--output", tmp_path)
    drawn = {path.stem for path in tmp_path.glob("*.svg")}
    results = {path.stem for path in (BENCH.parent / "results").glob("*.json")}
    wanted = {name for name in results if name.startswith(("operator", "scaling"))}
    assert drawn == wanted != set()


@pytest.mark.once
def test_deploy(tmp_path, run_python):
    for package in deploy.FORMATS["litert"].packages:
        pytest.importorskip(package)
    record, text = bench(run_python, tmp_path, "deploy", "--formats", "litert")
    assert [row["batch"] for row in record["rows"]] == [1, 128]
    for row in record["rows"]:
        sizes = [row["results"][name]["kB"] for name in ("LKCA-T, folded", "LKCA-T")]
        assert 0 < sizes[0] < 0.9 * sizes[1]
    assert "| litert | 128 |" in text


@pytest.mark.once
def test_quantize(tmp_path, run_python):
    for package in deploy.FORMATS["litert"].packages:
        pytest.importorskip(package)
    model = LKCAViT((8, 8, 1), patch_size=4, embed_dim=64, depth=1)
    model.save(tmp_path / "model.keras")
    arguments = ("--model", tmp_path / "model.keras", "--dataset", "digits")
    record, text = bench(run_python, tmp_path, "quantize", *arguments)
    (row,) = record["rows"]
    results = row["results"]
    assert results["LiteRT, int8"]["kB"] < results["LiteRT, float32"]["kB"]
    assert all(0 <= result["accuracy"] <= 1 for result in results.values())
    assert "| LiteRT, int8 |" in text


@pytest.mark.once
def test_parity_asks_for_a_clone(tmp_path, run_python):
    pytest.importorskip("torch")
    command = (BENCH.parent / "parity.py", "--authors", tmp_path)
    error = run_python(*command, expect=2)
    assert "--authors must be a clone of the authors' repository" in error
    assert f"Received: --authors {tmp_path}" in error
