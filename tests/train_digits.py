"""What the examples do, on images that are always there. Run by the tests."""

from keras_lkca.training import main

if __name__ == "__main__":
    main("digits", __doc__)
