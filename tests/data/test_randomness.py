import numpy as np
import pytest

from sibert.data.randomness import Purpose, check_seed, random_stream


def draw(*key, size=100):
    return random_stream(*key).random(size)


def test_the_same_key_gives_the_same_numbers_whatever_was_drawn_before():
    first = draw(1, Purpose.TRAIN_MASKS, 2, 3)
    random_stream(9, Purpose.ORDER, 0, 0).permutation(17)
    random_stream(9, Purpose.ORDER, 0, 0).integers(5, dtype=np.int32)  # leaves half a word behind
    assert np.array_equal(draw(1, Purpose.TRAIN_MASKS, 2, 3), first)


def test_it_is_philox_as_numpy_constructs_it():
    fresh = np.random.Generator(np.random.Philox(key=[1, Purpose.TRAIN_PAIRS], counter=[0, 3, 2, 0]))
    assert np.array_equal(fresh.random(100), draw(1, Purpose.TRAIN_PAIRS, 2, 3))


def test_another_key_gives_other_numbers():
    keys = [(s, p, e, i) for s in (0, 1, 2**64 - 1) for p in Purpose for e in (0, 1) for i in (0, 1, 2**64 - 1)]
    assert len({draw(*key, size=2).tobytes() for key in keys}) == len(keys)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_outside_64_bits_is_refused(seed):
    with pytest.raises(ValueError, match="out of range"):
        check_seed(seed)
