"""The paper's data: found, fetched, checked and parsed; its augmentation."""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import data

REAL = os.environ.get("P2T_DATA_DIR")
IDX_FILES = tuple(data.SOURCES["mnist"].files)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


def mnist_files(seed, train=5, test=3):
    """A tiny MNIST: the data set, and the files that it is published in."""
    rng = np.random.default_rng(seed)
    arrays = []
    for n in (train, test):
        arrays += [rng.integers(256, size=(n, 28, 28), dtype=np.uint8)]
        arrays += [rng.integers(10, size=n, dtype=np.uint8)]
    files = dict(zip(IDX_FILES, map(idx, arrays), strict=True))
    images, labels = [a[..., None] for a in arrays[::2]], arrays[1::2]
    return (images[0], labels[0], images[1], labels[1]), files


def cifar_files(seed, n=2):
    """A tiny CIFAR-10: the data set, and its Python batches."""
    rng = np.random.default_rng(seed)
    files, parts = {}, []
    for name in data.SOURCES["cifar10"].files:
        images = rng.integers(256, size=(n, 32, 32, 3), dtype=np.uint8)
        labels = rng.integers(10, size=n).tolist()
        planes = np.stack([images[..., c].reshape(n, -1) for c in range(3)], axis=1)
        batch = {b"labels": labels, b"data": planes.reshape(n, -1), b"batch_label": b"a part"}
        files[name] = pickle.dumps(batch, protocol=2)
        parts.append((images, labels))
    *train, test = parts
    images, labels = (np.concatenate(part) for part in zip(*train, strict=True))
    return (images, labels, *test), files


