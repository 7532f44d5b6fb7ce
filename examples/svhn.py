"""Train a compact LKCA vision transformer on Street View House Numbers.

    KERAS_BACKEND=jax python examples/svhn.py --recipe quick

KERAS_BACKEND is tensorflow, jax or torch. The images come from a file of arrays or
from TensorFlow Datasets, see keras_lkca.data.load. Writes the best and the last model,
the history, metrics and pictures into --output.
"""

from keras_lkca.training import main

if __name__ == "__main__":
    main("svhn_cropped", __doc__)
