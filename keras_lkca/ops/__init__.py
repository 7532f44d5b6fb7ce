"""The operator, as functions of tensors; see `large_kernel_conv`."""

from keras_lkca.ops.conv import large_kernel_conv
from keras_lkca.ops.toeplitz import attention_matrix

__all__ = ["attention_matrix", "large_kernel_conv"]
