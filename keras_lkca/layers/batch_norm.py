import keras

from keras_lkca.backend import batch_norm


@keras.saving.register_keras_serializable(package="keras_lkca")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's BatchNormalization, trained by the backend's own operation for it.

    The same numbers, within rounding, and the same weights. Under torch and TensorFlow
    a training step reads and writes the feature map a few times in place of some
    twenty; in half precision it is kept as such for the gradient. Inference, JAX, other
    axes than the last, masks, `renorm` and `synchronized` are Keras's.

    Args:
        **kwargs: Those of `keras.layers.BatchNormalization`.

    Call arguments:
        inputs: Tensor `(batch, ..., channels)`.
        training: Whether to normalise by the batch's own mean and variance.
        mask: As for Keras's layer.

    Input shape:
        `(batch, ..., channels)`.

    Output shape:
        The input shape.

    Raises:
        ValueError: As Keras's layer does.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.layers import BatchNormalization
    >>> layer = BatchNormalization(momentum=0.9)
    >>> tuple(layer(np.ones((16, 8, 8, 4), "float32"), training=True).shape)
    (16, 8, 8, 4)

    References:
        - Ioffe and Szegedy, "Batch Normalization", [arXiv 1502.03167](
          https://arxiv.org/abs/1502.03167), algorithm 1.
    """

    def call(self, inputs, training=None, mask=None):
        """Normalise, and in training keep moving averages of mean and variance."""
        rank = len(inputs.shape)
        last = self.axis in (-1, rank - 1, [-1], [rank - 1])
        simple = last and self.scale and self.center
        simple = simple and self.variable_dtype == "float32"
        simple = simple and not (self.renorm or self.synchronized)
        if not (training and self.trainable and simple) or mask is not None:
            return super().call(inputs, training=training, mask=mask)
        found = batch_norm(inputs, self.gamma, self.beta, self.epsilon)
        if found is None:
            return super().call(inputs, training=training)
        outputs, mean, variance = found
        for moving, value in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            moving.assign(moving * self.momentum + value * (1.0 - self.momentum))
        return outputs
