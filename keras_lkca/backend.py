"""The one place where the backends differ: transforms, devices, compiled calls.

`keras.ops` has no transform along a chosen axis and takes complex numbers apart
into pairs, with a copy each way; every backend's own transform needs neither.
"""

import contextlib
import importlib
import itertools
import operator
import random
import sys

import keras
import numpy as np

# Keras has imported it already.
_backend = importlib.import_module(keras.config.backend())


def device_kind(tensor=None):
    """Return `"cpu"`, `"gpu"` or `"tpu"`: where the backend computes.

    Args:
        tensor: Under torch, where this tensor is. TensorFlow and JAX have one kind
            of device that everything goes to unless told otherwise.
    """
    if keras.config.backend() == "torch":
        tensor = keras.ops.zeros(()) if tensor is None else tensor
        kind = tensor.device.type
    else:
        kind = keras.distribution.list_devices()[0].split(":")[0].lower()
    # A meta tensor is only ever asked for its shape.
    return {"cuda": "gpu", "mps": "gpu", "xpu": "gpu", "meta": "cpu"}.get(kind, kind)


def sizes(tensor):
    """Return a tensor's shape, in which a size is a number where it is known.

    While `torch.jit.trace` looks on, torch has a tensor for every size. The number is
    that of the example: right for the grid, the channels and a kernel, not for a batch.
    """
    shape = tensor.shape
    if not shape or isinstance(shape[-1], int):
        return shape
    return tuple(
        operator.index(size) if keras.ops.is_tensor(size) else size for size in shape
    )


def is_traced():
    """Whether `torch.jit.trace` looks on, which keeps one grid's way to compute."""
    return keras.config.backend() == "torch" and _backend.jit.is_tracing()


def affine(x, kernel, bias):
    """Return `x @ kernel + bias` of matrices, in one pass where the backend can.

    XLA and TensorFlow's graphs join the two themselves. torch has an operation for
    it, which saves reading and writing the product once more.
    """
    if keras.config.backend() == "torch":
        x, kernel, bias = (keras.ops.convert_to_tensor(t) for t in (x, kernel, bias))
        if x.dtype == kernel.dtype == bias.dtype:  # it promotes nothing
            return _backend.addmm(bias, x, kernel)
    return keras.ops.add(keras.ops.matmul(x, kernel), bias)


def constant(array, dtype=None):
    """Return an array as what a layer keeps and multiplies by at every call.

    torch's calls would otherwise copy it to the device each time, and to the dtype that
    it is multiplied in; to the compilers of the other two and to the exporters an array
    is a constant.
    """
    if keras.config.backend() == "torch":
        return keras.ops.convert_to_tensor(array, dtype)
    return array


def batches_products():
    """Whether one matrix times many is faster than one large product of a copy.

    Under torch it is, without gradients: the matrix's would be one for each image.
    A trace is checked against one without them, and must be the same.
    """
    if keras.config.backend() != "torch":
        return False
    return not _backend.is_grad_enabled() or _backend.jit.is_tracing()


def processor_facts():
    """Return the first processor's name and its flags, empty where Linux tells none."""
    told = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in itertools.takewhile(str.strip, file):
            name, _, value = line.partition(":")
            told[name.strip().lower()] = value.strip()
    flags = told.get("flags") or told.get("features") or ""
    return told.get("model name", ""), frozenset(flags.split())


# At import: within a compiled function torch's compiler could not read the file.
_HAS_BFLOAT16 = bool({"avx512_bf16", "amx_bf16", "bf16"} & processor_facts()[1])


def multiplies_bfloat16(tensor=None):
    """Whether products of bfloat16 matrices are faster than those of float32.

    On a CPU under torch and TensorFlow, where the processor has such instructions; XLA
    turns them into float32 there.

    Args:
        tensor: See `device_kind`.
    """
    if device_kind(tensor) != "cpu":
        return True
    return _HAS_BFLOAT16 and keras.config.backend() != "jax"


