"""The models, their sizes and their parts."""

from keras_lkca.models.adaptation import adapt
from keras_lkca.models.blocks import attention_block, lkca_block, lkca_trunk
from keras_lkca.models.image_model import ImageModel
from keras_lkca.models.levels import feature_levels
from keras_lkca.models.lkca_net import LKCANet
from keras_lkca.models.lkca_vit import LKCAViT
from keras_lkca.models.presets import PRESETS, Preset, Weights, list_presets
from keras_lkca.models.segmenter import LKCASegmenter
from keras_lkca.models.vit import ViT

__all__ = [
    "PRESETS",
    "ImageModel",
    "LKCANet",
    "LKCASegmenter",
    "LKCAViT",
    "Preset",
    "ViT",
    "Weights",
    "adapt",
    "attention_block",
    "feature_levels",
    "list_presets",
    "lkca_block",
    "lkca_trunk",
]
