"""Train a compact LKCA vision transformer on CIFAR-100.

    KERAS_BACKEND=jax python examples/cifar100.py --recipe quick

KERAS_BACKEND is tensorflow, jax or torch. The images come from a file of arrays, from
TensorFlow Datasets or from keras.datasets, see keras_lkca.data.load. Without TensorFlow
installed, jax and torch train all the same. Writes the best and the last model, the
history, metrics and pictures into --output.
"""

from keras_lkca.training import main

if __name__ == "__main__":
    main("cifar100", __doc__)
