"""Measure this machine, so that `method="auto"` knows it."""

import datetime
import itertools
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np

from keras_lkca.backend import (
    device_kind,
    processor_facts,
    repeatable,
    version,
)
from keras_lkca.files import atomic, shown
from keras_lkca.ops.conv import large_kernel_conv
from keras_lkca.ops.plan import (
    METHODS,
    PASSES,
    costs_path,
    matrix_bytes,
    read_costs,
    work,
)

# See `calibrate`; varied enough to tell the constants from each other.
SHAPES = (
    (128, 8, 136, 0, 1),
    (128, 8, 136, 0, 8),
    (32, 8, 128, 0, 0),
    (1, 4, 64, 0, 1),
    (1, 8, 136, 0, 1),
    (1, 14, 192, 0, 1),
    (64, 14, 192, 0, 1),
    (16, 14, 192, 0, 12),
    (32, 14, 96, 0, 0),
    (64, 14, 96, 7, 1),
    (2, 32, 96, 0, 1),
    (16, 32, 96, 0, 1),
    (8, 32, 96, 0, 6),
    (8, 32, 96, 0, 0),
    (16, 32, 96, 7, 1),
    (4, 64, 48, 0, 1),
    (2, 64, 64, 0, 4),
    (4, 64, 48, 7, 1),
    (1, 128, 48, 0, 1),
    (1, 128, 48, 7, 1),
)
LIMIT = 1.0  # seconds; what takes longer is timed once, and not on larger shapes
LIMIT_BYTES = 2**29


def calibrate(
    path: str | os.PathLike | None = None,
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
    seconds: float = 0.2,
    shapes: Sequence[tuple[int, int, int, int, int]] = SHAPES,
    report: Callable[[str], None] = print,
) -> dict:
    """Measure what each method costs under the active backend, and store it.

    Every method runs on shapes from 8 x 8 to 128 x 128 tokens, forward and with
    gradients; `keras_lkca.ops.plan` finds the result in the Keras home directory
    when `keras_lkca` is next imported. One backend at a time is measured, and the
    others' figures in the file are kept. Leave the machine alone meanwhile.

    Args:
        path: Where to store the constants, JSON; by default where they are found.
        dtypes: The dtypes to measure: `"float32"`, `"bfloat16"`, `"float16"`.
        seconds: How long to time each method on each shape, up to 200 calls.
        shapes: What to time: tuples of batch, grid, channels, kernel size (0 for a
            global kernel) and groups (0 for one per channel).
        report: Function of a line of progress.

    Returns:
        What was stored for this backend: a dict of entries.

    Raises:
        ValueError: If `dtypes` is not as above.

    Example:

    >>> import pathlib, tempfile
    >>> from keras_lkca.ops import calibrate
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "costs.json"
    >>> entries = calibrate(
    ...     path, seconds=0, shapes=[(2, 4, 8, 0, 1)], report=lambda line: None
    ... )
    >>> path.exists(), len(entries)
    (True, 2)
    """
    known = ("float32", "bfloat16", "float16")
    if isinstance(dtypes, str) or not dtypes or not set(dtypes) <= set(known):
        raise ValueError(
            f"`dtypes` must be a tuple of names among {', '.join(map(repr, known))}. "
            f"Received: dtypes={dtypes!r}"
        )
    path = pathlib.Path(path or costs_path())
    kept = read_costs(path)
    backend, device = keras.config.backend(), device_kind()
    entries = {}
    for dtype in dtypes:
        entry = {
            "measured": f"measured on {processor()}, {os.cpu_count()} cores, "
            f"{backend} {version()}, {dtype}, {datetime.date.today()}",
            "methods": _fit_all(_measure(dtype, seconds, shapes, report)),
        }
        entries[f"{backend}-{device}-{dtype}"] = entry
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(json.dumps({**kept, **entries}, indent=1) + "\n")
    report(f"wrote {shown(path)}")
    return entries


# What decides how fast products of matrices are: a name stands for several processors.
_VECTORS = "avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16"


def processor():
    """Return the name of the processor, and the vector instructions that it has."""
    name, flags = processor_facts()
    name = name or platform.processor() or platform.machine()
    return ", ".join([name, *(vector for vector in _VECTORS if vector in flags)])


