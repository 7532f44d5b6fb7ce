"""Look inside: what a model learned, as arrays and as pictures."""

from keras_lkca.interpret.attention import attention_map, attention_rollout
from keras_lkca.interpret.fields import (
    effective_receptive_field,
    energy_areas,
    feature_map_model,
    saliency,
)
from keras_lkca.interpret.figures import (
    plot_attention_map,
    plot_equivalence,
    plot_frequency_response,
    plot_kernels,
    plot_receptive_field,
    plot_saliency,
    plot_statistics,
)
from keras_lkca.interpret.macs import Macs, count_macs, macs_by_layer
from keras_lkca.interpret.page import report
from keras_lkca.interpret.statistics import (
    frequency_response,
    kernel_statistics,
    kernels,
    mixing_layers,
    offsets,
    uniform_distance,
)

__all__ = [
    "Macs",
    "attention_map",
    "attention_rollout",
    "count_macs",
    "effective_receptive_field",
    "energy_areas",
    "feature_map_model",
    "frequency_response",
    "kernel_statistics",
    "kernels",
    "macs_by_layer",
    "mixing_layers",
    "offsets",
    "plot_attention_map",
    "plot_equivalence",
    "plot_frequency_response",
    "plot_kernels",
    "plot_receptive_field",
    "plot_saliency",
    "plot_statistics",
    "report",
    "saliency",
    "uniform_distance",
]
