"""`bench.py operator`: each way to compute the operator, and what it replaces."""

import json
import sys

import keras
import numpy as np
from harness import peak_memory
from keras import ops

from keras_lkca.backend import device_kind, repeatable
from keras_lkca.ops import large_kernel_conv
from keras_lkca.ops.calibration import alternate
from keras_lkca.ops.plan import METHODS, choose_method

# Grid: batch and channels, one to three million numbers.
SHAPES = {
    8: (128, 136),
    14: (64, 192),
    16: (64, 192),
    32: (16, 192),
    64: (4, 96),
    128: (1, 96),
}
HEAD_DIM = 17  # of lkca_vit_tiny and vit_tiny, 136 channels in 8 heads


def heads_of(channels):
    """Return the number of attention heads, or kernels, nearest `HEAD_DIM` wide."""
    return min(
        (n for n in range(1, channels + 1) if channels % n == 0),
        key=lambda n: abs(channels / n - HEAD_DIM),
    )


def kernels(grid, channels):
    """Return the kernels' shapes: the paper's, grouped ones, and a local one."""
    globe = 2 * grid - 1
    return {
        "global": (globe, globe, 1),
        "global, a kernel a head": (globe, globe, heads_of(channels)),
        "global, a kernel a channel": (globe, globe, channels),
        "7 x 7": (7, 7, 1),
    }


def folded_conv(inputs, kernel):
    """Apply one kernel in the original formulation, in Keras: channels as images."""
    _, height, width, channels = inputs.shape
    values = ops.reshape(ops.transpose(inputs, (0, 3, 1, 2)), (-1, height, width, 1))
    values = ops.conv(values, ops.expand_dims(kernel, -1), padding="same")
    values = ops.reshape(values, (-1, channels, height, width))
    return ops.transpose(values, (0, 2, 3, 1))


def softmax_attention(inputs):
    """Attend from each token to all: the core of keras.layers.MultiHeadAttention."""
    _, height, width, channels = inputs.shape
    heads = heads_of(channels)
    tokens = ops.reshape(inputs, (-1, height * width, heads, channels // heads))
    return ops.reshape(
        ops.dot_product_attention(tokens, tokens, tokens), (-1, *inputs.shape[1:])
    )


def cells(grids, only):
    """Yield every measured shape: grid, kernel's name, arrays of both operands."""
    rng = np.random.default_rng(0)
    for grid in grids:
        batch, channels = SHAPES[grid]
        for name, shape in kernels(grid, channels).items():
            if only and name not in only:
                continue
            inputs = rng.normal(size=(batch, grid, grid, channels)).astype("float32")
            kernel = rng.normal(size=shape).astype("float32") / shape[0]
            yield grid, name, inputs, kernel


def contestants(kernel_name, inputs, kernel, training):
    """Return what is compared: names, functions and their arguments."""

    def by(method):
        return lambda x, k: large_kernel_conv(x, k, method, training)

    compared = {method: (by(method), (inputs, kernel)) for method in METHODS}
    if kernel_name == "global":
        compared["folded conv"] = (folded_conv, (inputs, kernel))
        compared["attention"] = (softmax_attention, (inputs,))
    return compared


def work(name, inputs, kernel):
    """Return roughly the multiplications and the bytes of the largest array."""
    batch, height, width, channels = inputs.shape
    tokens, groups = height * width, kernel.shape[-1]
    if name == "toeplitz":
        return batch * channels * tokens**2, groups * tokens**2 * 4
    if name == "attention":
        # torch's attention writes no matrix out.
        heads = 0 if keras.config.backend() == "torch" else heads_of(channels)
        return 2 * batch * channels * tokens**2, batch * heads * tokens**2 * 4
    if name in ("depthwise", "folded conv"):
        return inputs.size * kernel.shape[0] * kernel.shape[1], inputs.nbytes
    return 0, inputs.nbytes


def measure(arguments):
    """Return the rows of the table: one a grid, kernel, and forward or training."""
    rows, rates, timed = [], {}, {}
    if arguments.only_memory:
        timed = {
            (row["grid"], row["kernel"], row["pass"]): row["results"]
            for row in json.load(sys.stdin)
        }
    # Memory is a matter of the grid: the paper's kernel shows it.
    only = ["global"] if arguments.only_memory else arguments.kernels
    for grid, kernel_name, inputs, kernel in cells(arguments.grids, only):
        for training in (False, True):
            row = {
                "grid": grid,
                "inputs": list(inputs.shape),
                "kernel": kernel_name,
                "pass": "forward + backward" if training else "forward",
                "auto": choose_method(
                    *inputs.shape[1:],
                    batch=len(inputs),
                    kernel_size=kernel.shape[:2],
                    groups=kernel.shape[2],
                    dtype=arguments.dtype,
                    training=training,
                    backend=keras.config.backend(),
                    device=device_kind(),
                ),
                "results": {},
            }
            calls = {}
            for name, (function, arrays) in contestants(
                kernel_name, inputs, kernel, training
            ).items():
                amount, size = work(name, inputs, kernel)
                # The last rate of this contestant tells how long it would take.
                expected = amount * rates.get((name, training), 0)
                cell = (grid, kernel_name, row["pass"])
                if arguments.only_memory and "median" not in timed.get(cell, {}).get(
                    name, {}
                ):
                    continue
                if expected > 4 * arguments.limit:
                    skipped = f"about {expected:.0f} s a call"
                elif size * (3 if training else 1) > arguments.limit_gib * 2**30:
                    skipped = f"{size / 2**30:.0f} GiB a matrix"
                else:
                    calls[name] = repeatable(
                        function, arrays, training, arguments.xla, arguments.dtype
                    )
                    continue
                row["results"][name] = {"skipped": skipped}
            if arguments.only_memory:
                measured = {
                    name: {"peak_mib": peak_memory(call)}
                    for name, call in calls.items()
                }
            else:
                measured = alternate(
                    calls, arguments.seconds, least=3, limit=arguments.limit
                )
                for name, result in measured.items():
                    amount = work(name, inputs, kernel)[0]
                    if amount and "median" in result:
                        rates[name, training] = result["median"] / 1e3 / amount
            row["results"].update(measured)
            rows.append(row)
            if not arguments.only_memory:
                print(line(row), flush=True)
    return rows


def line(row):
    """Return a row as one line, to follow a run by."""
    times = ", ".join(
        f"{name} {result.get('median', '-')}" for name, result in row["results"].items()
    )
    return f"{row['grid']} {row['kernel']}, {row['pass']}: {times}"
