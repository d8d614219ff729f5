"""Text that is read, packed and masked while training runs, without a copy on disk."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
import xxhash

from sibert.data.corpora import Split, document_digest, iterate_documents, open_hub, split_position
from sibert.data.masking import Masking, masked_example
from sibert.data.packing import Layout, TokenCount, pack_blocks, token_documents
from sibert.data.randomness import Purpose, check_seed
from sibert.data.readers import Problems
from sibert.data.sources import FileSource, HubSource

# Duplicates are found among this many documents of a worker; without a bound a large hub data set would fill memory.
_REMEMBERED_DOCUMENTS = 1_000_000


@dataclass(frozen=True)
class DocumentStream:
    """Documents of one split, packed on the fly.

    Attributes:
        rows: a `datasets.IterableDataset` with a text column.
        text_column: its name.
        split: "train" or "validation".
        validation_fraction: share of documents held out, by hash as everywhere.
        seq_length: T.
    """

    rows: Any
    text_column: str
    split: Split
    validation_fraction: float
    seq_length: int

    def texts(self, rows: Any = None) -> Iterator[str]:
        """The split's documents, exact duplicates left out.

        Args:
            rows: read these rows instead (a shuffled view of the same data).

        Yields:
            Texts.
        """
        seen: set[bytes] = set()
        for row in self.rows if rows is None else rows:
            text = row[self.text_column]
            if not isinstance(text, str) or not (text := text.strip()):
                continue
            digest = document_digest(text)
            is_held_out = split_position(digest) < self.validation_fraction
            if is_held_out != (self.split == "validation") or digest in seen:
                continue
            if len(seen) < _REMEMBERED_DOCUMENTS:
                seen.add(digest)
            yield text

    def blocks(self, tokenizer: Any, rows: Any = None) -> Iterator[np.ndarray]:
        """The split's packed sequences.

        Args:
            tokenizer: a `transformers` tokenizer.
            rows: as in `texts`.

        Yields:
            Token ids [T].
        """
        documents = token_documents(tokenizer, self.texts(rows), TokenCount())
        for blocks_NT in pack_blocks(documents, Layout.of(tokenizer, self.seq_length)):
            yield from blocks_NT


def open_stream(sources: list[FileSource | HubSource], rule: str, text_column: str) -> tuple[Any, str]:
    """All sources as one iterable data set, whose shards are the files.

    Args:
        sources: local files, or one hub data set.
        rule: "file" or "blank-line".
        text_column: the column of row formats and hub data that holds the text.

    Returns:
        The `datasets.IterableDataset`, and the name of its text column.

    Raises:
        ValueError: if files and hub data sets, or several hub data sets, are mixed.
    """
    hubs = [source for source in sources if isinstance(source, HubSource)]
    if hubs and len(sources) > 1:
        raise ValueError(f"Streaming takes local files or one hub data set, not both: got {len(sources)} sources.")
    if hubs:
        return open_hub(hubs[0], text_column), text_column
    arguments = {"sources": sources, "rule": rule, "text_column": text_column}
    return datasets.IterableDataset.from_generator(_stream_files, gen_kwargs=arguments), "text"


def _stream_files(sources: list[FileSource | HubSource], rule: str, text_column: str) -> Iterator[dict[str, str]]:
    yield from iterate_documents(sources, rule, text_column, Problems())


class StreamingMaskedDataset(torch.utils.data.IterableDataset[dict[str, Any]]):
    """Masked sequences of a stream; masks are a pure function of (seed, epoch, token ids of the sequence).

    A stream has no indices, so a 64-bit hash of the sequence stands for one. The epoch lies in shared memory, where
    persistent workers see it. Files are divided among workers: how text falls into sequences depends on the
    number of workers, but repeats exactly for the same number, also when a resumed run skips what it has seen.

    Args:
        stream: the documents.
        tokenizer: a `transformers` tokenizer.
        mask_rate: share of tokens that become targets.
        whole_word: mask all tokens of a word or none.
        seed: of masks and of the order of documents.
        shuffle_buffer: documents among which the next one is drawn at random; 0 keeps their order.

    Attributes:
        repeat: begin the next epoch at the end of one, without end; else iteration is one epoch.

    Raises:
        ValueError: if an option is out of range.
    """

    def __init__(
        self,
        stream: DocumentStream,
        tokenizer: Any,
        mask_rate: float = 0.15,
        whole_word: bool = False,
        seed: int = 0,
        shuffle_buffer: int = 1000,
    ) -> None:
        self.stream = stream
        self.tokenizer = tokenizer
        self.masking = Masking.of(tokenizer, stream.seq_length, mask_rate, whole_word)
        self.length = stream.seq_length
        self.seed = check_seed(seed)
        self.shuffle_buffer = shuffle_buffer
        self.repeat = False
        self._epoch: torch.Tensor = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch with which the next iteration begins, in this process and in its workers.

        Args:
            epoch: its number, from 0.
        """
        self._epoch.fill_(int(epoch))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        first = int(self._epoch)
        for epoch in itertools.count(first) if self.repeat else (first,):
            empty = True
            for example in self._examples(epoch):
                empty = False
                yield example
            if empty:  # a worker without a file has nothing to repeat
                return

    def _examples(self, epoch: int) -> Iterator[dict[str, Any]]:
        rows = self.stream.rows
        if self.shuffle_buffer:
            rows = rows.shuffle(seed=self.seed, buffer_size=self.shuffle_buffer)
            # Of this worker's own view: `datasets` keeps the epoch of one that is shared in shared memory.
            rows.set_epoch(epoch)
        pad_id = self.tokenizer.pad_token_id
        for ids_T in self.stream.blocks(self.tokenizer, rows):
            key = xxhash.xxh3_64_intdigest(ids_T.tobytes())
            yield masked_example(self.masking, ids_T, pad_id, self.seed, Purpose.TRAIN_MASKS, epoch, key)


def first_blocks(stream: DocumentStream, tokenizer: Any, count: int) -> np.ndarray:
    """The first sequences of a stream, for a validation set of fixed size.

    Args:
        stream: the documents.
        tokenizer: a `transformers` tokenizer.
        count: at most this many.

    Returns:
        Token ids, [N, T], N <= count.
    """
    blocks = list(itertools.islice(stream.blocks(tokenizer), count))
    return np.stack(blocks) if blocks else np.empty((0, stream.seq_length), dtype=np.int64)
