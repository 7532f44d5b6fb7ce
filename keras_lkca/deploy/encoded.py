"""Image files in TensorFlow's graph, read as `keras_lkca.predict` reads them by Pillow.

TensorFlow's decoders pass over how a photograph is to be turned; its resizing crops to
whole pixels and rounds once. That a file gets the same probabilities when it is served,
the functions here follow Pillow's arithmetic; what they cannot follow they refuse.
TensorFlow turns their `if` and `while` into those of its graph.
"""

# Of EXIF's orientations: those with rows for columns, and then those to be mirrored.
_TRANSPOSED, _LEFT_RIGHT, _TOP_BOTTOM = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)
_XMP = b"http://ns.adobe.com/xap/1.0/\x00"


def read_file(tf, data, shape):
    """Return the image in a JPEG or PNG file as `read_images` does.

    Args:
        tf: The module `tensorflow`.
        data: Scalar string tensor, the file.
        shape: The (height, width, channels) to crop and resize to; 1 channel or 3.

    Returns:
        float32 tensor of this shape, whole numbers in [0, 255].
    """
    is_jpeg = tf.strings.substr(data, 0, 3) == b"\xff\xd8\xff"
    is_png = tf.strings.substr(data, 0, 8) == b"\x89PNG\r\n\x1a\n"
    _check(tf, is_jpeg | is_png, "must be JPEG or PNG files")
    if is_jpeg:
        exif, xmp = _jpeg_metadata(tf, data)
        image = _decode_jpeg(tf, data, *shape[:2])
    else:
        exif, xmp = _png_metadata(tf, data)
        image = tf.io.decode_png(data, channels=3)
    image = _turn(tf, tf.cast(image, tf.float32), _orientation(tf, exif, xmp))
    image = _fit(tf, image, *shape[:2])
    if shape[2] == 1:
        luma = tf.constant([0.299, 0.587, 0.114], tf.float64)
        luma = tf.reduce_sum(tf.cast(image, tf.float64) * luma, -1, keepdims=True)
        image = tf.cast(tf.round(luma), tf.float32)
    return tf.ensure_shape(image, shape)


def _check(tf, condition, message):
    tf.debugging.Assert(condition, [f"`image_bytes` {message}"])


def _numbers(tf, data):
    """Return the bytes of a string as integers."""
    return tf.cast(tf.io.decode_raw(data, tf.uint8), tf.int32)


def _big_endian(tf, numbers):
    """Return the number that bytes along the last axis make, the largest first."""
    total = tf.zeros_like(numbers[..., 0], tf.int64)
    for place in range(numbers.shape[-1]):
        total = total * 256 + tf.cast(numbers[..., place], tf.int64)
    return total


def _jpeg_metadata(tf, data):
    """Return a JPEG file's EXIF and XMP data, empty where it has none."""
    exif, xmp = tf.constant(b""), tf.constant(b"")
    place, marker, size = 2, 0, tf.strings.length(data)
    while marker != 0xDA and place + 4 <= size:  # until the pixels start
        head = tf.ensure_shape(_numbers(tf, tf.strings.substr(data, place, 4)), [4])
        marker = head[1]
        if head[0] != 0xFF or marker == 0xFF or marker == 0:
            marker, place = 0, place + 1  # it is padded
        elif marker == 1 or (marker >= 0xD0 and marker <= 0xD9):
            place += 2
        else:
            length = tf.maximum(256 * head[2] + head[3], 2)
            if marker == 0xE1:
                part = tf.strings.substr(data, place + 4, length - 2)
                if tf.strings.substr(part, 0, 6) == b"Exif\x00\x00":
                    exif = tf.strings.join([exif, tf.strings.substr(part, 6, length)])
                elif tf.strings.substr(part, 0, len(_XMP)) == _XMP:
                    xmp = part
            place += 2 + length
    return exif, xmp


def _png_metadata(tf, data):
    """Return a PNG file's EXIF and XMP data, empty where it has none."""
    exif, xmp = tf.constant(b""), tf.constant(b"")
    place, size = 8, tf.strings.length(data)
    while place + 12 <= size:
        head = tf.ensure_shape(_numbers(tf, tf.strings.substr(data, place, 4)), [4])
        length = tf.cast(tf.minimum(_big_endian(tf, head), 2**30), tf.int32)
        kind = tf.strings.substr(data, place + 4, 4)
        if kind == b"eXIf":
            exif = tf.strings.substr(data, place + 8, length)
        elif kind == b"iTXt" or kind == b"zTXt" or kind == b"tEXt":
            text = tf.strings.substr(data, place + 8, length)
            _check(
                tf,
                tf.strings.substr(text, 0, 21) != b"Raw profile type exif",
                "must not be PNG files with EXIF data as text",
            )
            if tf.strings.substr(text, 0, 18) == b"XML:com.adobe.xmp\x00":
                xmp = text
                _check(
                    tf,
                    tf.strings.substr(text, 18, 1) == b"\x00",
                    "must not be PNG files with compressed XMP data",
                )
        place += 12 + length
    return exif, xmp