def spectrum(x, lengths):
    """Transform the last two axes of a real tensor, zero-padded to `lengths`.

    The last axis comes first, while there are only the unpadded rows of it.

    Args:
        x: Real tensor `(..., height, width)`.
        lengths: Pair of integers, no less than height and width.

    Returns:
        Complex tensor `(..., lengths[0], lengths[1] // 2 + 1)`.
    """
    rows, columns = lengths
    if keras.config.backend() == "torch":
        x = _backend.fft.rfft(x, n=columns)
        if _backend.compiler.is_compiling():
            # torch.compile gets the padding of complex numbers wrong.
            missing = (*x.shape[:-2], rows - x.shape[-2], x.shape[-1])
            x = _backend.cat([x, x.new_zeros(missing)], dim=-2)
        return _backend.fft.fft(x, n=rows, dim=-2)
    if keras.config.backend() == "jax":
        fft = _backend.numpy.fft
        return fft.fft(fft.rfft(x, n=columns), n=rows, axis=-2)
    x = _backend.signal.rfft(x, [columns])
    rank, missing = len(x.shape), rows - x.shape[-2]
    x = _backend.linalg.matrix_transpose(x)
    x = _backend.pad(x, [(0, 0)] * (rank - 1) + [(0, missing)])
    return _backend.linalg.matrix_transpose(_backend.signal.fft(x))


def inverse_spectrum(x, lengths, window):
    """Undo `spectrum`, and keep the window only: its rows before the last axis.

    Args:
        x: Complex tensor `(..., lengths[0], lengths[1] // 2 + 1)`.
        lengths: Pair of integers.
        window: Pair of slices, of rows and of columns.

    Returns:
        Real tensor, `(..., rows, columns)` of the window.
    """
    columns = lengths[1]
    if keras.config.backend() == "torch":
        x = _backend.fft.ifft(x, dim=-2)[..., window[0], :]
        return _backend.fft.irfft(x, n=columns)[..., window[1]]
    if keras.config.backend() == "jax":
        fft = _backend.numpy.fft
        x = fft.ifft(x, axis=-2)[..., window[0], :]
        return fft.irfft(x, n=columns)[..., window[1]]
    x = _backend.signal.ifft(_backend.linalg.matrix_transpose(x))[..., window[0]]
    x = _backend.linalg.matrix_transpose(x)
    return _backend.signal.irfft(x, [columns])[..., window[1]]


def compiled(function):
    """Compile a pure function of arrays where the backend would run it in pieces.

    Args:
        function: Maps tensors to tensors, without state.

    Returns:
        The function, compiled for each shape by JAX or as a TensorFlow graph; under
        torch as it is, without gradients.
    """
    if keras.config.backend() == "jax":
        return _backend.jit(function)
    if keras.config.backend() == "torch":
        return _backend.no_grad()(function)
    return _backend.function(function)


def gradient(function):
    """Return the gradient of a scalar function by its first argument, as a function.

    Args:
        function: Maps tensors to a scalar tensor.

    Returns:
        A function of arrays that returns an array of the first one's shape.
    """
    if keras.config.backend() == "jax":
        compute = _backend.jit(_backend.grad(function))
    elif keras.config.backend() == "torch":

        def compute(x, *rest):
            x = x.detach().requires_grad_()
            with _backend.enable_grad():
                return _backend.autograd.grad(function(x, *rest), x)[0]
    else:

        @_backend.function
        def compute(x, *rest):
            with _backend.GradientTape() as tape:
                tape.watch(x)
                outputs = function(x, *rest)
            return tape.gradient(outputs, x)

    def call(*arrays):
        tensors = [keras.ops.convert_to_tensor(array, "float32") for array in arrays]
        return keras.ops.convert_to_numpy(compute(*tensors))

    return call


