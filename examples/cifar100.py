"""Train a compact LKCA vision transformer on CIFAR-100.

    KERAS_BACKEND=jax python examples/cifar100.py --epochs 10

KERAS_BACKEND is tensorflow, jax or torch. The images come through TensorFlow Datasets.
Writes model.keras, metrics.json and curves.png into --output.
"""

from keras_lkca.training import main

if __name__ == "__main__":
    main("cifar100", __doc__)