def tar(files, folder):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def write(files, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def publish(monkeypatch, tmp_path):
    """Declares files to be those of a data set; serves folders; notes what was asked for."""
    monkeypatch.delenv("P2T_DATA_DIR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    handler = partial(Handler, directory=tmp_path / "published")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()

        def declare(name, files, hosts=(), **changes):
            source = data.SOURCES[name]._replace(
                files={file: md5(content) for file, content in files.items()},
                urls=tuple(f"http://127.0.0.1:{server.server_port}/{host}/" for host in hosts),
                **changes,
            )
            monkeypatch.setitem(data.SOURCES, name, source)

        declare.host = lambda name: tmp_path / "published" / name
        declare.asked = asked
        yield declare
        server.shutdown()
        thread.join()


def assert_is(dataset, expected):
    for actual, right in zip(dataset, expected, strict=True):
        np.testing.assert_array_equal(actual, right)
    assert [a.dtype for a in dataset] == [np.uint8, np.int32, np.uint8, np.int32]


# Where files lie


@pytest.mark.parametrize("place", ["", "mnist"])
def test_mnist_is_found(publish, tmp_path, place):
    expected, files = mnist_files(0)
    publish("mnist", files)
    write(files, tmp_path / place)
    assert_is(data.load("mnist", tmp_path), expected)


@pytest.mark.parametrize(
    "place", ["", "cifar10", "cifar-10-batches-py", "cifar10/cifar-10-batches-py"]
)
def test_cifar10_is_found(publish, tmp_path, place):
    expected, files = cifar_files(0)
    publish("cifar10", files)
    write(files, tmp_path / place)
    assert_is(data.load("cifar10", str(tmp_path)), expected)


def test_the_environment_says_where(publish, tmp_path, monkeypatch):
    expected, files = mnist_files(0)
    publish("mnist", files)
    write(files, tmp_path / "mnist")
    monkeypatch.setenv("P2T_DATA_DIR", str(tmp_path))
    assert_is(data.load("mnist"), expected)


def test_files_of_the_same_names_are_told_apart(publish, tmp_path):
    mnist, fashion = mnist_files(0), mnist_files(1)
    publish("mnist", mnist[1])
    publish("fashion_mnist", fashion[1])
    write(fashion[1], tmp_path)
    write(mnist[1], tmp_path / "mnist")
    assert_is(data.load("mnist", tmp_path), mnist[0])
    assert_is(data.load("fashion_mnist", tmp_path), fashion[0])
    write(mnist[1], tmp_path / "fashion_mnist")
    assert_is(data.load("fashion_mnist", tmp_path), fashion[0])


def test_a_wrong_file_is_refused_and_left_alone(publish, tmp_path):
    _, right = mnist_files(0)
    _, wrong = mnist_files(1)
    publish("mnist", right, hosts=["mirror"])
    write(right, publish.host("mirror"))
    write(right | {IDX_FILES[1]: wrong[IDX_FILES[1]]}, tmp_path)
    with pytest.raises(ValueError, match=r"^data_dir: not the files that were pub") as error:
        data.load("mnist", tmp_path)
    assert md5(wrong[IDX_FILES[1]]) in str(error.value)
    assert md5(right[IDX_FILES[1]]) in str(error.value)
    assert IDX_FILES[0] not in str(error.value)
    assert (tmp_path / IDX_FILES[1]).read_bytes() == wrong[IDX_FILES[1]]


def test_a_pickle_is_not_opened_before_its_md5_is_right(publish, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    _, files = cifar_files(0)
    publish("cifar10", files)
    write(files | {"data_batch_3": pickle.dumps(Trap())}, tmp_path)
    with pytest.raises(ValueError, match="data_batch_3"):
        data.load("cifar10", tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_an_unknown_name(tmp_path):
    with pytest.raises(ValueError, match=r"^name: there is no data set 'svhn'; there are mnist, "):
        data.load("svhn", tmp_path)


# Fetching


def test_missing_files_are_fetched_once(publish, tmp_path):
    expected, files = mnist_files(0)
    publish("mnist", files, hosts=["mirror"])
    write(files, publish.host("mirror"))
    write({IDX_FILES[0]: files[IDX_FILES[0]]}, tmp_path / "mine")
    for _ in range(2):
        assert_is(data.load("mnist", tmp_path / "mine"), expected)
    assert sorted(publish.asked) == sorted(f"/mirror/{file}" for file in IDX_FILES[1:])
    assert {path.name for path in (tmp_path / "mine" / "mnist").iterdir()} == set(IDX_FILES[1:])


def test_without_a_folder_the_users_cache_keeps_them(publish, tmp_path, monkeypatch):
    expected, files = mnist_files(0)
    publish("mnist", files, hosts=["mirror"])
    write(files, publish.host("mirror"))
    monkeypatch.setattr(data.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    assert_is(data.load("mnist"), expected)
    assert (tmp_path / "cache" / "p2t_jax" / "mnist" / IDX_FILES[0]).exists()


def test_one_mirror_after_another_is_tried(publish, tmp_path):
    expected, files = mnist_files(0)
    publish("mnist", files, hosts=["gone", "forged", "good"])
    write(mnist_files(1)[1], publish.host("forged"))
    write(files, publish.host("good"))
    assert_is(data.load("mnist", tmp_path / "mine"), expected)


def test_cifar10_is_fetched_and_unpacked(publish, tmp_path):
    expected, files = cifar_files(0)
    archive = tar(files | {"readme.html": b"not needed"}, "cifar-10-batches-py")
    publish("cifar10", files, hosts=["alex"], archive=("cifar.tar.gz", md5(archive)))
    write({"cifar.tar.gz": archive}, publish.host("alex"))
    assert_is(data.load("cifar10", tmp_path / "mine"), expected)
    unpacked = tmp_path / "mine" / "cifar10" / "cifar-10-batches-py"
    assert {path.name for path in unpacked.iterdir()} == set(files)
    (unpacked / "data_batch_2").unlink()
    assert_is(data.load("cifar10", tmp_path / "mine"), expected)
    assert publish.asked == ["/alex/cifar.tar.gz"]


def test_nothing_forged_is_kept(publish, tmp_path):
    _, files = cifar_files(0)
    archive = tar(files, "cifar-10-batches-py")
    publish("cifar10", files, hosts=["forged"], archive=("cifar.tar.gz", md5(archive)))
    write({"cifar.tar.gz": archive + b"!"}, publish.host("forged"))
    with pytest.raises(FileNotFoundError, match="hash"):
        data.load("cifar10", tmp_path / "mine")
    assert not [path for path in (tmp_path / "mine").rglob("*") if path.is_file()]


def test_neither_found_nor_fetched(publish, tmp_path):
    _, files = mnist_files(0)
    publish("mnist", files, hosts=["gone", "also_gone"])
    write({IDX_FILES[0]: files[IDX_FILES[0]]}, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^data_dir: ") as error:
        data.load("mnist", tmp_path)
    message = str(error.value)
    assert IDX_FILES[0] not in message
    for part in (*IDX_FILES[1:], str(tmp_path / "mnist"), "/gone/", "/also_gone/", "404"):
        assert part in message
    assert "--data-dir or P2T_DATA_DIR" in message


# The published data, where it is at hand


@pytest.mark.skipif(not REAL, reason="P2T_DATA_DIR does not say where the data sets are")
@pytest.mark.parametrize(
    ("name", "train", "pixels"),
    [
        ("mnist", 60000, (28, 28, 1)),
        ("fashion_mnist", 60000, (28, 28, 1)),
        ("cifar10", 50000, (32, 32, 3)),
    ],
)
def test_the_published_files(name, train, pixels, monkeypatch):
    monkeypatch.setitem(data.SOURCES, name, data.SOURCES[name]._replace(urls=()))
    try:
        dataset = data.load(name, REAL)
    except FileNotFoundError:
        pytest.skip(f"P2T_DATA_DIR has no {name}")
    assert dataset.train_images.shape == (train, *pixels)
    assert dataset.test_images.shape == (10000, *pixels)
    assert np.bincount(dataset.test_labels).shape == (10,)
    if name != "mnist":  # the only one whose classes differ in size
        assert set(np.bincount(dataset.train_labels)) == {train // 10}
        assert set(np.bincount(dataset.test_labels)) == {1000}


# What is made of a data set


def small_dataset(n=40):
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(n, 4, 4, 3), dtype=np.uint8)
    labels = np.arange(n, dtype=np.int32)
    return data.Dataset(images, labels, images[:7] // 2, labels[:7])


def test_a_validation_split_holds_back_training_images():
    dataset = small_dataset()
    split = data.validation_split(dataset, 10, seed=3)
    assert len(split.train_images) == len(split.train_labels) == 30
    assert len(split.test_images) == len(split.test_labels) == 10
    labels = np.concatenate([split.train_labels, split.test_labels])
    images = np.concatenate([split.train_images, split.test_images])
    np.testing.assert_array_equal(np.sort(labels), dataset.train_labels)
    np.testing.assert_array_equal(images, dataset.train_images[labels])
    assert_is(data.validation_split(dataset, 10, seed=3), split)
    other = data.validation_split(dataset, 10, seed=4)
    assert set(other.test_labels) != set(split.test_labels)


@pytest.mark.parametrize("n", [0, 40, -1])
def test_a_validation_split_leaves_something(n):
    with pytest.raises(ValueError, match=rf"^n: give a number of images from 1 to 39, not {n}"):
        data.validation_split(small_dataset(), n)


def test_standardizing_is_by_channel():
    dataset = small_dataset()
    statistics = data.channel_statistics(dataset.train_images)
    train, test = (
        data.standardize(x, *statistics) for x in (dataset.train_images, dataset.test_images)
    )
    mean, std = dataset.train_images.mean((0, 1, 2)), dataset.train_images.std((0, 1, 2))
    assert train.dtype == test.dtype == np.float32
    np.testing.assert_allclose(train.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(train.std((0, 1, 2)), 1, rtol=1e-6)
    np.testing.assert_allclose(test, (dataset.test_images - mean) / std, rtol=1e-4)

    batch = jax.jit(data.standardize)(dataset.train_images[:4], *statistics)
    assert batch.dtype == jnp.float32
    np.testing.assert_allclose(batch, train[:4], rtol=1e-5)
