"""Images in tar files, as WebDataset writes them, read by where they stand."""

import collections
import tarfile

import numpy as np

# An image's place. Of one shard, all have the same object for its path.
MEMBER = np.dtype(
    [("shard", object), ("name", object), ("offset", "int64"), ("size", "int64")]
)
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_CLASS = ".cls"
_BLOCK = 512  # of which a tar is made


def shards_of(directory):
    """Return the tar files in a folder, sorted.

    Raises:
        ValueError: If one of them is compressed.
    """
    names = sorted(path.name for path in directory.iterdir() if path.is_file())
    names = [name for name in names if not name.startswith(".")]
    shards = [name for name in names if name.lower().endswith(".tar")]
    packed = [name for name in names if name.lower().endswith(_COMPRESSED)]
    if packed:
        raise ValueError(
            f"{directory / packed[0]} is compressed, and images are read from anywhere "
            "in a shard: unpack it to a .tar, by gunzip, unxz or the like. Received: "
            f"{len(packed)} compressed of {len(packed + shards)} shards in "
            f"directory={str(directory)!r}"
        )
    return [str(directory / name) for name in shards]


def read_shards(shards, suffixes, names_file=None):
    """Find the images in tar files, and the class of each.

    Args:
        shards: Sequence of paths. Either beside each `KEY.jpg` stands a `KEY.cls` that
            holds its class, an integer; or images stand in folders of their classes.
        suffixes: Of images, in lower case.
        names_file: Path of the names of the classes that integers stand for, one a
            line; `None` where the integers are their names.

    Returns:
        A `MEMBER` array, of class folders in the order of such on a disk; int64
        labels; the classes' names; and a `Counter` of the other files' suffixes.

    Raises:
        ValueError: If a shard is damaged or without images, or a class missing.
    """
    parts = zip(*(_index(shard, suffixes) for shard in shards), strict=True)
    members, labels, others = (list(part) for part in parts)
    members, labels = np.concatenate(members), np.concatenate(labels)
    others = sum(others, collections.Counter())
    if (labels >= 0).any():
        return members, labels, _numbered(members, labels, names_file), others
    paths = list(map(_parts, members["name"]))
    for member, path in zip(members, paths, strict=True):
        if len(path) < 2:
            _without_class(member)
    names = sorted({path[0] for path in paths})
    order = sorted(range(len(paths)), key=paths.__getitem__)
    number = {name: index for index, name in enumerate(names)}
    labels = np.array([number[paths[row][0]] for row in order])
    return members[order], labels, names, others


def _index(shard, suffixes):
    """Return the images of one tar, their integers or -1, and the others' suffixes."""
    rows, classes, others, keys = [], {}, collections.Counter(), []
    names = set()
    for member, text in _files_in(shard):
        *folders, name = _parts(member.name)
        stem, _, suffix = name.rpartition(".")
        suffix = f".{suffix.lower()}" if stem else "no suffix"
        if name.startswith(".") or any(part.startswith(".") for part in folders):
            continue
        if suffix != _CLASS and suffix not in suffixes:
            others[suffix] += 1
            continue
        if not member.isreg() or member.issparse():
            raise ValueError(
                f"{shard}: {member.name} must be a file, not a link or a sparse one: "
                "write the shard anew, by tar with --dereference --hard-dereference."
            )
        key = "/".join((*folders, stem))
        if (key, suffix) in names:
            raise _twice(shard, member.name)
        names.add((key, suffix))
        if suffix == _CLASS:
            classes[key] = _integer(shard, member.name, text)
        else:
            keys.append(key)
            rows.append((shard, member.name, member.offset_data, member.size))
    if not rows:
        kinds = ", ".join(sorted(others)) or "nothing"
        raise ValueError(
            f"{shard} must hold images of a kind that Pillow reads: remove it, or "
            f"write it anew. Received: {kinds} in it"
        )
    last = {key: name for key, (_, name, *_) in zip(keys, rows, strict=True)}
    for key, (_, name, *_) in zip(keys, rows, strict=True):
        if classes and last[key] != name:
            raise _twice(shard, last[key])
    if alone := len(classes.keys() - keys):
        others[_CLASS] = alone
    labels = np.array([classes.get(key, -1) for key in keys])
    return np.array(rows, MEMBER), labels, others


