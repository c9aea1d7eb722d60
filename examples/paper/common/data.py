"""MNIST, Fashion-MNIST and CIFAR-10 from their original files, fetched where they are missing."""

import gzip
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pooch


class Dataset(NamedTuple):
    """Images (n, height, width, channels), uint8 as published, and their classes (n,), int32."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


class Source(NamedTuple):
    """A published data set.

    Attributes:
        parse: Makes the Dataset of the contents of `files`, in their order.
        files: The MD5 of every file that is read, by its name.
        urls: Where they are published; one address is tried after another.
        archive: Name and MD5 of the tar file that has them, if they are not published one by one.
        folder: The folder that they have in it.
    """

    parse: Callable[[list[bytes]], Dataset]
    files: dict[str, str]
    urls: tuple[str, ...]
    archive: tuple[str, str] | None = None
    folder: str = ""


def load(name, data_dir=None):
    """A data set, as it is published.

    Its files are looked for in `data_dir/name` and `data_dir`, then fetched into `data_dir/name`.
    Nothing is read whose MD5 is not the published one.

    Args:
        name: "mnist", "fashion_mnist" or "cifar10".
        data_dir: A folder; by default that of the environment variable P2T_DATA_DIR, else the
            user's cache.

    Returns:
        A Dataset of 28 x 28 x 1 or 32 x 32 x 3 pixels, uint8.

    Raises:
        ValueError: If there is no such data set, or a file of the right name has a wrong MD5.
        FileNotFoundError: If files are missing and cannot be fetched.
    """
    if name not in SOURCES:
        raise ValueError(f"name: there is no data set {name!r}; there are {', '.join(SOURCES)}.")
    source = SOURCES[name]
    root = Path(data_dir or os.environ.get("P2T_DATA_DIR") or pooch.os_cache("p2t_jax"))
    found = _read(name, source, root)
    if missing := [file for file in source.files if file not in found]:
        _fetch(name, source, root, missing)
        found = _read(name, source, root)
    return source.parse([found[file] for file in source.files])


def validation_split(dataset, n, seed=0):
    """Holds back `n` training images, drawn at random, in place of the test images."""
    total = len(dataset.train_images)
    if not 0 < n < total:
        raise ValueError(f"n: give a number of images from 1 to {total - 1}, not {n}.")
    held, kept = np.split(np.random.default_rng(seed).permutation(total), [n])
    images, labels = dataset.train_images, dataset.train_labels
    return Dataset(images[kept], labels[kept], images[held], labels[held])


def channel_statistics(images):
    """Mean and standard deviation of every channel of uint8 images, float32 (channels,)."""
    axes = tuple(range(images.ndim - 1))
    mean = images.mean(axes, dtype=np.float64)
    mean_of_squares = np.square(images, dtype=np.uint16).mean(axes, dtype=np.float64)
    return np.float32(mean), np.float32(np.sqrt(mean_of_squares - mean**2))


def standardize(images, mean, std):
    """`(images - mean) / std` in float32, of NumPy's or JAX's images."""
    return (images.astype(np.float32) - mean) / std


def _places(name, source, root):
    """The folders that may have the files of a data set."""
    return dict.fromkeys(
        root / place for place in (Path(name, source.folder), source.folder, name, "")
    )


def _read(name, source, root):
    """The contents of those files of a data set that are there, by name."""
    found, wrong = {}, []
    for file, md5 in source.files.items():
        others = []
        for path in (place / file for place in _places(name, source, root)):
            if not path.is_file():
                continue
            content = path.read_bytes()
            actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if actual == md5:
                found[file] = content
                break
            others.append(f"{path} has MD5 {actual}, {name}'s has {md5}")
        else:
            wrong += others
    if wrong:
        raise ValueError(
            f"data_dir: not the files that were published: {'; '.join(wrong)}. They are damaged or "
            f"belong to another data set. Remove them, or put the right ones into {root / name}."
        )
    return found


def _fetch(name, source, root, missing):
    """Downloads files into `root/name`, from the first address that has them."""
    wanted = [source.archive] if source.archive else [(f, source.files[f]) for f in missing]
    processor = None
    if source.archive:
        members = [f"{source.folder}/{file}" for file in source.files]
        processor = pooch.Untar(members=members, extract_dir=".")
    for file, md5 in wanted:
        errors = []
        for url in source.urls:
            try:
                pooch.retrieve(
                    url + file,
                    f"md5:{md5}",
                    fname=file,
                    path=root / name,
                    processor=processor,
                    progressbar=True,
                )
                break
            except (OSError, ValueError) as error:  # those of requests and of the MD5 among them
                errors.append(f"{url}{file}: {error}")
        else:
            places = ", ".join(map(str, _places(name, source, root)))
            raise FileNotFoundError(
                f"data_dir: {', '.join(missing)} of {name}: not in any of {places}, and not to be "
                "fetched:\n  " + "\n  ".join(errors) + f"\nPut {file} into {root / name}, or say "
                "with --data-dir or P2T_DATA_DIR which folder has the files."
            )


def _parse_idx(contents):
    """MNIST's format: two zero bytes, dtype (8: uint8), rank, sizes (big-endian), values."""
    arrays = []
    for data in map(gzip.decompress, contents):
        sizes = np.frombuffer(data, ">u4", data[3], offset=4)
        arrays.append(np.frombuffer(data, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes))
    train_images, train_labels, test_images, test_labels = arrays
    return Dataset(
        train_images[..., None],
        train_labels.astype(np.int32),
        test_images[..., None],
        test_labels.astype(np.int32),
    )


def _parse_cifar(contents):
    """CIFAR's Python batches; pickles, so they come here only after their MD5 was right."""
    images, labels = [], []
    for content in contents:
        batch = pickle.loads(content, encoding="bytes")
        images.append(batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(np.array(batch[b"labels"], np.int32))
    *train_images, test_images = images
    *train_labels, test_labels = labels
    return Dataset(
        np.concatenate(train_images),
        np.concatenate(train_labels),
        np.ascontiguousarray(test_images),
        test_labels,
    )


SOURCES = {
    "mnist": Source(
        _parse_idx,
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        # The publisher's own host often refuses, so its mirrors come first.
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "http://yann.lecun.com/exdb/mnist/",
        ),
    ),
    "fashion_mnist": Source(
        _parse_idx,
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    ),
    "cifar10": Source(
        _parse_cifar,
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        ("https://www.cs.toronto.edu/~kriz/",),
        archive=("cifar-10-python.tar.gz", "c58f30108f718f92721af3bb9e74349a"),
        folder="cifar-10-batches-py",
    ),
}
