"""Random numbers as pure functions of (seed, purpose, epoch, index), from the counter-based generator Philox."""

import threading
from enum import IntEnum

import numpy as np

_LIMIT = 1 << 64


class Purpose(IntEnum):
    """What the numbers are for: each purpose has its own, independent stream."""

    TRAIN_MASKS = 0
    VALIDATION_MASKS = 1
    TRAIN_PAIRS = 2
    VALIDATION_PAIRS = 3
    ORDER = 4


class _Local(threading.local):
    def __init__(self) -> None:
        self.philox = np.random.Philox(0)
        self.generator = np.random.Generator(self.philox)


_local = _Local()


def random_stream(seed: int, purpose: Purpose, epoch: int, index: int) -> np.random.Generator:
    """The generator at the start of the stream that belongs to these four numbers.

    Philox maps (key, counter) to random bits; key = (seed, purpose), counter = (0, index, epoch, 0), and drawing only
    moves the first word of the counter: streams never overlap, and nothing is remembered between them.

    Args:
        seed: of the run, 0 <= seed < 2^64.
        purpose: which of the independent streams.
        epoch: 0 <= epoch < 2^64.
        index: of the example, 0 <= index < 2^64.

    Returns:
        A generator, to be used up before this thread asks for another one: all of them share one state, because making
        a new generator costs about as much as masking a sequence.
    """
    _local.philox.state = {
        "bit_generator": "Philox",
        "state": {
            "counter": np.array([0, index, epoch, 0], dtype=np.uint64),
            "key": np.array([seed, purpose], dtype=np.uint64),
        },
        "buffer": np.zeros(4, dtype=np.uint64),
        "buffer_pos": 4,  # empty: the next draw starts at the counter
        "has_uint32": 0,
        "uinteger": 0,
    }
    return _local.generator


def check_seed(seed: int) -> int:
    """Refuse what cannot be a Philox key.

    Args:
        seed: the user's seed.

    Returns:
        The seed.

    Raises:
        ValueError: unless 0 <= seed < 2^64.
    """
    if not 0 <= seed < _LIMIT:
        raise ValueError(f"seed={seed} is out of range; expected 0 <= seed < 2^64.")
    return seed
