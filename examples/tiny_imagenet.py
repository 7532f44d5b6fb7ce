"""Train a compact LKCA vision transformer on Tiny-ImageNet.

    KERAS_BACKEND=jax python examples/tiny_imagenet.py --epochs 10

KERAS_BACKEND is tensorflow, jax or torch. --data-dir holds tiny-imagenet-200/.
Writes model.keras, metrics.json and curves.png into --output.
"""

from keras_lkca.training import main

if __name__ == "__main__":
    main("tiny_imagenet", __doc__)