def repeatable(function, arrays, training, jit=True, dtype="float32"):
    """Make a function of tensors into a call that can be timed.

    Args:
        function: Maps tensors to a tensor.
        arrays: Its NumPy arguments, cast to `dtype`.
        training: Whether the call computes the gradients by all arguments too.
        jit: Whether XLA compiles it under TensorFlow. JAX always compiles, torch
            runs operation by operation.
        dtype: Floating-point dtype of the arguments.

    Returns:
        Function without arguments that returns when the work is done.
    """
    tensors = [keras.ops.convert_to_tensor(array, dtype) for array in arrays]
    if keras.config.backend() == "torch":
        return _repeatable_torch(function, tensors, training)
    if keras.config.backend() == "jax":

        def run(*tensors):
            if not training:
                return function(*tensors)
            outputs, pullback = _backend.vjp(function, *tensors)
            return outputs, pullback(outputs)

        run = _backend.jit(run)
        return lambda: _backend.block_until_ready(run(*tensors))

    @_backend.function(jit_compile=jit)
    def run(*tensors):
        if not training:
            return function(*tensors)
        with _backend.GradientTape() as tape:
            tape.watch(tensors)
            outputs = function(*tensors)
        return outputs, tape.gradient(outputs, tensors, outputs)

    def call():
        run(*tensors)
        _backend.test.experimental.sync_devices()

    return call


def _repeatable_torch(function, tensors, training):
    tensors = [tensor.detach().requires_grad_(training) for tensor in tensors]

    def call():
        with _backend.set_grad_enabled(training):
            outputs = function(*tensors)
        if training:
            _backend.autograd.grad(outputs, tensors, outputs.detach())
        if tensors[0].device.type != "cpu":
            _backend.accelerator.synchronize()

    return call


@contextlib.contextmanager
def seeded(seed):
    """Seed the generators of Python, NumPy and torch within a block.

    torch's DataLoader draws from torch's under every backend. Afterwards they go on as
    if nothing had been drawn.
    """
    torch = sys.modules.get("torch")
    before = random.getstate(), np.random.get_state(), torch and torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    if torch:
        torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        if torch:
            torch.set_rng_state(before[2])


def batch_norm(x, scale, offset, epsilon):
    """Normalise a batch by its own mean and variance, in one operation.

    Composed of `keras.ops`, it is a dozen passes over the feature map in float32, each
    written and kept for the gradient; XLA joins them, torch and TensorFlow do not.

    Args:
        x: Tensor `(..., channels)`.
        scale: float32 tensor `(channels,)`.
        offset: Likewise.
        epsilon: Float, added to the variance.

    Returns:
        The normalised batch in the dtype of `x`, mean and variance `(channels,)`; or
        `None` where the backend has no such operation for this dtype.
    """
    dtype = keras.backend.standardize_dtype(x.dtype)
    if keras.config.backend() == "jax" or dtype not in ("float32", "bfloat16"):
        return None
    x = keras.ops.convert_to_tensor(x)
    scale, offset = (keras.ops.convert_to_tensor(t) for t in (scale, offset))
    shape = keras.ops.shape(x)
    if keras.config.backend() == "torch":
        out, mean, deviation = _backend.native_batch_norm(
            *(x.reshape(-1, shape[-1]), scale, offset, None, None, True, 0.0, epsilon)
        )
        variance = deviation.detach() ** -2 - epsilon
        mean, variance = mean.detach(), variance.clamp(min=0)
    else:
        rows = _backend.reshape(x, (-1, 1, 1, shape[-1]))
        out, mean, variance = _backend.compat.v1.nn.fused_batch_norm(
            *(rows, scale, offset), epsilon=epsilon, is_training=True
        )
        # It is the one of a sample, by one less than the count.
        count = keras.ops.cast(keras.ops.shape(rows)[0], "float32")
        variance = variance * ((count - 1) / count)
    return keras.ops.reshape(out, shape), mean, variance


def draws_from_one_generator():
    """Whether Keras's Dropout leaves its layer's seed aside: under torch it does."""
    return keras.config.backend() == "torch"


def version():
    """Return the active backend's version."""
    return _backend.__version__
