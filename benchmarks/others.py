"""What a Keras user would take instead: the two small models of keras.io's examples.

And a backbone of softmax attention for segmenters. Those of keras.io are written anew
from their papers, at the sizes and settings of https://keras.io/examples/vision/cct/
and https://keras.io/examples/vision/convmixer/.
"""

import keras
from keras import layers

from keras_lkca.layers import PositionEmbedding, StochasticDepth
from keras_lkca.models import attention_block, blocks
from keras_lkca.training import Recipe


def cct(input_shape=(32, 32, 3), num_classes=10):
    """Build the Compact Convolutional Transformer, arXiv 2104.05704, of 0.4 M weights.

    Two convolutions with pooling make the tokens, two blocks of softmax attention mix
    them, and a learned weight of each token pools them.
    """
    images = keras.Input(input_shape)
    x = layers.Rescaling(1 / 255)(images)
    for filters in (64, 128):
        x = layers.Conv2D(
            *(filters, 3),
            use_bias=False,
            activation="relu",
            kernel_initializer="he_normal",
        )(x)
        x = layers.MaxPooling2D(3, 2, "same")(layers.ZeroPadding2D(1)(x))
    x = PositionEmbedding("random_uniform")(x)
    x = layers.Reshape((-1, 128))(x)
    for rate in (0.0, 0.1):
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        y = layers.MultiHeadAttention(2, 128, dropout=0.1)(y, y)
        x = x + StochasticDepth(rate)(y)
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        for _ in range(2):
            y = layers.Dropout(0.1)(layers.Dense(128, "gelu")(y))
        x = x + StochasticDepth(rate)(y)
    x = layers.LayerNormalization(epsilon=1e-5)(x)
    weights = layers.Softmax(axis=1)(layers.Dense(1)(x))
    x = layers.Flatten()(layers.Dot(1)([weights, x]))
    return keras.Model(images, layers.Dense(num_classes)(x), name="cct")


def conv_mixer(input_shape=(32, 32, 3), num_classes=10):
    """Build ConvMixer-256/8, arXiv 2201.09792: kernels of 5 x 5 on 2 x 2 patches."""

    def activated(x):
        return layers.BatchNormalization()(layers.Activation("gelu")(x))

    images = keras.Input(input_shape)
    x = layers.Rescaling(1 / 255)(images)
    x = activated(layers.Conv2D(256, 2, 2)(x))
    for _ in range(8):
        x = x + activated(layers.DepthwiseConv2D(5, padding="same")(x))
        x = activated(layers.Conv2D(256, 1)(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, layers.Dense(num_classes)(x), name="conv_mixer")


def attention_net(
    input_shape,
    embed_dim=80,
    depth=6,
    num_heads=4,
    image_mean=None,
    image_std=None,
    drop_path_rate=0.1,
):
    """Build a backbone like `lkca_net_03m` on tokens of 4 x 4, with softmax attention.

    Stem and positions are LKCANet's; each block has an MLP of `embed_dim` channels,
    so that it has as many weights as a block of LKCANet without its kernels.
    """
    policy = keras.dtype_policies.get(keras.config.dtype_policy())
    images, x = blocks.normalized(input_shape, image_mean, image_std, policy)
    x = blocks.conv_stem(x, 4, (32, 64), 2, embed_dim, policy)
    x = blocks.positions(x, 0.02, policy)
    grid = x.shape[1:]
    x = layers.Reshape((-1, embed_dim))(x)
    for index in range(depth):
        x = attention_block(
            *(x, num_heads),
            mlp_ratio=1,
            drop_path_rate=drop_path_rate,
            name=f"block_{index}",
        )
    return keras.Model(images, layers.Reshape(grid)(x), name="attention_net")


MODELS = {"cct": cct, "conv_mixer": conv_mixer}


def compile_as_published(model):
    """Compile a model as its example does: AdamW at one rate, light weight decay."""
    smoothing = 0.1 if model.name == "cct" else 0.0
    model.compile(
        optimizer=keras.optimizers.AdamW(1e-3, weight_decay=1e-4),
        loss=keras.losses.CategoricalCrossentropy(True, label_smoothing=smoothing),
        metrics=[
            keras.metrics.CategoricalAccuracy(name="accuracy"),
            keras.metrics.TopKCategoricalAccuracy(5, name="top5"),
        ],
    )


def recipe(epochs):
    """Return what is left to a recipe: the passes, and what is done to the images.

    They are mirrored alone: the examples crop 32 x 32 out of 32 x 32, which is all.
    """
    return Recipe.quick(epochs=epochs, crop_padding=0)
