"""Which method `method="auto"` takes: a small model of what each one costs."""

import itertools
import json
import math
import os
import pathlib
import re
import warnings

import keras

from keras_lkca.backend import device_kind
from keras_lkca.ops import accelerators
from keras_lkca.ops.spectral import fft_length

METHODS = ("depthwise", "toeplitz", "hybrid", "spectral")
PASSES = ("forward", "training")
# Of the matrices that a method makes of one layer's kernels, all groups together.
MAX_BYTES = 256 * 2**20
ASSUMED_BATCH = 32  # where the batch is not known


def costs_path():
    """Return where a user's own constants are: in the Keras home directory."""
    home = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    return pathlib.Path(home) / "keras_lkca" / "costs.json"


def load_costs():
    """Read the measured constants: this package's, and over them the user's own."""
    costs = json.loads(pathlib.Path(__file__).with_name("costs.json").read_text())
    return costs | read_costs(costs_path())


def read_costs(path):
    """Read a file of constants; one that is damaged counts as missing."""
    path = pathlib.Path(path)
    if not path.exists():
        return {}
    try:
        costs = json.loads(path.read_text())
        for entry in costs.values():
            for method, name in itertools.product(METHODS, PASSES):
                if len([float(c) for c in entry["methods"][method][name]]) != 4:
                    raise ValueError("not four constants")
            str(entry["measured"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(
            f"Ignored the costs measured on this machine: {path} cannot be used "
            f"({type(error).__name__}: {error}). Write it anew with "
            "`python -m keras_lkca calibrate`, or delete it.",
            stacklevel=2,
        )
        return {}
    return costs


COSTS = load_costs()


def choose_method(
    height: int | None,
    width: int | None,
    channels: int,
    *,
    batch: int | None = None,
    kernel_size: tuple[int, int] | None = None,
    groups: int = 1,
    dtype: str = "float32",
    training: bool | None = None,
    backend: str,
    device: str = "cpu",
    max_bytes: int = MAX_BYTES,
    costs: dict | None = None,
) -> str:
    """Choose the method for a grid; a pure function of its arguments.

    The fastest by a linear model of each method's work (`work`), whose constants
    were measured on the machine that `costs` names. On an accelerator that was not
    measured, the one that is least far behind on those whose rates are published
    (`keras_lkca.ops.accelerators`). Always among those that can be taken:

    - `"depthwise"` alone takes a dynamic height or width
    - no method whose matrices take more than `max_bytes`
    - no depthwise convolution under TensorFlow on a CPU while there is another
      method: XLA would make it hundreds of times slower, and whether a model is
      compiled with `jit_compile=True` cannot be seen from within the operator

    Args:
        height: Rows of the token grid, `None` if dynamic.
        width: Columns of the token grid, `None` if dynamic.
        channels: Number of channels.
        batch: Number of images, `None` if not known, taken as 32.
        kernel_size: The kernel's height and width, `None` for the global kernel.
        groups: Number of kernels.
        dtype: Name of the inputs' dtype.
        training: Whether gradients are wanted too. `None` is not known: the method
            that is least far behind the fastest one in either case.
        backend: `"tensorflow"`, `"jax"` or `"torch"`.
        device: `"cpu"`, `"gpu"` or `"tpu"`.
        max_bytes: Bound on the matrices of one layer's kernels.
        costs: The constants, by default those of this package and the machine's own.

    Returns:
        `"depthwise"`, `"toeplitz"`, `"hybrid"` or `"spectral"`.

    Example:

    >>> from keras_lkca.ops.plan import choose_method
    >>> choose_method(8, 8, 136, backend="torch")
    'toeplitz'
    >>> choose_method(None, None, 136, backend="torch")
    'depthwise'
    """
    if height is None or width is None:
        return "depthwise"
    entries = costs_of(backend, device, dtype, costs)
    kernel_size = kernel_size or (2 * height - 1, 2 * width - 1)
    shape = (height, width, kernel_size, groups)
    return _weigh(
        batch, channels, shape, dtype, training, backend, device, max_bytes, entries
    )[0]


def _weigh(
    batch, channels, shape, dtype, training, backend, device, max_bytes, entries
):
    """Return the method to take, seconds by the first entry, and why some are out."""
    amounts = batch or ASSUMED_BATCH, channels, *shape
    seconds = [estimate(*amounts, entry) for entry in entries]
    out = {
        method: ruled_out(method, *shape, dtype, backend, device, max_bytes)
        for method in METHODS
    }
    possible = [method for method in METHODS if not out[method]]
    behind = [0.0] * len(possible)
    for each in seconds:
        for name in _passes(training):
            times = [each[method][name] for method in possible]
            fastest = max(min(times), 1e-12)
            behind = [max(b, t / fastest) for b, t in zip(behind, times, strict=True)]
    # torch.compile cannot follow min(..., key=...).
    return possible[behind.index(min(behind))], seconds[0], out


def _passes(training):
    return PASSES if training is None else (PASSES[bool(training)],)


def explain_plan(
    input_shape: tuple[int | None, ...],
    kernel_size: int | tuple[int, int] | None = None,
    groups: int = 1,
    dtype: str | None = None,
    training: bool | None = None,
    backend: str | None = None,
    device: str | None = None,
) -> str:
    """Say in a line which method `method="auto"` takes, and why.

    Args:
        input_shape: `(batch, height, width, channels)`, `None` where dynamic.
        kernel_size: The kernel's height and width, or both in one number; `None`
            for the global kernel.
        groups: Number of kernels.
        dtype: Dtype of the inputs; `None` is that of the global dtype policy.
        training: Whether gradients are wanted too, `None` if not known.
        backend: The active backend by default.
        device: `"cpu"`, `"gpu"` or `"tpu"`, by default the one in use.

    Returns:
        The method, the times that are expected of all (of 32 images, where the
        batch is not known), and where the figures behind them were measured.

    Raises:
        ValueError: If an argument is not as above.

    Example:

    >>> from keras_lkca.ops import explain_plan
    >>> line = explain_plan((4, 64, 64, 96), training=True, backend="torch")
    >>> line.startswith("hybrid: ")
    True
    """
    # The layers import the operator.
    from keras_lkca.checks import (
        check_divides,
        check_kernel_size,
        check_positive_int,
    )

    if len(input_shape) != 4 or input_shape[-1] is None:
        raise ValueError(
            "`input_shape` must be (batch, height, width, channels), channels known. "
            f"Received: input_shape={input_shape!r}"
        )
    batch, height, width, channels = input_shape
    check_divides("groups", check_positive_int("groups", groups), "channels", channels)
    if kernel_size is not None:
        kernel_size = check_kernel_size(kernel_size)
    backend = backend or keras.config.backend()
    device = device or device_kind()
    for name, value, known in (
        ("backend", backend, ("tensorflow", "jax", "torch")),
        ("device", device, ("cpu", "gpu", "tpu")),
    ):
        if value not in known:
            raise ValueError(
                f"`{name}` must be one of {', '.join(map(repr, known))}. "
                f"Received: {name}={value!r}"
            )
    dtype = keras.backend.standardize_dtype(
        dtype or keras.config.dtype_policy().compute_dtype
    )
    if not keras.backend.is_float_dtype(dtype):
        raise ValueError(
            f"`dtype` must be a floating-point dtype. Received: dtype={dtype!r}"
        )
    if height is None or width is None:
        return "depthwise: the one method that takes a dynamic height or width"
    entries = costs_of(backend, device, dtype)
    kernel_size = kernel_size or (2 * height - 1, 2 * width - 1)
    shape = (height, width, kernel_size, groups)
    chosen, seconds, out = _weigh(
        batch, channels, shape, dtype, training, backend, device, MAX_BYTES, entries
    )

    def times(method):
        return ", ".join(
            f"{1e3 * seconds[method][name]:.3g} ms {name}" for name in _passes(training)
        )

    def expected(method):
        if out[method]:
            return f"{method} ruled out, {out[method]}"
        return f"{method} {times(method)}"

    others = "; ".join(expected(method) for method in METHODS if method != chosen)
    return f"{chosen}: {times(chosen)}; against {others} ({entries[0]['measured']})"


def ruled_out(
    method, height, width, kernel_size, groups, dtype, backend, device, max_bytes
):
    """Say why a method is not to be taken, or return `None`."""
    if method == "depthwise" and backend == "tensorflow" and device == "cpu":
        return "XLA on a CPU is hundreds of times slower with it"
    itemsize = int(re.search(r"\d+", dtype)[0]) // 8
    size = matrix_bytes(method, height, width, kernel_size, groups, itemsize)
    if size > max_bytes:
        return f"its matrices take {size / 2**20:.0f} MiB"
    return None


def matrix_bytes(method, height, width, kernel_size, groups, itemsize):
    """Return the memory of the matrices that a method makes of a layer's kernels."""
    if method not in ("toeplitz", "hybrid"):
        return 0
    numbers = work(method, 0, 0, height, width, kernel_size, groups)[1]
    return numbers * (itemsize if method == "toeplitz" else max(itemsize, 4))


def estimate(batch, channels, height, width, kernel_size, groups, entry):
    """Return the seconds a method and pass, `{method: {"forward": ...}}`."""
    seconds = {}
    for method in METHODS:
        amounts = work(method, batch, channels, height, width, kernel_size, groups)
        seconds[method] = {
            name: sum(c * a for c, a in zip(constants, amounts, strict=True))
            for name, constants in entry["methods"][method].items()
        }
    return seconds


def work(method, batch, channels, height, width, kernel_size, groups):
    """Count what a method does: the amounts that the constants multiply.

    Returns:
        Tuple: 1, for the call; numbers written to prepare the kernels;
        multiplications, or `n log n` of a Fourier transform; numbers of feature
        maps in between.
    """
    kernel_height = min(kernel_size[0], 2 * height - 1)
    kernel_width = min(kernel_size[1], 2 * width - 1)
    maps, tokens = batch * channels, height * width
    if method == "depthwise":
        taps = kernel_height * kernel_width
        return 1, channels * taps, maps * tokens * taps, maps * tokens
    if method == "toeplitz":
        return 1, groups * tokens**2, maps * tokens**2, maps * tokens
    if method == "hybrid":
        rows = 2 * ((height + kernel_height // 2) // 2 + 1)
        products = 2 * rows * tokens + 2 * rows * width**2
        return 1, 2 * groups * rows * width**2, maps * products, maps * rows * width
    area = fft_length(height + kernel_height // 2)
    area *= fft_length(width + kernel_width // 2)
    return 1, groups * area, (maps + groups) * area * math.log2(area), maps * area


def costs_of(backend, device, dtype, costs=None):
    """Return the constants measured nearest to a backend, device and dtype.

    Returns:
        List of entries: one, or those of all accelerators of the kind where none was
        measured.
    """
    costs = COSTS if costs is None else costs
    for key in (
        f"{backend}-{device}-{dtype}",
        f"{backend}-{device}-{'bfloat16' if dtype == 'float16' else 'float32'}",
        f"{backend}-{device}-float32",
        f"torch-{device}-float32",  # for a backend that was never measured
    ):
        if key in costs:
            return [costs[key]]
    if device != "cpu":
        kind = device if device in accelerators.RATES else "gpu"
        return accelerators.entries(kind, dtype)
    raise ValueError(
        f"`costs` must have an entry {backend}-{device}-{dtype}. "
        f"Received: {sorted(costs)}"
    )