def _orientation(tf, exif, xmp):
    """Return how an image is to be turned, by EXIF's numbers; XMP's is the second."""
    orientation = tf.constant(-1, tf.int64)
    if tf.strings.length(exif) > 0:
        orientation = _exif_orientation(tf, exif)
    if orientation < 0:
        # tiff:Orientation="6" or <tiff:Orientation>6<
        found = tf.strings.split(xmp, "tiff:Orientation")[1:]
        found = tf.strings.substr(tf.strings.join([found, "   "]), 0, 3)
        found = found[tf.strings.regex_full_match(found, '="[0-9]|>[0-9].')]
        if tf.size(found) > 0:
            digit = tf.strings.regex_replace(found[0], '[=">]', "")
            digit = tf.strings.substr(digit, 0, 1)
            orientation = tf.strings.to_number(digit, tf.int64)
    return orientation


def _exif_orientation(tf, exif):
    """Return the orientation that EXIF data holds, -1 where it holds none."""
    little = tf.strings.substr(exif, 0, 4) == b"II*\x00"
    big = tf.strings.substr(exif, 0, 4) == b"MM\x00*"
    _check(tf, little | big, "must not be files with damaged EXIF data")
    values, size = _numbers(tf, exif), tf.strings.length(exif)

    def number(part):
        return _big_endian(tf, tf.where(big, part, part[..., ::-1]))

    def bytes_at(place, count):
        return tf.ensure_shape(values[place : place + count], [count])

    orientation = tf.constant(-1, tf.int64)
    if size >= 8:
        # A count, and the entries: a tag, a kind, how many, and the value.
        start = tf.cast(tf.minimum(number(bytes_at(4, 4)), 2**30), tf.int32) + 2
        if start <= size:
            count = tf.cast(number(bytes_at(start - 2, 2)), tf.int32)
            count = tf.minimum(count, (size - start) // 12)
            entries = tf.reshape(values[start : start + 12 * count], (-1, 12))
            entries = entries[number(entries[:, :2]) == 0x0112]
            if tf.shape(entries)[0] > 0:
                entry = tf.ensure_shape(entries[0], [12])
                short = number(entry[2:4]) == 3
                _check(
                    tf,
                    short & (number(entry[4:8]) == 1),
                    "must not be files whose EXIF orientation is no single short",
                )
                orientation = number(entry[8:10])
    return orientation


def _turn(tf, image, orientation):
    """Return an image as its orientation says."""

    def one_of(numbers):
        return tf.reduce_any(orientation == tf.constant(numbers, tf.int64))

    if one_of(_TRANSPOSED):
        image = tf.transpose(image, (1, 0, 2))
    if one_of(_LEFT_RIGHT):
        image = image[:, ::-1]
    if one_of(_TOP_BOTTOM):
        image = image[::-1]
    return image


def _decode_jpeg(tf, data, height, width):
    """Return a JPEG file's pixels, as predict: small where they are to be smaller."""
    size = tf.image.extract_jpeg_shape(data)
    _check(tf, size[2] < 4, "must not be JPEG files in CMYK")
    scale = tf.minimum(size[0] // (2 * height), size[1] // (2 * width))

    def at(ratio):
        return lambda: tf.io.decode_jpeg(
            data, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE"
        )

    chosen = tf.reduce_sum(tf.cast(scale >= tf.constant([2, 4, 8]), tf.int32))
    return tf.switch_case(chosen, [at(1), at(2), at(4), at(8)])


def _fit(tf, image, height, width):
    """Return an image cropped about its centre and resized, as `ImageOps.fit`."""
    size = tf.cast(tf.shape(image)[:2], tf.float64)
    scales = size / tf.constant([height, width], tf.float64)
    if tf.reduce_any(scales != 1):
        scale = tf.reduce_min(scales)
        start = (size - scale * [height, width]) / 2
        rows = tf.shape(image)[0]
        image = _resize(tf, image, (rows, width), (1, scale), (0, start[1]))
        image = _resize(tf, image, (height, width), (scale, 1), (start[0], 0))
    return image


def _resize(tf, image, size, scales, starts):
    """Return an image resized by antialiased cubic splines, in whole numbers."""
    scales = tf.stack([tf.cast(scale, tf.float64) for scale in scales])
    starts = tf.stack([tf.cast(start, tf.float64) for start in starts])
    image = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=size,
        scale=tf.cast(1 / scales, tf.float32),
        translation=tf.cast(-starts / scales, tf.float32),
        kernel_type="keyscubic",
        antialias=True,
    )[0]
    return tf.clip_by_value(tf.floor(image + 0.5), 0, 255)
