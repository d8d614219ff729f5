"""Text in, masked batches out: corpora, tokenizers, packing, masking and sampling."""

from sibert.data.corpora import Corpus, CorpusReport, load_corpus
from sibert.data.flattening import collate_flat, flatten
from sibert.data.frequencies import TokenFrequencies
from sibert.data.masking import MaskedDataset, unigram_entropy
from sibert.data.preparation import PreparedCorpus, prepare_corpus
from sibert.data.sampling import EpochSampler, LengthSampler, collate
from sibert.data.sources import find_sources
from sibert.data.streaming import StreamingMaskedDataset
from sibert.data.tokenizer import load_tokenizer, train_tokenizer

__all__ = [  # noqa: RUF022  (grouped by what they do)
    # from text to packed sequences
    "Corpus",
    "CorpusReport",
    "PreparedCorpus",
    "TokenFrequencies",
    "find_sources",
    "load_corpus",
    "prepare_corpus",
    # tokenizers
    "load_tokenizer",
    "train_tokenizer",
    # from packed sequences to batches
    "EpochSampler",
    "LengthSampler",
    "MaskedDataset",
    "StreamingMaskedDataset",
    "collate",
    "collate_flat",
    "flatten",
    "unigram_entropy",
]
