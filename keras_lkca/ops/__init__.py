"""The operator, as functions of tensors; see `large_kernel_conv`."""

from keras_lkca.ops.calibration import calibrate
from keras_lkca.ops.conv import large_kernel_conv
from keras_lkca.ops.plan import explain_plan
from keras_lkca.ops.toeplitz import attention_matrix

__all__ = ["attention_matrix", "calibrate", "explain_plan", "large_kernel_conv"]
