"""What each method costs on an accelerator, by the rates that its maker publishes.

A roofline: what a method computes at the peak rate of products, what it moves at that
of memory, one after the other. Nothing of it is measured; `calibrate` measures.
"""

# Operations per second of products in float32 and in half precision, dense, of all
# else, and bytes per second from memory: NVIDIA's data sheets of H100 SXM, A100 80 GB
# SXM, L4 and T4, Google Cloud's pages of TPU v4, v5e and v6e, which multiply float32 as
# bfloat16. Of a TPU's vector unit none is published: a twentieth is an assumption.
RATES = {
    "gpu": {
        "NVIDIA A100": (19.5e12, 312e12, 19.5e12, 2.04e12),
        "NVIDIA H100": (67e12, 989e12, 67e12, 3.35e12),
        "NVIDIA L4": (30.3e12, 121e12, 30.3e12, 0.3e12),
        "NVIDIA T4": (8.1e12, 65e12, 8.1e12, 0.32e12),
    },
    "tpu": {
        "TPU v5e": (197e12, 197e12, 197e12 / 20, 0.82e12),
        "TPU v4": (275e12, 275e12, 275e12 / 20, 1.2e12),
        "TPU v6e": (918e12, 918e12, 918e12 / 20, 1.6e12),
    },
}
LAUNCH = 1e-5  # seconds, to start an operation
# Of each method: operations it starts; how often it reads or writes the numbers of the
# kernels' preparation, and those of a feature map. Counted in the code, forward.
COUNTS = {
    "depthwise": (3, 2, 4),
    "toeplitz": (6, 3, 6),
    "hybrid": (12, 4, 8),
    "spectral": (12, 8, 16),
}
# Which are no products of matrices: a tenth of the rate is an assumption as well.
SLOW, SHARE = ("depthwise", "spectral"), 0.1


def _constants(method, half, single_rate, half_rate, other_rate, memory_rate):
    launches, of_kernel, of_map = COUNTS[method]
    itemsize = 2 if half and method != "spectral" else 4
    rate = half_rate if half else single_rate
    if method in SLOW:
        rate = SHARE * other_rate
    moved = itemsize / memory_rate
    return [launches * LAUNCH, of_kernel * moved, 2 / rate, of_map * moved]


def _entry(name, rates, half):
    forward = {method: _constants(method, half, *rates) for method in COUNTS}
    return {
        "measured": f"not measured: from the published rates of {name}; "
        "`python -m keras_lkca calibrate` measures",
        "methods": {
            # And the gradients of the inputs and of the kernel.
            method: {"forward": each, "training": [3 * x for x in each]}
            for method, each in forward.items()
        },
    }


# Made once: the plan asks for them at every call.
_ENTRIES = {
    (device, half): [_entry(name, rates, half) for name, rates in named.items()]
    for device, named in RATES.items()
    for half in (False, True)
}


def entries(device, dtype):
    """Return the constants of `keras_lkca.ops.plan.work` for each accelerator.

    Args:
        device: `"gpu"` or `"tpu"`.
        dtype: Name of the inputs' dtype.

    Returns:
        List of entries, as `costs.json` has them.

    Example:

    >>> from keras_lkca.ops.accelerators import entries
    >>> entries("tpu", "bfloat16")[0]["measured"][:37]
    'not measured: from the published rate'
    """
    return _ENTRIES[device, "16" in dtype]
