"""Token ids of documents, packed into sequences of one fixed length.

Shapes: N sequences, T = sequence length, [V] one entry per token id.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from sibert.data.tokenizer import id_bound, tokenise

# Sequences that are cut at once: large enough for numpy, small enough for a stream.
_CHUNK_SEQUENCES = 64
_TOKENISED_DOCUMENTS = 256


@dataclass(frozen=True)
class Layout:
    """Where special tokens go and how long a sequence is.

    Attributes:
        length: T, tokens in a sequence, special tokens included.
        cls: id of [CLS].
        sep: id of [SEP].
        pad: id of [PAD].
        dtype: the integer type that sequences are stored in.
    """

    length: int
    cls: int
    sep: int
    pad: int
    dtype: str

    @classmethod
    def of(cls, tokenizer: Any, length: int) -> "Layout":
        """The layout for a tokenizer.

        Args:
            tokenizer: a `transformers` tokenizer.
            length: T, at least 8.

        Returns:
            The layout.

        Raises:
            ValueError: if the length is too small to hold two segments and three special tokens with some context.
        """
        check_length(length)
        dtype = "uint16" if id_bound(tokenizer) <= 1 << 16 else "int32"
        return cls(length, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id, dtype)


def check_length(length: int) -> None:
    """Refuse sequences that could not hold two segments and three special tokens with some context.

    Args:
        length: T.

    Raises:
        ValueError: if T < 8.
    """
    if length < 8:
        raise ValueError(f"seq_length={length} is too short; expected at least 8 tokens.")


@dataclass
class TokenCount:
    """Counts that fill while a generator of this module runs.

    Attributes:
        unknown_id: id of [UNK], or None.
        tokens: tokens of the text, special tokens not counted.
        unknown: how many of them are [UNK].
        short_documents: documents of one token or none, left out of sentence pairs.
        sequences: packed sequences.
    """

    unknown_id: int | None = None
    tokens: int = 0
    unknown: int = 0
    short_documents: int = 0
    sequences: int = 0


class Pairs(NamedTuple):
    """Sentence pairs of one document: rows [CLS] A [SEP] B [SEP], B following A in the document.

    Attributes:
        ids: [N, T], padded.
        first_lengths: [N], tokens in A.
        second_lengths: [N], tokens in B.
    """

    ids: np.ndarray
    first_lengths: np.ndarray
    second_lengths: np.ndarray


def token_documents(tokenizer: Any, texts: Iterable[str], count: TokenCount) -> Iterator[np.ndarray]:
    """Token ids of each document, tokenised many at a time.

    Args:
        tokenizer: a `transformers` tokenizer.
        texts: the documents.
        count: updated with tokens seen.

    Yields:
        One array of ids per document.
    """

    def flush(batch: list[str]) -> Iterator[np.ndarray]:
        for document in tokenise(tokenizer, batch):
            ids = np.asarray(document, dtype=np.int64)
            count.tokens += len(ids)
            if count.unknown_id is not None:
                count.unknown += int(np.count_nonzero(ids == count.unknown_id))
            yield ids

    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _TOKENISED_DOCUMENTS:
            yield from flush(batch)
            batch = []
    if batch:
        yield from flush(batch)


def pack_blocks(documents: Iterable[np.ndarray], layout: Layout) -> Iterator[np.ndarray]:
    """Documents, each followed by [SEP], end to end, cut every T - 2 tokens and wrapped as [CLS] block [SEP].

    No token is lost: the last block is padded.

    Args:
        documents: token ids without special tokens.
        layout: special tokens and T.

    Yields:
        Arrays of sequences, [N, T].
    """
    body = layout.length - 2
    separator = np.array([layout.sep], dtype=layout.dtype)
    waiting: list[np.ndarray] = []
    size = 0
    for document in documents:
        if not len(document):
            continue
        waiting += [document.astype(layout.dtype), separator]
        size += len(document) + 1
        if size >= body * _CHUNK_SEQUENCES:
            stream = np.concatenate(waiting)
            whole = size - size % body
            yield _wrap(stream[:whole].reshape(-1, body), layout)
            waiting, size = [stream[whole:]], size - whole
    stream = np.concatenate(waiting) if waiting else np.empty(0, dtype=layout.dtype)
    whole = size - size % body
    if whole:
        yield _wrap(stream[:whole].reshape(-1, body), layout)
    rest = stream[whole:]
    # A rest of one token is the [SEP] of the last document: a sequence without text would teach nothing.
    if len(rest) > 1:
        block_1T = np.full((1, layout.length), layout.pad, dtype=layout.dtype)
        block_1T[0, 0] = layout.cls
        block_1T[0, 1 : 1 + len(rest)] = rest
        block_1T[0, 1 + len(rest)] = layout.sep
        yield block_1T


def _wrap(bodies: np.ndarray, layout: Layout) -> np.ndarray:
    blocks_NT = np.empty((len(bodies), layout.length), dtype=layout.dtype)
    blocks_NT[:, 0] = layout.cls
    blocks_NT[:, 1:-1] = bodies
    blocks_NT[:, -1] = layout.sep
    return blocks_NT


def pack_pairs(document: np.ndarray, layout: Layout) -> Pairs | None:
    """One document as disjoint pairs of neighbouring segments.

    The document is cut into the smallest even number of segments of at most (T - 3) / 2 tokens, equal in length up to
    one token, so that every token is in exactly one pair. A document that is shorter than two full segments is cut in
    two halves; one of a single token has no pair.

    Args:
        document: token ids without special tokens.
        layout: special tokens and T.

    Returns:
        The pairs, or None for a document of fewer than two tokens.
    """
    if len(document) < 2:
        return None
    longest = (layout.length - 3) // 2
    pairs = -(-len(document) // (2 * longest))
    segments = np.array_split(document, 2 * pairs)
    ids_NT = np.full((pairs, layout.length), layout.pad, dtype=layout.dtype)
    for row_T, first, second in zip(ids_NT, segments[::2], segments[1::2], strict=True):
        write_pair(row_T, first, second, layout)
    lengths = np.array([len(segment) for segment in segments], dtype=np.int32)
    return Pairs(ids_NT, lengths[::2], lengths[1::2])


def write_pair(row_T: np.ndarray, first: np.ndarray, second: np.ndarray, layout: Layout) -> None:
    """Write [CLS] first [SEP] second [SEP] and padding into a row.

    Args:
        row_T: the row, overwritten.
        first: token ids of segment A.
        second: token ids of segment B.
        layout: special tokens and T.
    """
    between, end = 1 + len(first), 2 + len(first) + len(second)
    row_T[0] = layout.cls
    row_T[1:between] = first
    row_T[between] = layout.sep
    row_T[between + 1 : end] = second
    row_T[end] = layout.sep
    row_T[end + 1 :] = layout.pad


def block_schema(layout: Layout) -> pa.Schema:
    """Columns of packed blocks.

    Args:
        layout: special tokens and T.

    Returns:
        The Arrow schema: `input_ids`, a fixed-size list.
    """
    return pa.schema([("input_ids", pa.list_(pa.from_numpy_dtype(np.dtype(layout.dtype)), layout.length))])


def pair_schema(layout: Layout) -> pa.Schema:
    """Columns of sentence pairs.

    Args:
        layout: special tokens and T.

    Returns:
        The Arrow schema: `input_ids`, the lengths of both segments, and the range of rows `document_begin` to
        `document_end` (excluded) that come from the same document.
    """
    integers = [(name, pa.int32()) for name in ("first_length", "second_length")]
    rows = [(name, pa.int64()) for name in ("document_begin", "document_end")]
    return pa.schema([*block_schema(layout), *integers, *rows])


def block_batches(documents: Iterable[np.ndarray], layout: Layout, count: TokenCount) -> Iterator[pa.RecordBatch]:
    """Packed blocks as Arrow record batches.

    Args:
        documents: token ids without special tokens.
        layout: special tokens and T.
        count: updated with the sequences made.

    Yields:
        Batches of `block_schema`.
    """
    for blocks_NT in pack_blocks(documents, layout):
        count.sequences += len(blocks_NT)
        yield pa.record_batch([_rows(blocks_NT)], schema=block_schema(layout))


def pair_batches(documents: Iterable[np.ndarray], layout: Layout, count: TokenCount) -> Iterator[pa.RecordBatch]:
    """Sentence pairs as Arrow record batches.

    Args:
        documents: token ids without special tokens.
        layout: special tokens and T.
        count: updated with the pairs made and the documents too short for one.

    Yields:
        Batches of `pair_schema`.
    """
    columns: list[tuple[Any, ...]] = []
    waiting = 0
    for document in documents:
        pairs = pack_pairs(document, layout)
        if pairs is None:
            count.short_documents += 1
            continue
        rows = len(pairs.ids)
        begin_N = np.full(rows, count.sequences, dtype=np.int64)
        columns.append((*pairs, begin_N, begin_N + rows))
        count.sequences += rows
        waiting += rows
        if waiting >= _CHUNK_SEQUENCES:
            yield _pair_batch(columns, layout)
            columns, waiting = [], 0
    if columns:
        yield _pair_batch(columns, layout)


def _pair_batch(columns: Sequence[tuple[Any, ...]], layout: Layout) -> pa.RecordBatch:
    ids_NT, *numbers = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return pa.record_batch([_rows(ids_NT), *(pa.array(values) for values in numbers)], schema=pair_schema(layout))


def _rows(ids_NT: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(ids_NT.reshape(-1)), ids_NT.shape[1])
