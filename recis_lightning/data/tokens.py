"""Text to token ids, in the threads that read: each distinct text once, and not again while it is remembered.

U distinct texts, N token ids of all of them.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recis_lightning.llm_extra import import_llm
from recis_lightning.paths import expand_path
from recis_lightning.schema import Column

REMEMBERED_IDS = 1 << 24  # token ids kept for texts seen before: 128 MiB, about half a million titles


class TextTokenizer:
    """A tokenizer.json of the Hugging Face tokenizers library, without padding, cut to ``max_length`` ids.

    Safe to use from several threads. Raises ValueError where the file is none, ImportError without the extra `llm`.
    """

    def __init__(self, path: str, max_length: int | None = None, remembered_ids: int = REMEMBERED_IDS) -> None:
        place = Path(expand_path(path))
        if not place.is_file():
            raise ValueError(
                f"tokenizer '{path}': there is no file {place}; name a tokenizer.json, or train one: "
                "recis text train-tokenizer --help"
            )
        tokenizers = import_llm("tokenizers")
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(place))
        except Exception as error:  # the library raises Exception itself
            raise ValueError(f"tokenizer '{path}': {place} is no tokenizer.json ({error})") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()  # files may come with a length of their own
        if max_length is not None:
            specials = self._tokenizer.num_special_tokens_to_add(False)
            if max_length < specials:
                raise ValueError(
                    f"tokenizer '{path}' adds {specials} special ids to each text; "
                    f"a max_length of {max_length} is too short"
                )
            self._tokenizer.enable_truncation(max_length)
        self._remembered: dict[str, NDArray[np.int64]] = {}
        self._room = self._remembered_ids = remembered_ids

    def encode(self, texts_U: Sequence[str]) -> list[NDArray[np.int64]]:
        """The ids of each text; none for an empty one."""
        remembered = self._remembered
        missing = [text for text in dict.fromkeys(texts_U) if text and text not in remembered]
        new = {
            text: np.array(encoding.ids, np.int64)
            for text, encoding in zip(missing, self._tokenizer.encode_batch_fast(missing), strict=True)
        }
        known = [new[text] if text in new else remembered.get(text) for text in texts_U]
        self._remember(new)
        # Another thread may have begun to remember anew in between.
        return [self._look_up(text) if ids is None else ids for text, ids in zip(texts_U, known, strict=True)]

    def _look_up(self, text: str) -> NDArray[np.int64]:
        return np.array(self._tokenizer.encode(text).ids if text else (), np.int64)

    def _remember(self, new: dict[str, NDArray[np.int64]]) -> None:
        ids = sum(map(len, new.values()))
        if ids > self._room:
            self._remembered, self._room = {}, self._remembered_ids
        if ids <= self._room:
            self._remembered.update(new)
            self._room -= ids

    def encode_array(self, texts: pa.StringArray) -> pa.ListArray:
        """Lists of ids int64 for an array of texts; null for null."""
        encoded = pc.dictionary_encode(texts)
        ids = self.encode(encoded.dictionary.to_pylist())
        offsets = np.zeros(len(ids) + 1, np.int32)
        np.cumsum([len(each) for each in ids], out=offsets[1:])
        values_N = np.concatenate(ids) if ids else np.empty(0, np.int64)
        lists_U = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values_N))
        return lists_U.take(encoded.indices)


@functools.lru_cache(maxsize=16)
def _open(path: str, max_length: int | None, _version: tuple[int, int] | None) -> TextTokenizer:
    return TextTokenizer(path, max_length)


def tokenizer_of(column: Column) -> TextTokenizer:
    """The tokenizer of a column, one for all threads of the process; read again where its file has changed."""
    assert column.tokenizer is not None
    place = Path(expand_path(column.tokenizer))
    version = (place.stat().st_mtime_ns, place.stat().st_size) if place.exists() else None
    return _open(column.tokenizer, column.max_length, version)


def find_tokenizer_problems(columns: Sequence[Column]) -> Iterator[str]:
    """What is wrong with the tokenizers that columns name: one line each."""
    for column in columns:
        if column.tokenizer is not None:
            try:
                tokenizer_of(column)
            except ValueError as error:
                yield f"column '{column.name}': {error}"
