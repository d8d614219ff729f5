"""How the kernels of `triton.py` are cut into tiles, by what a GPU has room for."""

from typing import NamedTuple

import torch

__all__ = ["H100_MEMORY", "Tiles", "shared_bytes", "tile_sizes"]

H100_MEMORY = 227 * 1024
"""Bytes of shared memory that a program may have on an H100."""


class Tiles(NamedTuple):
    """How a kernel is cut into tiles.

    Attributes:
        queries: Queries of a tile.
        keys: Keys of a tile.
        warps: Warps of a program.
        stages: Tiles that are loaded ahead.
    """

    queries: int
    keys: int
    warps: int
    stages: int


def tile_sizes(width: int, dtype: torch.dtype, memory: int = H100_MEMORY) -> dict[str, Tiles]:
    """Choose tiles by what fits the registers of an H100 and the shared memory of the device.

    Args:
        width: Head width K.
        dtype: Of queries, keys and values.
        memory: Bytes of shared memory that a program may have: 163 KiB on an A100, 99 KiB on GPUs of other kinds.

    Returns:
        Tiles of the kernels "forward", "queries" (their gradient) and "keys" (gradients of keys and values).
    """
    if dtype in (torch.float32, torch.float64):  # no tensor cores: small tiles, or the registers spill
        side = 32 if width <= 128 else 16
        tiles = dict.fromkeys(("forward", "queries", "keys"), Tiles(side, side, 4, 2))
    elif width <= 64:
        tiles = {"forward": Tiles(128, 64, 8, 3), "queries": Tiles(128, 64, 8, 3), "keys": Tiles(64, 128, 8, 3)}
    elif width <= 128:
        tiles = {"forward": Tiles(128, 64, 8, 3), "queries": Tiles(128, 64, 8, 2), "keys": Tiles(32, 128, 8, 2)}
    else:
        tiles = {"forward": Tiles(64, 64, 8, 2), "queries": Tiles(64, 32, 8, 2), "keys": Tiles(32, 64, 8, 2)}
    return {kernel: _fitting(kernel, tiles[kernel], width, dtype, memory) for kernel in tiles}


def _fitting(kernel: str, tiles: Tiles, width: int, dtype: torch.dtype, memory: int) -> Tiles:
    """Halve the side that a program goes along until its tiles fit; no product takes fewer than 16."""
    side = "queries" if kernel == "keys" else "keys"
    while memory < H100_MEMORY and getattr(tiles, side) > 16 and shared_bytes(kernel, tiles, width, dtype) > memory:
        tiles = tiles._replace(**{side: getattr(tiles, side) // 2})
    return tiles


def shared_bytes(kernel: str, tiles: Tiles, width: int, dtype: torch.dtype) -> int:
    """Estimate the shared memory of a program on GPUs before the H100: at least what triton 3.7 asks for.

    Args:
        kernel: "forward", "queries" or "keys".
        tiles: Its tiles.
        width: Head width K.
        dtype: Of queries, keys and values.

    Returns:
        Bytes for the rows that a program keeps, the tiles that it loads, and scores on their way between warps.
    """
    rows, columns = (tiles.keys, tiles.queries) if kernel == "keys" else (tiles.queries, tiles.keys)
    kept_rows = (1 if kernel == "forward" else 2) * rows
    # Ahead of their use, or, where nothing is loaded ahead, with a copy that is turned round.
    loaded_rows = (2 * (tiles.stages - 1) if tiles.stages > 1 else 3) * columns
    bytes_per_score = 4 if rows >= 16 * tiles.warps else 6  # warps side by side exchange scores; a mask comes on top
    padded = max(16, 1 << (width - 1).bit_length())
    return (kept_rows + loaded_rows) * padded * dtype.itemsize + rows * columns * bytes_per_score
