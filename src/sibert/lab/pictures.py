"""Pictures of ten classes: scikit-learn's digits, or a data set of the user's, brought to the digits' size.

What an experiment claims should not depend on one data set. MNIST, Fashion-MNIST (and whatever else has their format)
and CIFAR-10 are read from the files that are published. Colours are averaged, a margin of two pixels is cut off where
28 is not a multiple of 8, and squares of pixels are averaged until 8 x 8 are left: networks stay as small as they are.

Shape suffixes: B = examples, P = pixels, H = height, W = width.
"""

import gzip
import lzma
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["Pictures", "Source", "from_folder", "pictures"]

TRAIN, TEST, SIDE = 1437, 360, 8
"""As many as scikit-learn has, and their size."""
IDX = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
CIFAR = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
CIFAR_RECORD = 1 + 3 * 32 * 32
OPENERS: dict[str, Callable[..., object]] = {"": open, ".gz": gzip.open, ".xz": lzma.open}


@dataclass(frozen=True)
class Pictures:
    """8 x 8 pictures, each pixel shifted to mean 0 over the training pictures, all in units of their deviation before.

    Attributes:
        train_BP: For training, 1437.
        train_B: Their classes.
        test_BP: For testing, 360.
        test_B: Their classes.
    """

    train_BP: Tensor
    train_B: Tensor
    test_BP: Tensor
    test_B: Tensor


@dataclass
class Source:
    """Where `pictures` takes them from.

    Attributes:
        folder: Of the user's files; None = scikit-learn's digits.
        used: Whether anybody has asked.
    """

    folder: Path | None = None
    used: bool = False


_SOURCE: ContextVar[Source] = ContextVar("source", default=Source())  # noqa: B039


@contextmanager
def from_folder(folder: Path | None) -> Iterator[Source]:
    """Let `pictures` read a folder.

    Args:
        folder: With the files of MNIST, Fashion-MNIST or CIFAR-10 (binary version); None = scikit-learn's digits.

    Yields:
        The source, which then says whether it was used.
    """
    source = Source(folder)
    token = _SOURCE.set(source)
    try:
        yield source
    finally:
        _SOURCE.reset(token)


def pictures(dtype: torch.dtype = torch.float64) -> Pictures:
    """Load the pictures of this run; the choice and its order are the same each time.

    Args:
        dtype: Of the pictures.

    Raises:
        ValueError: If the folder does not hold a data set that can be read.
    """
    source = _SOURCE.get()
    source.used = True
    if source.folder is None:
        from sklearn.datasets import load_digits

        both, classes = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(classes))
        train, test = (order[:TRAIN], order[TRAIN:])
        parts = [(both[train], classes[train]), (both[test], classes[test])]
    else:
        parts = [_chosen(*_read(source.folder, part), count) for part, count in (("train", TRAIN), ("test", TEST))]
    (train_BP, train_B), (test_BP, test_B) = parts
    mean, deviation = train_BP.mean(0), train_BP.std()
    train_x, test_x = (torch.from_numpy((x - mean) / deviation).to(dtype) for x in (train_BP, test_BP))
    return Pictures(train_x, torch.from_numpy(train_B).long(), test_x, torch.from_numpy(test_B).long())


def _chosen(pixels_BHW: np.ndarray, classes_B: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw some and make them small."""
    order = np.random.default_rng(0).permutation(len(classes_B))[:count]
    pixels_BHW = pixels_BHW[order].astype(np.float64)
    margin = pixels_BHW.shape[1] % SIDE // 2
    pixels_BHW = pixels_BHW[:, margin : pixels_BHW.shape[1] - margin, margin : pixels_BHW.shape[2] - margin]
    block = pixels_BHW.shape[1] // SIDE
    small = pixels_BHW.reshape(len(order), SIDE, block, SIDE, block).mean(axis=(2, 4))
    return small.reshape(len(order), SIDE * SIDE), classes_B[order].astype(np.int64)


def _read(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [B, H, W] and classes [B] of the training or the test part."""
    names = IDX[part]
    if all(_find(folder, name) for name in names):
        pixels, classes = (_idx(folder, name) for name in names)
    elif all((folder / name).is_file() for name in CIFAR[part]):
        raw = np.concatenate([np.fromfile(folder / name, dtype=np.uint8) for name in CIFAR[part]])
        if len(raw) % CIFAR_RECORD:
            raise ValueError(f"{folder}: the files of CIFAR-10 are cut off; download cifar-10-binary.tar.gz again")
        records = raw.reshape(-1, CIFAR_RECORD)
        pixels, classes = records[:, 1:].reshape(-1, 3, 32, 32).mean(axis=1), records[:, 0]
    else:
        raise ValueError(
            f"{folder} holds no pictures that the lab can read: expected {names[0]} and {names[1]} (MNIST, "
            f"Fashion-MNIST; also .gz or .xz) or {CIFAR[part][0]} (CIFAR-10, binary version)"
        )
    least = TRAIN if part == "train" else TEST
    if (
        pixels.ndim != 3
        or len(pixels) != len(classes)
        or len(pixels) < least
        or pixels.shape[1:] not in {(28, 28), (32, 32)}
    ):
        raise ValueError(
            f"{folder}: expected at least {least} pictures of 28 x 28 or 32 x 32 pixels with a class each, got "
            f"{pixels.shape} and {len(classes)} classes"
        )
    if classes.max() > 9:
        raise ValueError(f"{folder}: the experiments have ten classes, got one that is numbered {classes.max()}")
    return pixels, classes


def _find(folder: Path, name: str) -> Path | None:
    found = [folder / f"{name}{ending}" for ending in OPENERS if (folder / f"{name}{ending}").is_file()]
    return found[0] if found else None


def _idx(folder: Path, name: str) -> np.ndarray:
    """Read an IDX file: two zero bytes, 8 for unsigned bytes, the number of dimensions, their sizes, the data."""
    path = _find(folder, name)
    assert path is not None
    opener = OPENERS[path.suffix if path.suffix in OPENERS else ""]
    try:
        with opener(path, "rb") as file:  # type: ignore[attr-defined]
            raw = file.read()
        assert raw[:3] == b"\0\0\x08"
        sizes = np.frombuffer(raw, dtype=">u4", count=raw[3], offset=4)
        return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * raw[3]).reshape(sizes)
    except (AssertionError, EOFError, IndexError, OSError, ValueError, lzma.LZMAError) as error:
        raise ValueError(f"{path} is damaged or no IDX file of unsigned bytes; download it again") from error
