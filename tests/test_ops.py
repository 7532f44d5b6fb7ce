import shutil

import keras
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_lkca.ops import attention_matrix, large_kernel_conv
from keras_lkca.ops.spectral import fft_length

METHODS = ("depthwise", "toeplitz", "hybrid", "spectral", "auto")

# (batch, height, width, channels), (kh, kw, groups)
CASES = {
    "global": ((2, 4, 4, 6), (7, 7, 1)),
    "non-square": ((2, 3, 5, 6), (5, 9, 1)),
    "tall": ((2, 6, 2, 6), (11, 3, 2)),
    "row": ((2, 1, 6, 4), (1, 11, 1)),
    "column": ((2, 6, 1, 4), (11, 1, 2)),
    "one token": ((2, 1, 1, 4), (1, 1, 4)),
    "local": ((2, 5, 6, 6), (3, 3, 1)),
    "local wide": ((2, 5, 6, 6), (1, 5, 3)),
    "pointwise": ((2, 3, 4, 6), (1, 1, 6)),
    "larger than global": ((2, 3, 4, 6), (9, 11, 2)),
    "larger one way": ((2, 3, 4, 6), (9, 3, 1)),
    "two groups": ((2, 4, 3, 6), (7, 5, 2)),
    "group a channel": ((2, 4, 3, 6), (7, 5, 6)),
    "batch of one": ((1, 4, 3, 2), (7, 5, 1)),
}


