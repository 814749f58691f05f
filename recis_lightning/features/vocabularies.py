"""What a vocabulary lists, as ids: numbers as they are, strings as their column hashes them."""

import torch
from torch import Tensor

from recis_lightning.features.plan import Call
from recis_lightning.paths import expand_path
from recis_lightning.schema import HashKind, Vocabulary
from triton_ops.hash_bytes.op import hash_bytes


def hash_string(text: str, kind: HashKind) -> int:
    """The id that a column with this hash makes of a string: ("a", "murmur") -> 510903276987443985."""
    return int(hash_strings([text], kind)[0])


def hash_strings(texts: list[str], kind: HashKind) -> Tensor:
    """As `hash_string`, for several: int64 [N]."""
    encoded = [text.encode() for text in texts]
    offsets = torch.tensor([0, *map(len, encoded)]).cumsum(0)
    return hash_bytes(torch.frombuffer(bytearray(b"".join(encoded) or b"\0"), dtype=torch.uint8), offsets, kind)


def read_vocabulary(call: Call) -> Tensor:
    """The listed ids, int64 [M], in their order; ValueError where one is no id, or is there twice."""
    transform = call.transform
    assert isinstance(transform, Vocabulary)
    where = f"feature '{call.feature.name}', transforms[{call.index}] (vocabulary)"
    values, place = list(transform.values), "values"
    if transform.file is not None:
        values, place = _read_lines(transform.file, where), f"file '{transform.file}', line"
    kind = call.values[0].hashed_by
    ids = _to_ids(values, kind, where)
    order = ids.argsort(stable=True)
    repeats = (ids[order][1:] == ids[order][:-1]).nonzero()
    if len(repeats):
        first, second = sorted(order[int(repeats[0]) : int(repeats[0]) + 2].tolist())
        count = 1 if transform.file is not None else 0  # lines count from 1
        raise ValueError(
            f"{where}: {place} {second + count} holds {values[second]!r}, which is the same id as "
            f"{values[first]!r} at {first + count}; drop one of them"
        )
    return ids


def _read_lines(path: str, where: str) -> list[int | str]:
    try:
        with open(expand_path(path), encoding="utf-8") as file:
            lines: list[int | str] = [line.rstrip("\n") for line in file]
    except OSError as error:
        raise ValueError(f"{where}: file '{path}' can't be read ({error.strerror})") from error
    if not lines:
        raise ValueError(f"{where}: file '{path}' is empty; write one value a line")
    return lines


def _to_ids(values: list[int | str], kind: HashKind | None, where: str) -> Tensor:
    texts = [value for value in values if isinstance(value, str)]
    if kind is not None and len(texts) == len(values):
        return hash_strings(texts, kind)
    numbers = []
    for value in values:
        try:
            number = int(value)
        except ValueError:
            number = None
        if number is None or not -(2**63) <= number < 2**63:
            raise ValueError(
                f"{where} lists {value!r}, which is no 64-bit integer; strings are for columns with a hash"
            )
        numbers.append(number)
    return torch.tensor(numbers, dtype=torch.int64)
