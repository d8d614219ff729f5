"""Pictures of the user's own, from the files that are published, small enough for the lab's networks."""

import gzip
import json
import lzma
import struct

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sibert.cli.app import app
from sibert.lab.pictures import TEST, TRAIN, from_folder, pictures


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist(folder, opener=open, ending="", train=TRAIN + 3, side=28):
    """Of each class a picture of one brightness in every block of 3 x 3 behind a margin, and noise in the margin."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for count, images, labels in (
        (train, "train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        (TEST, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    ):
        classes = generator.integers(10, size=count).astype(np.uint8)
        pixels = generator.integers(256, size=(count, side, side)).astype(np.uint8)
        pixels[:, 2:-2, 2:-2] = 20 * classes[:, None, None]
        for name, array in ((images, pixels), (labels, classes)):
            with opener(folder / f"{name}{ending}", "wb") as file:
                file.write(idx(array))
    return folder


@pytest.mark.parametrize(("opener", "ending"), [(open, ""), (gzip.open, ".gz"), (lzma.open, ".xz")])
def test_mnist_and_what_has_its_format(opener, ending, tmp_path):
    with from_folder(mnist(tmp_path / "mnist", opener, ending)) as source:
        assert not source.used
        data = pictures()
        assert source.used
    assert data.train_BP.shape == (TRAIN, 64)
    assert data.test_BP.shape == (TEST, 64)
    assert data.train_BP.mean(0).abs().max() < 1e-12
    for x_BP, y_B in ((data.train_BP, data.train_B), (data.test_BP, data.test_B)):
        assert torch.equal(x_BP, x_BP[:, :1].expand(-1, 64))  # the margin is gone
        order = x_BP[:, 0].argsort()
        assert torch.equal(y_B[order], y_B.sort().values)  # and pictures have kept their classes


def test_cifar(tmp_path):
    generator = np.random.default_rng(0)
    for name in [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]:
        classes = generator.integers(10, size=400)
        bright = np.stack([np.full((32, 32), c) for c in (0, 1, 2)])[None] + 10 * classes[:, None, None, None]
        np.concatenate([classes[:, None], bright.reshape(400, -1)], axis=1).astype(np.uint8).tofile(tmp_path / name)
    with from_folder(tmp_path):
        data = pictures(torch.float32)
    assert data.train_BP.dtype == torch.float32
    assert torch.equal(data.train_B[data.train_BP[:, 0].argsort(stable=True)], data.train_B.sort().values)


def test_without_a_folder_they_are_the_digits():
    data = pictures()
    assert (len(data.train_B), len(data.test_B)) == (TRAIN, TEST)
    assert data.train_BP.mean(0).abs().max() < 1e-12


def test_folders_that_cannot_be_read_are_named(tmp_path):
    def problem(folder, match):
        with from_folder(folder), pytest.raises(ValueError, match=match):
            pictures()

    problem(tmp_path / "nothing", r"nothing holds no pictures .* expected train-images-idx3-ubyte")
    problem(mnist(tmp_path / "few", train=100), r"at least 1437 pictures .* got \(100, 28, 28\)")
    problem(mnist(tmp_path / "large", side=64), r"28 x 28 or 32 x 32 .* got \(1440, 64, 64\)")
    folder = mnist(tmp_path / "cut")
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])
    problem(folder, "train-images-idx3-ubyte is damaged")
    folder = mnist(tmp_path / "classes")
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.full(TRAIN + 3, 11, dtype=np.uint8)))
    problem(folder, "ten classes, got one that is numbered 11")


def run(*arguments):
    return CliRunner().invoke(app, ["lab", *map(str, arguments)], standalone_mode=False)


def test_the_command_says_on_which_pictures(tmp_path):
    folder = mnist(tmp_path / "mine")
    done = run("run", "never-settles", "--smoke", "--images", folder, "--out", tmp_path)
    assert f"on the pictures of {folder}" in done.output
    assert json.loads((tmp_path / "never-settles.json").read_text())["images"] == str(folder)
    run("report", tmp_path)
    assert f"sibert lab run never-settles --smoke --images {folder}" in (tmp_path / "report.html").read_text()


def test_a_mistake_leaves_nothing_behind(tmp_path):
    out = tmp_path / "out"
    failed = run("run", "never-settles", "--smoke", "--images", tmp_path / "no", "--out", out)
    assert isinstance(failed.exception, ValueError)  # which the command line shows as one sentence
    assert "holds no pictures" in str(failed.exception)
    assert not out.exists()