def draw(rng, *shapes):
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def check_against_reference(shape, kernel_shape, method, jit=False, seed=0):
    rng = np.random.default_rng(seed)
    inputs, kernel, upstream = draw(rng, shape, kernel_shape, shape)
    out, by_inputs, by_kernel = reference.gradients(
        lambda x, k: large_kernel_conv(x, k, method), (inputs, kernel), upstream, jit
    )
    expected = (
        reference.conv(inputs, kernel),
        *reference.conv_gradients(inputs, kernel, upstream),
    )
    for actual, wanted in zip((out, by_inputs, by_kernel), expected, strict=True):
        assert actual.shape == wanted.shape
        np.testing.assert_allclose(
            actual, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max() + 1e-6
        )


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch(method):
    inputs, kernel = np.zeros((0, 4, 6, 2), "float32"), np.ones((7, 11, 1), "float32")
    assert tuple(large_kernel_conv(inputs, kernel, method).shape) == (0, 4, 6, 2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_the_definition(case, method):
    check_against_reference(*CASES[case], method)


@pytest.mark.parametrize("method", [*METHODS, "auto"])
@pytest.mark.parametrize("case", ["non-square", "two groups", "larger one way"])
def test_the_same_when_compiled(case, method):
    check_against_reference(*CASES[case], method, jit=True)


@pytest.mark.skipif(
    keras.config.backend() != "torch" or not shutil.which("g++"),
    reason="torch's compiler writes C++",
)
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_torch_compiles_the_transforms_of_any_batch(rng):
    import torch

    mix = torch.eye(4)  # what comes before decides how the numbers lie in memory

    def function(inputs, kernel):
        out = large_kernel_conv(inputs @ mix, kernel, "spectral")
        return (out.reshape(-1, 4) @ mix).reshape(out.shape)

    arrays = draw(rng, (3, 4, 5, 4), (7, 9, 1))
    inputs, kernel = (torch.tensor(array, requires_grad=True) for array in arrays)
    torch.compiler.reset()
    out = torch.compile(function, dynamic=True)(inputs, kernel)
    out.backward(torch.ones_like(out))
    expected = reference.conv_gradients(*arrays, np.ones((3, 4, 5, 4)))
    for tensor, wanted in zip((inputs, kernel), expected, strict=True):
        np.testing.assert_allclose(tensor.grad, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="a tool of torch")
@pytest.mark.filterwarnings("ignore")  # what the tracer says of Keras
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_a_trace_takes_any_batch(method, groups, rng):
    import torch

    inputs, kernel = draw(rng, (3, 4, 5, 4), (9, 7, groups))
    expected = reference.conv(inputs, kernel)
    kernel = torch.from_numpy(kernel)
    inputs = torch.from_numpy(inputs)
    for training in (False, True):
        with torch.set_grad_enabled(training):
            trace = torch.jit.trace(
                lambda x: large_kernel_conv(x, kernel, method), inputs[:1]
            )
            out = trace(inputs.requires_grad_(training))
        np.testing.assert_allclose(out.detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="a tool of torch")
@pytest.mark.filterwarnings("ignore")
def test_depthwise_takes_any_grid_when_traced_or_exported(rng):
    """The kernel is larger than the example's grid needs, not than the other's."""
    import torch

    (kernel,) = draw(rng, (7, 9, 2))
    arrays = draw(rng, (2, 3, 4, 4), (1, 6, 8, 4))

    class Operator(torch.nn.Module):
        def forward(self, x):
            return large_kernel_conv(x, torch.from_numpy(kernel), "depthwise")

    dims = {axis: torch.export.Dim(name) for axis, name in enumerate("bhw")}
    example = torch.from_numpy(arrays[0])
    exported = torch.export.export(Operator(), (example,), dynamic_shapes=(dims,))
    for call in (torch.jit.trace(Operator(), example), exported.module()):
        for array in arrays:
            np.testing.assert_allclose(
                call(torch.from_numpy(array)),
                reference.conv(array, kernel),
                rtol=1e-5,
                atol=1e-5,
            )


@pytest.mark.parametrize("groups", [1, 3, 12])
@pytest.mark.parametrize("kernel_shape", [(39, 33), (7, 5), (61, 1)])
def test_the_methods_agree(kernel_shape, groups, rng):
    """On a grid that is no power of two, too large for the loops' patience."""
    inputs, kernel, upstream = draw(
        rng, (2, 20, 17, 12), (*kernel_shape, groups), (2, 20, 17, 12)
    )
    first = None
    for method in METHODS:
        results = reference.gradients(
            lambda x, k, method=method: large_kernel_conv(x, k, method),
            (inputs, kernel),
            upstream,
        )
        first = first or results
        for actual, wanted in zip(results, first, strict=True):
            np.testing.assert_allclose(
                actual, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max()
            )


@pytest.mark.parametrize("training", [False, True])
def test_the_pass_changes_no_number(training, rng):
    inputs, kernel = draw(rng, (3, 5, 4, 6), (9, 7, 1))
    out = large_kernel_conv(inputs, kernel, "toeplitz", training=training)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(out),
        reference.conv(inputs, kernel),
        rtol=1e-5,
        atol=1e-5,
    )


# JAX compiles every shape anew.
@settings(
    deadline=None,
    max_examples=12 if keras.config.backend() == "jax" else 25,
    derandomize=True,
)
@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    half_kernel=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    groups=st.integers(1, 4),
    group_channels=st.integers(1, 3),
    seed=st.integers(0, 99),
    method=st.sampled_from(METHODS),
)
def test_any_shape(grid, half_kernel, groups, group_channels, seed, method):
    kernel_shape = (2 * half_kernel[0] + 1, 2 * half_kernel[1] + 1, groups)
    check_against_reference((2, *grid, groups * group_channels), kernel_shape, method)


@pytest.mark.parametrize("case", CASES)
def test_attention_matrix_equals_the_definition(case, rng):
    (_, height, width, _), kernel_shape = CASES[case]
    (kernel,) = draw(rng, kernel_shape)
    matrix = keras.ops.convert_to_numpy(attention_matrix(kernel, height, width))
    np.testing.assert_array_equal(matrix, reference.matrix(kernel, height, width))


