import json
import pathlib

import keras
import numpy as np
import pytest
from conftest import ROOT

import keras_lkca
from keras_lkca.backend import device_kind
from keras_lkca.ops import calibrate, explain_plan, large_kernel_conv
from keras_lkca.ops.calibration import alternate, fit
from keras_lkca.ops.plan import (
    MAX_BYTES,
    METHODS,
    PASSES,
    choose_method,
    costs_of,
    matrix_bytes,
    read_costs,
    work,
)

BUNDLED = json.loads(
    (pathlib.Path(keras_lkca.__file__).parent / "ops" / "costs.json").read_text()
)
# Seconds a unit of work; the same for every method but "hybrid", at half of it.
EVEN = {
    "torch-cpu-float32": {
        "measured": "made up",
        "methods": {
            method: {
                name: [0, 0, 0.5 if method == "hybrid" else 1, 0] for name in PASSES
            }
            for method in METHODS
        },
    }
}


def choose(height, width, channels=96, **arguments):
    arguments = {"backend": "torch", "costs": BUNDLED, **arguments}
    return choose_method(height, width, channels, **arguments)


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
@pytest.mark.parametrize(
    ("grid", "batch", "training", "methods"),
    [
        # The presets' own grid, and the sizes on either side of where they cross.
        (8, 128, True, "toeplitz"),
        (8, 128, False, "toeplitz"),
        (14, 64, False, "toeplitz hybrid"),
        (32, 16, True, "hybrid"),
        (32, 16, False, "hybrid"),
        (64, 4, True, "hybrid"),
        (64, 4, False, "hybrid"),
        (128, 1, True, "hybrid spectral"),
        (128, 1, False, "hybrid spectral"),
        (512, 1, False, "spectral"),
    ],
)
def test_choices_for_a_global_kernel(grid, batch, training, methods, backend):
    chosen = choose(grid, grid, batch=batch, training=training, backend=backend)
    assert chosen in methods.split()


@pytest.mark.parametrize(
    ("case", "method"),
    [
        # A kernel a channel: the matrices of all of them take 192 times the memory.
        (dict(height=32, width=32, groups=96, backend="torch"), "hybrid spectral"),
        (dict(height=32, width=32, groups=96, backend="jax"), "hybrid spectral"),
        # A local kernel is what a convolution is for, but for XLA on a CPU.
        (
            dict(height=64, width=64, kernel_size=(7, 7), training=False),
            "depthwise",
        ),
        (
            dict(height=64, width=64, kernel_size=(7, 7), backend="jax"),
            "hybrid spectral",
        ),
        (
            dict(height=64, width=64, kernel_size=(3, 3), backend="tensorflow"),
            "toeplitz hybrid spectral",
        ),
        # One row of tokens: there is nothing to transform down the columns.
        (dict(height=1, width=256, training=True), "toeplitz"),
        # Only one method takes a dynamic grid.
        (dict(height=None, width=8), "depthwise"),
        (dict(height=8, width=None, backend="jax"), "depthwise"),
        (dict(height=None, width=None, backend="tensorflow"), "depthwise"),
        # What was never measured still gets an answer.
        (dict(height=8, width=8, backend="jax", device="tpu"), "toeplitz hybrid"),
        (dict(height=8, width=8, backend="torch", device="hpu"), "toeplitz"),
        (dict(height=8, width=8, backend="openvino"), "toeplitz"),
        (dict(height=8, width=8, dtype="float64"), "toeplitz"),
        (dict(height=8, width=8, dtype="float16"), "toeplitz"),
    ],
)
def test_choices_for_other_cases(case, method):
    assert choose(**case) in method.split()


def test_the_least_work_is_chosen():
    # 4,096 products a channel by either matrix form, the hybrid's at half the price.
    assert choose(8, 8, costs=EVEN) == "hybrid"
    assert choose(2, 2, costs=EVEN, kernel_size=(1, 1)) == "depthwise"


def test_unknown_pass_takes_what_is_never_far_behind():
    costs = json.loads(json.dumps(EVEN))
    times = {
        "depthwise": (1, 100),
        "toeplitz": (2, 20),
        "hybrid": (9, 10),
        "spectral": (50, 50),
    }
    for method, pair in times.items():
        for name, seconds in zip(PASSES, pair, strict=True):
            costs["torch-cpu-float32"]["methods"][method][name] = [seconds, 0, 0, 0]
    assert choose(8, 8, costs=costs, training=False) == "depthwise"
    assert choose(8, 8, costs=costs, training=True) == "hybrid"
    assert choose(8, 8, costs=costs, training=None) == "toeplitz"


def test_memory_out_of_proportion_is_never_taken():
    for method in ("toeplitz", "hybrid"):
        costs = json.loads(json.dumps(EVEN))
        for name in PASSES:
            costs["torch-cpu-float32"]["methods"][method][name] = [0, 0, 0, 0]
        bound = matrix_bytes(method, 16, 16, (31, 31), 2, 4)
        common = dict(costs=costs, groups=2, batch=1)
        assert choose(16, 16, max_bytes=bound, **common) == method
        assert choose(16, 16, max_bytes=bound - 1, **common) != method


