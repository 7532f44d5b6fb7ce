import keras
from keras import ops

from keras_lkca.checks import check_rate, check_seed


@keras.saving.register_keras_serializable(package="keras_lkca")
class StochasticDepth(keras.layers.Layer):
    """Drop a whole sample's residual branch at random while training.

    `out[b] = keep[b] * inputs[b] / (1 - rate)`

    with `keep[b]` drawn 0 with probability `rate`, else 1, anew for each sample. In
    inference the input passes unchanged.

    Args:
        rate: Float in [0, 1], the probability of dropping a sample.
        seed: Integer or `None`, seed of the draws.
        **kwargs: Keras's own layer arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: The residual branch, batch first.
        training: Whether samples are dropped.

    Input shape:
        `(batch, ...)`, any rank.

    Output shape:
        The input shape.

    Raises:
        ValueError: If `rate` is not in [0, 1], or `seed` no integer.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.layers import StochasticDepth
    >>> branch = np.ones((4, 8, 8, 16), "float32")
    >>> tuple(StochasticDepth(0.5, seed=0)(branch, training=True).shape)
    (4, 8, 8, 16)

    References:
        - Huang et al., "Deep Networks with Stochastic Depth", [arXiv 1603.09382](
          https://arxiv.org/abs/1603.09382), section 3.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.rate = check_rate("rate", rate)
        self.seed = check_seed(seed)
        if rate > 0:
            self.seed_generator = keras.random.SeedGenerator(self.seed)
        self.built = True

    def call(self, inputs, training=False):
        """Drop samples, or pass them on."""
        if not training or self.rate == 0:
            return inputs
        # One factor per sample, so that the feature map is read and written once.
        shape = (ops.shape(inputs)[0],) + (1,) * (len(inputs.shape) - 1)
        draws = keras.random.uniform(shape, seed=self.seed_generator)
        kept = ops.cast(draws >= self.rate, inputs.dtype)
        # At a rate of 1 none is kept, whatever it is divided by.
        return inputs * (kept / (1 - self.rate if self.rate < 1 else 1))

    def compute_output_shape(self, input_shape):
        """Return the input shape."""
        return input_shape

    def get_config(self):
        """Return the constructor's arguments."""
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
