"""Large Kernel Convolutional Attention for Keras 3 (arXiv 2401.05738).

from keras_lkca import LKCAViT

model = LKCAViT.from_preset("lkca_vit_tiny", num_classes=100)
"""

import pathlib
import sys

__version__ = "0.1.0"

# The command line imports Keras later, when a command is to run: so `--help` answers at
# once, and TensorFlow is silenced before it loads.
if not (
    (sys.argv[:1] == ["-m"] and "keras_lkca" in sys.orig_argv)
    or pathlib.PurePath(*sys.argv[:1]).name in ("keras-lkca", "keras-lkca.exe")
):
    from keras_lkca import data, deploy, interpret, layers, models, ops, training
    from keras_lkca.deploy import predict
    from keras_lkca.interpret import count_macs
    from keras_lkca.layers import LKCA
    from keras_lkca.models import (
        LKCANet,
        LKCASegmenter,
        LKCAViT,
        ViT,
        list_presets,
    )

__all__ = [
    "LKCA",
    "LKCANet",
    "LKCASegmenter",
    "LKCAViT",
    "ViT",
    "count_macs",
    "data",
    "deploy",
    "interpret",
    "layers",
    "list_presets",
    "models",
    "ops",
    "predict",
    "training",
]