def test_matrix_bytes():
    assert matrix_bytes("toeplitz", 8, 6, (15, 11), 3, 4) == 3 * 48**2 * 4
    assert matrix_bytes("toeplitz", 8, 6, (15, 11), 3, 2) == 3 * 48**2 * 2
    # 8 frequencies, a (12, 12) matrix each, in float32 whatever the inputs.
    assert matrix_bytes("hybrid", 8, 6, (15, 11), 3, 2) == 3 * 8 * 12**2 * 4
    assert matrix_bytes("spectral", 512, 512, (1023, 1023), 3, 4) == 0
    assert matrix_bytes("toeplitz", 90, 90, (179, 179), 1, 4) <= MAX_BYTES


def test_a_kernel_larger_than_the_grid_is_no_more_work():
    for method in METHODS:
        assert work(method, 2, 4, 8, 6, (99, 99), 2) == work(
            method, 2, 4, 8, 6, (15, 11), 2
        )


def test_bundled_costs_were_measured_on_every_backend():
    for backend in ("tensorflow", "jax", "torch"):
        for dtype in ("float32", "bfloat16"):
            assert f"{backend}-cpu-{dtype}" in BUNDLED
    for entry in BUNDLED.values():
        assert set(entry["methods"]) == set(METHODS)
        for passes in entry["methods"].values():
            assert set(passes) == set(PASSES)
            for constants in passes.values():
                assert len(constants) == 4
                assert min(constants) >= 0 < max(constants)


def test_costs_without_an_entry():
    with pytest.raises(ValueError, match=r"torch-cpu-float32.*\['other'\]"):
        costs_of("torch", "cpu", "float32", {"other": {}})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", ["gpu", "tpu"])
def test_an_accelerator_that_was_not_measured(device, dtype):
    options = {"backend": "jax", "device": device, "dtype": dtype}
    assert choose(8, 8, batch=128, **options) == "toeplitz"
    assert choose(256, 256, batch=1, **options) in ("hybrid", "spectral")
    # Whose products would take 500 times the operations of a short kernel's.
    assert choose(181, 181, batch=8, kernel_size=(3, 3), **options) == "depthwise"
    line = explain_plan((1, 8, 8, 4), **options)
    assert "not measured: from the published rates of" in line
    own = {f"jax-{device}-{dtype}": EVEN["torch-cpu-float32"]}
    assert choose(8, 8, costs=own, **options) == "hybrid"


def test_explain_plan():
    line = explain_plan((4, 64, 64, 96), training=True)
    assert "\n" not in line
    chosen, rest = line.split(": ", 1)
    assert chosen == choose_method(
        *(64, 64, 96),
        batch=4,
        training=True,
        backend=keras.config.backend(),
        device=device_kind(),
    )
    assert all(method in rest for method in METHODS if method != chosen)
    assert "measured" in rest and "ms training" in rest
    assert "dynamic" in explain_plan((None, None, 8, 4))
    line = explain_plan((1, 256, 256, 4), backend="torch", device="cpu")
    assert "toeplitz ruled out, its matrices take 16384 MiB" in line
    line = explain_plan((1, 8, 8, 4), backend="tensorflow", device="cpu")
    assert "depthwise ruled out, XLA" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (8, 8, 4)}, r"`input_shape` must be.*\(8, 8, 4\)"),
        ({"input_shape": (1, 8, 8, None)}, "`input_shape` must be.*None"),
        ({"backend": "numpy"}, "`backend` must be one of.*'numpy'"),
        ({"device": "abacus"}, "`device` must be one of.*'abacus'"),
        ({"dtype": "mixed_bfloat16"}, "mixed_bfloat16"),
        ({"dtype": "int32"}, "`dtype` must be a floating-point dtype.*'int32'"),
        ({"groups": 3}, "`groups` must divide `channels`"),
        ({"kernel_size": 4}, "`kernel_size` must be odd"),
    ],
)
def test_explain_plan_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        explain_plan(**{"input_shape": (1, 8, 8, 4), **arguments})


def test_device_kind():
    assert device_kind() in ("cpu", "gpu", "tpu")


def test_calibrate_measures_this_backend_and_keeps_the_others(tmp_path):
    path = tmp_path / "new" / "costs.json"
    path.parent.mkdir()
    other = {"other-cpu-float32": EVEN["torch-cpu-float32"]}
    path.write_text(json.dumps(other))
    lines = []
    entries = calibrate(
        path,
        dtypes=("float32",),
        seconds=0,
        shapes=[(2, 4, 6, 0, 2), (1, 6, 4, 3, 0)],
        report=lines.append,
    )
    key = f"{keras.config.backend()}-{device_kind()}-float32"
    stored = json.loads(path.read_text())
    assert stored == {**other, **entries}
    assert list(entries) == [key]
    assert "measured on" in entries[key]["measured"]
    assert choose_method(4, 4, 6, backend=keras.config.backend(), costs=entries)
    assert len(lines) == 2 * 2 + 1  # shapes by passes, and where it was written