def _parts(name):
    """Return the folders of a tar's member, and its name in the last of them."""
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _files_in(shard):
    """Yield a tar's files, those of classes with their text, and check its end."""
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # which keeps all of them
                if member.isdir():
                    continue
                text = None
                if member.name.lower().endswith(_CLASS):
                    file.seek(member.offset_data)
                    text = file.read(min(member.size, _BLOCK))
                    if len(text) < min(member.size, _BLOCK):
                        raise tarfile.ReadError("unexpected end of data")
                yield member, text
            file.seek(tar.offset)
            # Python stops at a header that it cannot read as it does at the end.
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError(
                    f"no header of a member and no end is at byte {tar.offset:,}"
                )
            while more := file.read(2**20):
                if any(more):
                    raise tarfile.ReadError(
                        f"more follows the end at byte {tar.offset:,}, as where tars "
                        "were joined to one file"
                    )
    except tarfile.TarError as error:
        raise ValueError(
            f"{shard} must be a whole tar, not compressed: fetch or write it anew, or "
            f"unpack it. Received: {error}"
        ) from error


def _integer(shard, name, text):
    text = text.decode("ascii", "replace").strip()
    if not text.isdecimal() or len(text) > 9:
        raise ValueError(
            f"{shard}: {name} must hold the number of a class, 0 or above, as text: "
            f"write the shard anew. Received: {text[:40]!r}"
        )
    return int(text)


def _twice(shard, name):
    return ValueError(
        f"{shard} must hold one image and at most one .cls of a key: leave out one of "
        f"them. Received: {name}, whose key is there before"
    )


def _without_class(member):
    raise ValueError(
        f"{place_of(member)} must have a class: an integer in a file of the same name "
        "that ends with .cls, in the same shard, or a folder of its class's name. "
        "Write the shard anew, or leave the image out."
    )


def _numbered(members, labels, names_file):
    """Return the names of classes that are integers, after a check."""
    lacking = np.flatnonzero(labels < 0)
    if len(lacking):
        _without_class(members[lacking[0]])
    last = labels.argmax()
    if names_file is None:
        there = np.unique(labels)
        gaps = np.flatnonzero(there != np.arange(len(there)))
        if len(gaps):
            raise ValueError(
                f"The classes of the shards must be 0 to {labels[last]}, and no image "
                f"is of class {gaps[0]}: name all classes, one a line from class 0 on, "
                "in a file classes.txt beside the shards. "
                f"Received: class {labels[last]} of {place_of(members[last])}"
            )
        return [str(number) for number in there]
    try:
        names = names_file.read_text("utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{names_file} must be a text in UTF-8: save it as such. Received: {error}"
        ) from error
    names = [name.strip() for name in names]
    if not all(names) or len(set(names)) < len(names):
        first = next(i for i, x in enumerate(names) if not x or x in names[:i])
        raise ValueError(
            f"{names_file} must hold the name of a class in each line, and none twice. "
            f"Received: {names[first]!r} in line {first + 1}"
        )
    if labels[last] >= len(names):
        raise ValueError(
            f"{names_file} must name every class, one a line from class 0 on: add the "
            f"others. Received: {len(names)} names, and class {labels[last]} of "
            f"{place_of(members[last])}"
        )
    return names


def place_of(member):
    """Return an image's shard and its name there, in words."""
    return f"{member['shard']}: {member['name']}"


def content_of(member):
    """Return the bytes of an image in a shard, which is opened for it."""
    with open(member["shard"], "rb") as file:
        file.seek(member["offset"])
        return file.read(member["size"])