def test_attention_matrix_applies_the_operator(rng):
    inputs, kernel = draw(rng, (2, 3, 4, 6), (5, 7, 2))
    matrix = keras.ops.convert_to_numpy(attention_matrix(kernel, 3, 4))
    tokens = inputs.reshape(2, 12, 2, 3)
    mixed = np.einsum("gqk,bkgc->bqgc", matrix, tokens).reshape(inputs.shape)
    out = large_kernel_conv(inputs, kernel)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(out), mixed, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes_keep_the_input_s_dtype_and_have_gradients(dtype, method, rng):
    if dtype == "float64" and keras.config.backend() == "jax":
        pytest.skip("JAX has no float64 unless it is enabled for the whole process")
    inputs, kernel, upstream = draw(rng, (2, 4, 3, 4), (7, 5, 2), (2, 4, 3, 4))

    def cast_and_apply(x, k):
        x = keras.ops.cast(x, dtype)
        out = large_kernel_conv(x, k, method)
        assert out.dtype == x.dtype
        return out

    out, by_inputs, by_kernel = reference.gradients(
        cast_and_apply, (inputs, kernel), upstream
    )
    tolerance = {"float16": 5e-3, "bfloat16": 4e-2}.get(dtype, 1e-5)
    expected = (
        reference.conv(inputs, kernel),
        *reference.conv_gradients(inputs, kernel, upstream),
    )
    for actual, wanted in zip((out, by_inputs, by_kernel), expected, strict=True):
        np.testing.assert_allclose(
            actual, wanted, rtol=tolerance, atol=tolerance * np.abs(wanted).max()
        )


@pytest.mark.parametrize("offset", [0.0, 3.0])
@pytest.mark.parametrize("method", ["toeplitz", "hybrid", "spectral"])
def test_half_precision_rounds_a_few_times_at_most(method, offset, rng):
    """Values and gradients, against float64 of the same rounded operands."""
    shape, kernel_shape = (1, 12, 10, 4), (23, 19, 2)
    operands = draw(rng, shape, kernel_shape, shape)
    operands[0] += offset  # a spectrum has it all in one number
    rounded = [
        keras.ops.convert_to_numpy(
            keras.ops.cast(keras.ops.cast(x, "bfloat16"), "float32")
        )
        for x in map(keras.ops.convert_to_tensor, operands)
    ]
    inputs, kernel, upstream = rounded
    found = reference.gradients(
        lambda x, k: large_kernel_conv(keras.ops.cast(x, "bfloat16"), k, method),
        *((inputs, kernel), upstream),
    )
    wide = [x.astype("float64") for x in rounded]
    exact = reference.conv(*wide[:2]), *reference.conv_gradients(*wide)
    for actual, wanted in zip(found, exact, strict=True):
        error = np.sqrt(np.mean((actual - wanted) ** 2) / np.mean(wanted**2))
        assert error < 8e-3  # to round once is 1.7e-3


def test_half_precision_is_relative_to_the_largest_of_a_column(rng):
    """One token a thousand times as large spoils its column no further than that."""
    inputs = rng.normal(size=(1, 16, 16, 4)).astype("float32")
    inputs[0, 3, 5] = 1000
    identity = np.zeros((31, 31, 1), "float32")
    identity[15, 15] = 1
    inputs = keras.ops.cast(keras.ops.convert_to_tensor(inputs), "bfloat16")
    outputs = large_kernel_conv(inputs, identity, "hybrid")
    error = abs(
        keras.ops.convert_to_numpy(keras.ops.cast(outputs, "float32"))
        - keras.ops.convert_to_numpy(keras.ops.cast(inputs, "float32"))
    )
    assert error[:, :, 5].max() < 1000 * 2**-8
    assert np.delete(error, 5, axis=2).max() < 0.05