def test_the_user_s_own_costs_come_first(tmp_path, run_python):
    folder = tmp_path / "keras_lkca"
    folder.mkdir()
    costs = EVEN["torch-cpu-float32"]
    (folder / "costs.json").write_text(json.dumps({"torch-cpu-float32": costs}))
    script = (
        f"import os; os.environ['KERAS_HOME'] = {str(tmp_path)!r}\n"
        "from keras_lkca.ops import explain_plan\n"
        "print(explain_plan((1, 8, 8, 4), backend='torch', device='cpu'))"
    )
    assert "(made up)" in run_python("-c", script)


@pytest.mark.parametrize("text", ["{", "[]", '{"torch-cpu-float32": {"methods": {}}}'])
def test_damaged_costs_are_ignored_aloud(text, tmp_path):
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.warns(UserWarning, match="Ignored the costs.*keras_lkca calibrate"):
        assert read_costs(path) == {}
    assert read_costs(tmp_path / "none.json") == {}


@pytest.mark.parametrize("dtypes", ["float32", (), ("float32", "int8")])
def test_calibrate_bad_dtypes(dtypes, tmp_path):
    with pytest.raises(ValueError, match="`dtypes` must be a tuple of names"):
        calibrate(tmp_path / "costs.json", dtypes=dtypes)


def test_fit_finds_the_constants_and_none_below_zero():
    rng = np.random.default_rng(0)
    constants = np.array([1e-4, 0, 3e-11, 2e-9])
    amounts = rng.uniform(1, 10, (20, 4)) * [1, 1e6, 1e9, 1e6]
    amounts[:, 0] = 1
    samples = [(tuple(a), float(a @ constants)) for a in amounts]
    np.testing.assert_allclose(fit(samples), constants, rtol=1e-3, atol=1e-15)
    assert fit([]) == [1.0, 0.0, 0.0, 0.0]  # what never ran is never chosen
    # Less time for more work cannot be had: no negative price.
    assert min(fit([((1, 0, 1, 0), 2.0), ((1, 0, 2, 0), 1.0)])) >= 0


def test_alternate_times_in_turns_and_reports_what_fails():
    order = []

    def broken():
        raise MemoryError("too large")

    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    results = alternate({**calls, "broken": broken}, seconds=0, least=3)
    assert order == list("aabb") + list("ab") + list("ba") + list("ab")
    assert results["a"]["rounds"] == 3
    assert results["a"]["low"] <= results["a"]["median"] <= results["a"]["high"]
    assert results["broken"] == {"skipped": "MemoryError: too large"}


def test_auto_follows_the_plan(monkeypatch):
    inputs = np.ones((1, 4, 4, 2), "float32")
    kernel = np.ones((7, 7, 1), "float32")
    asked = []

    def choose(*grid, **arguments):
        asked.append((grid, arguments))
        return "spectral"

    monkeypatch.setattr("keras_lkca.ops.plan.choose_method", choose)
    large_kernel_conv(inputs, kernel, training=True)
    ((grid, arguments),) = asked
    assert grid == (4, 4, 2)
    assert arguments["batch"] == 1 and arguments["training"] is True
    assert tuple(arguments["kernel_size"]) == (7, 7) and arguments["groups"] == 1
    large_kernel_conv(inputs, kernel, method="toeplitz")
    assert len(asked) == 1


def heads_of(channels):
    """As the benchmark's `heads_of`: the divisor nearest to 17 channels a head."""
    divisors = [n for n in range(1, channels + 1) if channels % n == 0]
    return min(divisors, key=lambda n: abs(channels / n - 17))


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_choices_against_the_committed_measurements(backend):
    """Within 15 % of the fastest method's time on most cells."""
    path = ROOT / "benchmarks" / "results" / f"operator-{backend}-cpu-float32.json"
    right = []
    for row in json.loads(path.read_text())["rows"]:
        batch, height, width, channels = row["inputs"]
        local = row["kernel"] == "7 x 7"
        groups = {
            "global, a kernel a head": heads_of(channels),
            "global, a kernel a channel": channels,
        }
        chosen = choose_method(
            height,
            width,
            channels,
            batch=batch,
            kernel_size=(7, 7) if local else None,
            groups=groups.get(row["kernel"], 1),
            training=row["pass"] != "forward",
            backend=backend,
            costs=BUNDLED,
        )
        # TensorFlow's plan cannot take what XLA could not do, whoever asks.
        times = {
            method: row["results"][method]["median"]
            for method in METHODS
            if "median" in row["results"].get(method, {})
            and not (backend == "tensorflow" and method == "depthwise")
        }
        right.append(times.get(chosen, np.inf) <= 1.15 * min(times.values()))
    assert len(right) == 48
    assert np.mean(right) >= 0.85  # 42, 44 and 46 of 48 when they were committed
