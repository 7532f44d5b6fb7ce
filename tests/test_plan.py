import keras
import pytest

from keras_lkca.ops.plan import MAX_MATRIX_BYTES, choose_method, xla_on_cpu


@pytest.mark.parametrize(
    ("height", "width", "groups", "itemsize", "xla", "method"),
    [
        (8, 8, 1, 4, False, "toeplitz"),
        (32, 32, 1, 4, False, "toeplitz"),
        (64, 64, 1, 4, False, "toeplitz"),
        (128, 128, 1, 4, False, "depthwise"),
        (32, 32, 64, 4, False, "toeplitz"),
        (32, 32, 65, 4, False, "depthwise"),
        (32, 32, 128, 2, False, "toeplitz"),  # half the bytes, twice the groups
        (1, 4096, 1, 4, False, "toeplitz"),
        # XLA on a CPU compiles a depthwise convolution to something far too slow.
        (128, 128, 1, 4, True, "toeplitz"),
        (32, 32, 192, 4, True, "toeplitz"),
        # Only one method takes a dynamic grid.
        (None, 8, 1, 4, False, "depthwise"),
        (8, None, 1, 4, True, "depthwise"),
    ],
)
def test_choices(height, width, groups, itemsize, xla, method):
    assert choose_method(height, width, groups, itemsize, xla) == method


def test_the_bound_is_on_the_matrices_of_all_groups():
    assert MAX_MATRIX_BYTES == 64 * 32**4 * 4


def test_xla_on_cpu_knows_the_backend():
    on_cpu = True
    if keras.config.backend() != "torch":
        on_cpu = keras.distribution.list_devices()[0].lower().startswith("cpu")
    assert xla_on_cpu() == (keras.config.backend() != "torch" and on_cpu)