@pytest.mark.parametrize("method", ["depthwise", "auto"])
def test_dynamic_height_and_width(method, rng):
    (kernel,) = draw(rng, (5, 5, 2))
    images = keras.Input((None, None, 4))
    model = keras.Model(images, large_kernel_conv(images, kernel, method))
    assert model.output_shape == (None, None, None, 4)
    for shape in [(2, 3, 4, 4), (1, 6, 2, 4)]:
        (inputs,) = draw(rng, shape)
        np.testing.assert_allclose(
            model.predict(inputs, verbose=0),
            reference.conv(inputs, kernel),
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize("method", METHODS)
def test_dynamic_batch_in_a_functional_model(method, rng):
    (kernel,) = draw(rng, (7, 9, 2))
    images = keras.Input((4, 5, 4))
    model = keras.Model(images, large_kernel_conv(images, kernel, method))
    assert model.output_shape == (None, 4, 5, 4)
    for batch in (1, 3):
        (inputs,) = draw(rng, (batch, 4, 5, 4))
        np.testing.assert_allclose(
            model.predict(inputs, verbose=0),
            reference.conv(inputs, kernel),
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize(
    ("shape", "kernel_shape", "method", "message"),
    [
        ((4, 4, 6), (7, 7, 1), "auto", r"`inputs` must have rank 4.*\(4, 4, 6\)"),
        ((2, 4, 4, 6), (7, 7), "auto", r"`kernel` must have rank 3.*\(7, 7\)"),
        ((2, 4, 4, 6), (6, 7, 1), "auto", r"odd extents.*\(6, 7, 1\)"),
        ((2, 4, 4, 6), (7, 4, 1), "auto", r"odd extents.*\(7, 4, 1\)"),
        ((2, 4, 4, 6), (7, 7, 4), "auto", r"divide the channels.*\(7, 7, 4\)"),
        ((2, 4, 4, 6), (7, 7, 0), "auto", r"`kernel` must have.*\(7, 7, 0\)"),
        ((2, 4, 4, 6), (7, 7, 1), "fourier", r"`method` must be.*'fourier'"),
    ],
)
def test_bad_operands(shape, kernel_shape, method, message):
    with pytest.raises(ValueError, match=message):
        large_kernel_conv(np.ones(shape, "f4"), np.ones(kernel_shape, "f4"), method)


def test_integers_are_refused():
    with pytest.raises(ValueError, match="floating-point dtype.*uint8"):
        large_kernel_conv(np.ones((1, 2, 2, 1), "uint8"), np.ones((3, 3, 1), "f4"))


@pytest.mark.parametrize("method", ["toeplitz", "hybrid", "spectral"])
def test_a_static_grid_is_needed(method):
    with pytest.raises(ValueError, match=f"'{method}' needs a static.*'depthwise'"):
        large_kernel_conv(keras.Input((None, 4, 2)), np.ones((3, 3, 1), "f4"), method)


def test_a_functional_model_of_the_operator_is_saved(tmp_path, rng):
    images, kernel = keras.Input((4, 5, 4)), keras.Input((9, 2), batch_size=7)
    outputs = large_kernel_conv(images, kernel, "spectral")
    model = keras.Model([images, kernel], outputs)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    arrays = draw(rng, (7, 4, 5, 4), (7, 9, 2))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(loaded(arrays)),
        reference.conv(*arrays),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("size", range(1, 300, 7))
def test_fft_length(size):
    length = fft_length(size)
    assert length >= size and length % 2 == 0
    rest = length
    for factor in (2, 3, 5):
        while rest % factor == 0:
            rest //= factor
    assert rest == 1


@pytest.mark.parametrize("size", [0, -1, 2.0, None])
def test_attention_matrix_bad_grid(size):
    kernel = np.ones((3, 3, 1), "float32")
    with pytest.raises(ValueError, match="`height` must be a positive integer"):
        attention_matrix(kernel, size, 3)
    with pytest.raises(ValueError, match="`width` must be a positive integer"):
        attention_matrix(kernel, 3, size)


def test_attention_matrix_bad_kernel():
    with pytest.raises(ValueError, match=r"odd extents.*\(2, 3, 1\)"):
        attention_matrix(np.ones((2, 3, 1), "float32"), 3, 3)
