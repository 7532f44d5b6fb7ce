"""The layers that the models are made of."""

from keras_lkca.layers.batch_norm import BatchNormalization
from keras_lkca.layers.dense import TokenDense
from keras_lkca.layers.fixed_conv import FixedConv
from keras_lkca.layers.lkca import LKCA
from keras_lkca.layers.patches import ClassToken, PatchEmbedding, PositionEmbedding
from keras_lkca.layers.self_attention import SelfAttention
from keras_lkca.layers.stochastic_depth import StochasticDepth

__all__ = [
    "LKCA",
    "BatchNormalization",
    "ClassToken",
    "FixedConv",
    "PatchEmbedding",
    "PositionEmbedding",
    "SelfAttention",
    "StochasticDepth",
    "TokenDense",
]
