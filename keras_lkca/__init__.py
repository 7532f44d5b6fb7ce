"""Large Kernel Convolutional Attention for Keras 3 (arXiv 2401.05738).

from keras_lkca import LKCAViT

model = LKCAViT.from_preset("lkca_vit_tiny", num_classes=100)
"""

from keras_lkca import data, deploy, interpret, layers, models, ops, training
from keras_lkca.deploy import predict
from keras_lkca.interpret import count_macs
from keras_lkca.layers import LKCA
from keras_lkca.models import LKCAViT, ViT, list_presets

__version__ = "0.1.0"

__all__ = [
    "LKCA",
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
