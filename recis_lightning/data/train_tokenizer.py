"""Train a tokenizer from a column: `train_tokenizer("log/train", "title", "tokenizer.json", vocab_size=1000)`.

Byte-pair encoding of lower-case text: any language, nothing unknown, and the same file from the same texts. Ids 0 to 2
are [PAD] [CLS] [SEP], the next 256 single bytes; every text stands between [CLS] and [SEP].
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from recis_lightning.data.errors import DataError
from recis_lightning.data.files.formats import read_stripe
from recis_lightning.data.files.manifest import Manifest, Paths, read_manifest
from recis_lightning.llm_extra import import_llm
from recis_lightning.schema import did_you_mean

SPECIAL = ("[PAD]", "[CLS]", "[SEP]")
SMALLEST = len(SPECIAL) + 256


@dataclass(frozen=True)
class Trained:
    """A tokenizer that was trained, and on what."""

    path: Path
    texts: int
    """Distinct texts read."""
    vocabulary: int
    """Token ids are below this: the vocab_size of a model."""
    longest: int
    """Token ids of the longest text, special ones included."""
    mean_length: float


def train_tokenizer(
    paths: Paths,
    column: str,
    out: str | Path,
    *,
    vocab_size: int = 8192,
    min_frequency: int = 2,
    max_texts: int = 1_000_000,
) -> Trained:
    """Train on the distinct texts of a column (at most ``max_texts`` of them, the first) and write ``out``.

    DataError where files lack the column or it holds no text; ValueError where ``vocab_size`` has no room for the
    special tokens and single bytes.
    """
    if vocab_size < SMALLEST:
        raise ValueError(f"vocab_size is {vocab_size}, need at least {SMALLEST}: special tokens and single bytes")
    texts = list(read_texts(paths, column, max_texts))
    if not texts:
        raise DataError(f"column '{column}' of {paths} holds no text; name another column or other files")
    tokenizer = _make(vocab_size, min_frequency, texts)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out))
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)]
    return Trained(Path(out), len(texts), tokenizer.get_vocab_size(), max(lengths), sum(lengths) / len(lengths))


def read_texts(paths: Paths, column: str, max_texts: int) -> Iterator[str]:
    """The distinct texts of a column in the order of the files, null and empty ones left out."""
    manifest, problems = read_manifest(paths)
    problems += _find_problems(manifest, column)
    if problems:
        raise DataError(problems)
    seen: set[bytes] = set()
    for file in manifest.files:
        for stripe in range(len(file.stripe_rows)):
            for text in pc.unique(read_stripe(file.path, file.format, stripe, [column]).column(column)).to_pylist():
                key = xxhash.xxh3_128_digest(text.encode()) if text else b""
                if not text or key in seen:
                    continue
                if len(seen) == max_texts:
                    return
                seen.add(key)
                yield text


def _find_problems(manifest: Manifest, column: str) -> Iterator[str]:
    for file in manifest.files:
        found = file.columns.get(column)
        if found is None:
            yield f"{file.path} has no column '{column}'{did_you_mean(column, file.columns)}"
        elif found != pa.string():
            yield f"column '{column}' is {found} in {file.path}, need strings"


def _make(vocab_size: int, min_frequency: int, texts: list[str]) -> Any:
    tokenizers = import_llm("tokenizers")
    normalizers, bytes_of = tokenizers.normalizers, tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = bytes_of(add_prefix_space=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    # Not WordPiece: its trainer numbers pieces, and so breaks ties between them, in the order of a random hash.
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL),
        initial_alphabet=bytes_of.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer
