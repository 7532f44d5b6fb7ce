"""Train a compact LKCA vision transformer on your own images.

    KERAS_BACKEND=jax python examples/own_images.py pets/ --recipe quick

FOLDER holds one folder of images a class, pets/cat/*.jpg and pets/dog/*.jpg; or folders
train/, test/ and, if you like, val/ that do. Without a test/ of its own, a fifth of the
images is held out for the test. KERAS_BACKEND is tensorflow, jax or torch. Writes the
best and the last model, the history, metrics and pictures into --output.
"""

from keras_lkca.training import main

if __name__ == "__main__":
    main(None, __doc__)
