"""Train a compact LKCA vision transformer on Tiny-ImageNet.

    KERAS_BACKEND=jax python examples/tiny_imagenet.py --recipe quick

KERAS_BACKEND is tensorflow, jax or torch. --data-dir holds the official folder,
tiny-imagenet-200/, whose layout is checked before anything is trained. Writes the best
and the last model, the history, metrics and pictures into --output.
"""

from keras_lkca.training import main

if __name__ == "__main__":
    main("tiny_imagenet", __doc__)