def _measure(dtype, seconds, shapes, report):
    """Return the samples: `{(method, pass): [(amounts, seconds)]}`."""
    rng = np.random.default_rng(0)
    samples = {key: [] for key in itertools.product(METHODS, PASSES)}
    for batch, grid, channels, size, groups in shapes:
        groups = groups or channels
        size = size or 2 * grid - 1
        inputs = rng.normal(size=(batch, grid, grid, channels))
        kernel = rng.normal(size=(size, size, groups)) / size
        shape = (grid, grid, (size, size), groups)
        for name in PASSES:
            calls = {}
            for method in METHODS:
                amounts = work(method, batch, channels, *shape)
                if matrix_bytes(method, *shape, 4) > LIMIT_BYTES:
                    continue
                known = [t * amounts[2] / a[2] for a, t in samples[method, name]]
                if known and min(known) > LIMIT:
                    continue
                calls[method] = repeatable(
                    lambda x, k, method=method, name=name: large_kernel_conv(
                        x, k, method, training=name == "training"
                    ),
                    (inputs, kernel),
                    training=name == "training",
                    jit=False,
                    dtype=dtype,
                )
            timed = alternate(calls, seconds, least=3, limit=LIMIT)
            for method, result in timed.items():
                if "median" in result:
                    amounts = work(method, batch, channels, *shape)
                    samples[method, name].append((amounts, result["median"] / 1e3))
            figures = ", ".join(
                f"{method} {result.get('median', result.get('skipped'))}"
                for method, result in timed.items()
            )
            report(
                f"{dtype} {tuple(inputs.shape)}, kernel {tuple(kernel.shape)}, "
                f"{name}, ms: {figures}"
            )
    return samples


def _fit_all(samples):
    return {
        method: {name: fit(samples[method, name]) for name in PASSES}
        for method in METHODS
    }


def fit(samples):
    """Return the non-negative constants that come nearest in relative terms.

    Least squares over each choice of the constants that are not zero: there are
    four, so all fifteen are tried. What could not be run is given a price that
    nobody pays: a second a call.

    Args:
        samples: List of amounts, see `keras_lkca.ops.plan.work`, and seconds.

    Returns:
        List of a constant for each amount, in seconds.

    Example:

    >>> from keras_lkca.ops.calibration import fit
    >>> fit([((1, 0, 2, 0), 5.0), ((1, 0, 4, 0), 9.0), ((1, 1, 4, 0), 12.0)])
    [1.0, 3.0, 2.0, 0.0]
    """
    if not samples:
        return [1.0, 0.0, 0.0, 0.0]
    amounts = np.array([a for a, _ in samples], "float64")
    seconds = np.array([s for _, s in samples], "float64")
    rows = amounts / seconds[:, None]
    # Columns of one size, or those of large amounts are lost in rounding.
    scale = np.abs(rows).max(axis=0)
    rows = rows / np.where(scale == 0, 1, scale)
    best, smallest = None, np.inf
    for used in itertools.product((False, True), repeat=amounts.shape[1]):
        used = np.array(used)
        if not used.any() or (scale[used] == 0).any():
            continue
        found, *_ = np.linalg.lstsq(rows[:, used], np.ones(len(rows)), rcond=None)
        error = np.sum((rows[:, used] @ found - 1) ** 2)
        if (found >= 0).all() and error < smallest * (1 - 1e-9):
            best = np.zeros(amounts.shape[1])
            best[used] = found / scale[used]
            smallest = error
    return [float(f"{constant:.4g}") for constant in best]


def alternate(calls, seconds, least=5, limit=2.0):
    """Time calls in turns, so that a slow spell of the machine meets them all.

    Args:
        calls: Dict of names and functions without arguments that return when done.
        seconds: How long to go on, for each of them.
        least: Fewest rounds.
        limit: A second call that takes longer, in seconds, is the only one timed.

    Returns:
        Dict of names and `{"median", "low", "high", "rounds"}`: milliseconds, the
        quartiles, the number of timings. A call that fails has `{"skipped": why}`.
    """
    times, failed = {}, {}
    for name, call in calls.items():
        try:
            call()
            second = _timed(call)
        except Exception as error:  # what cannot run is a result as well
            failed[name] = {"skipped": f"{type(error).__name__}: {str(error)[:80]}"}
        else:
            times[name] = [second] if second > limit else []
    running = [name for name in times if not times[name]]
    end = time.perf_counter() + seconds * len(running)
    rounds = 0
    while running and (rounds < least or time.perf_counter() < end and rounds < 200):
        first = rounds % len(running)
        for name in running[first:] + running[:first]:
            times[name].append(_timed(calls[name]))
        rounds += 1
    results = {name: _summary(values) for name, values in times.items()} | failed
    return {name: results[name] for name in calls}


def _timed(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _summary(seconds):
    low, median, high = np.percentile(seconds, [25, 50, 75]) * 1e3
    return {
        "median": round(float(median), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "rounds": len(seconds),
    }
