"""Train a compact LKCA vision transformer on CIFAR-10.

    KERAS_BACKEND=jax python examples/cifar10.py --recipe quick

KERAS_BACKEND is tensorflow, jax or torch. The images come from a file of arrays, from
TensorFlow Datasets or from keras.datasets, see keras_lkca.data.load. Writes the best
and the last model, the history, metrics and pictures into --output.
"""

from keras_lkca.training import main

if __name__ == "__main__":
    main("cifar10", __doc__)
