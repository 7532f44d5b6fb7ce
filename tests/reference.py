"""The operator written out as loops over its definition, in float64."""

import keras
import numpy as np


def conv(inputs, kernel):
    """Return out[b, i, j, c] as design and docstring define it."""
    batch, height, width, channels = inputs.shape
    kernel_height, kernel_width, groups = kernel.shape
    out = np.zeros(inputs.shape, "float64")
    for i, j, m, n in np.ndindex(height, width, kernel_height, kernel_width):
        k, ll = i + m - kernel_height // 2, j + n - kernel_width // 2
        if 0 <= k < height and 0 <= ll < width:
            for c in range(channels):
                weight = kernel[m, n, c // (channels // groups)]
                out[:, i, j, c] += np.float64(weight) * inputs[:, k, ll, c]
    return out


def conv_gradients(inputs, kernel, upstream):
    """Return the gradients of sum(upstream * conv) by inputs and by kernel."""
    batch, height, width, channels = inputs.shape
    kernel_height, kernel_width, groups = kernel.shape
    by_inputs = np.zeros(inputs.shape, "float64")
    by_kernel = np.zeros(kernel.shape, "float64")
    for i, j, m, n in np.ndindex(height, width, kernel_height, kernel_width):
        k, ll = i + m - kernel_height // 2, j + n - kernel_width // 2
        if 0 <= k < height and 0 <= ll < width:
            for c in range(channels):
                g = c // (channels // groups)
                by_inputs[:, k, ll, c] += upstream[:, i, j, c] * kernel[m, n, g]
                by_kernel[m, n, g] += np.sum(
                    upstream[:, i, j, c] * np.float64(inputs[:, k, ll, c])
                )
    return by_inputs, by_kernel


def matrix(kernel, height, width):
    """Return A[g, (i, j), (k, l)] entry by entry."""
    kernel_height, kernel_width, groups = kernel.shape
    out = np.zeros((groups, height * width, height * width), kernel.dtype)
    for i, j, k, ll in np.ndindex(height, width, height, width):
        m, n = k - i + kernel_height // 2, ll - j + kernel_width // 2
        if 0 <= m < kernel_height and 0 <= n < kernel_width:
            out[:, i * width + j, k * width + ll] = kernel[m, n]
    return out


def gradients(function, arrays, upstream, jit=False):
    """Return function(*arrays) and its gradients, by the active backend."""
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=jit)
        def run(*tensors):
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                out = function(*tensors)
                total = tf.reduce_sum(out * tf.cast(upstream, out.dtype))
            return out, tape.gradient(total, tensors)

        out, grads = run(*map(tf.constant, arrays))
    elif backend == "jax":
        import jax

        def run(*tensors):
            out, pullback = jax.vjp(function, *tensors)
            return out, pullback(jax.numpy.asarray(upstream, out.dtype))

        run = jax.jit(run) if jit else run
        out, grads = run(*map(jax.numpy.asarray, arrays))
    else:
        import torch

        if jit:  # traced without a break, as a compiler needs it
            torch.compiler.reset()
            function = torch.compile(function, fullgraph=True, backend="eager")
        tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
        out = function(*tensors)
        out.backward(torch.tensor(upstream, dtype=out.dtype))
        grads = [tensor.grad for tensor in tensors]
    return tuple(
        keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")) for x in (out, *grads)
    )
