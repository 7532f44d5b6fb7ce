"""Train a compact LKCA vision transformer on Street View House Numbers.

    KERAS_BACKEND=jax python examples/svhn.py --epochs 10

KERAS_BACKEND is tensorflow, jax or torch. The images come through TensorFlow Datasets.
Writes model.keras, metrics.json and curves.png into --output.
"""

from keras_lkca.training import main

if __name__ == "__main__":
    main("svhn_cropped", __doc__)
