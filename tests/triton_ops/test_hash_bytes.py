"""The string hashes against golden values of independent implementations (pyfarmhash; MurmurHash64A's own source)."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from triton_ops.hash_bytes import reference
from triton_ops.hash_bytes.op import hash_bytes, hash_columns

# (bytes as hex, FarmHash Fingerprint64, MurmurHash64A with seed 0): one length on each side of every branch
GOLDEN = [
    ("", 11160318154034397263, 0),
    ("61", 12917804110809363939, 510903276987443985),
    ("6162", 12289600257749001502, 7115271465109541368),
    ("616263", 2640714258260161385, 11297775770902552315),
    ("040b1219", 13909349088106176104, 6320132465418066143),
    ("68656c6c6f", 13009744463427800296, 2191231550387646743),
    ("070e151c232a31", 17233423938440663304, 14694071469231823306),
    ("080f161d242b3239", 12627020141284786728, 13941780957518243714),
    ("e697a5e69cace8aa9e", 15681232226066675783, 9774264735968809379),
    ("0c131a21282f363d444b5259", 14323719444777939768, 10478644479365303219),
    ("0f161d242b323940474e555c636a71", 3575310498258597009, 1561510658851474231),
    ("10171e252c333a41484f565d646b7279", 9887023220782602712, 14564588570164565521),
    ("11181f262d343b424950575e656c737a81", 16960068419638019727, 8351370652161637172),
    ("181f262d343b424950575e656c737a81888f969da4abb2b9", 6496452274876097831, 15641036898412658316),
    (
        "1f262d343b424950575e656c737a81888f969da4abb2b9c0c7ced5dce3eaf1",
        12025085129596068594,
        12451929413093874624,
    ),
    (
        "20272e353c434a51585f666d747b828990979ea5acb3bac1c8cfd6dde4ebf2f9",
        3992320350721670009,
        5636173587971964109,
    ),
    (
        "21282f363d444b525960676e757c838a91989fa6adb4bbc2c9d0d7dee5ecf3fa01",
        12457070707786611405,
        2340890798407299477,
    ),
    (
        "282f363d444b525960676e757c838a91989fa6adb4bbc2c9d0d7dee5ecf3fa01080f161d242b3239",
        14527838358182869699,
        14052839132730730323,
    ),
    (
        "30373e454c535a61686f767d848b9299a0a7aeb5bcc3cad1d8dfe6edf4fb020910171e252c333a41484f565d646b7279",
        6533401170048065422,
        13890607912195059129,
    ),
    (
        "3f464d545b626970777e858c939aa1a8afb6bdc4cbd2d9e0e7eef5fc030a11181f262d343b424950575e656c737a81888f969da4"
        "abb2b9c0c7ced5dce3eaf1",
        15038265055984948585,
        9127881433695042312,
    ),
    (
        "40474e555c636a71787f868d949ba2a9b0b7bec5ccd3dae1e8eff6fd040b121920272e353c434a51585f666d747b828990979ea5"
        "acb3bac1c8cfd6dde4ebf2f9",
        11083064061832698092,
        2953577405039921789,
    ),
    (
        "41484f565d646b727980878e959ca3aab1b8bfc6cdd4dbe2e9f0f7fe050c131a21282f363d444b525960676e757c838a91989fa6"
        "adb4bbc2c9d0d7dee5ecf3fa01",
        444801980686921533,
        10665731304136233340,
    ),
    (
        "50575e656c737a81888f969da4abb2b9c0c7ced5dce3eaf1f8ff060d141b222930373e454c535a61686f767d848b9299a0a7aeb5"
        "bcc3cad1d8dfe6edf4fb020910171e252c333a41484f565d646b7279",
        2344456178735448515,
        11719571865678506230,
    ),
    (
        "7f868d949ba2a9b0b7bec5ccd3dae1e8eff6fd040b121920272e353c434a51585f666d747b828990979ea5acb3bac1c8cfd6dde4"
        "ebf2f900070e151c232a31383f464d545b626970777e858c939aa1a8afb6bdc4cbd2d9e0e7eef5fc030a11181f262d343b424950"
        "575e656c737a81888f969da4abb2b9c0c7ced5dce3eaf1",
        5926385096735868780,
        9028632502974982977,
    ),
    (
        "80878e959ca3aab1b8bfc6cdd4dbe2e9f0f7fe050c131a21282f363d444b525960676e757c838a91989fa6adb4bbc2c9d0d7dee5"
        "ecf3fa01080f161d242b323940474e555c636a71787f868d949ba2a9b0b7bec5ccd3dae1e8eff6fd040b121920272e353c434a51"
        "585f666d747b828990979ea5acb3bac1c8cfd6dde4ebf2f9",
        15838856113771212233,
        5272335124442581340,
    ),
    (
        "81888f969da4abb2b9c0c7ced5dce3eaf1f8ff060d141b222930373e454c535a61686f767d848b9299a0a7aeb5bcc3cad1d8dfe6"
        "edf4fb020910171e252c333a41484f565d646b727980878e959ca3aab1b8bfc6cdd4dbe2e9f0f7fe050c131a21282f363d444b52"
        "5960676e757c838a91989fa6adb4bbc2c9d0d7dee5ecf3fa01",
        5067021833811671751,
        7155125000551205802,
    ),
    (
        "c0c7ced5dce3eaf1f8ff060d141b222930373e454c535a61686f767d848b9299a0a7aeb5bcc3cad1d8dfe6edf4fb020910171e25"
        "2c333a41484f565d646b727980878e959ca3aab1b8bfc6cdd4dbe2e9f0f7fe050c131a21282f363d444b525960676e757c838a91"
        "989fa6adb4bbc2c9d0d7dee5ecf3fa01080f161d242b323940474e555c636a71787f868d949ba2a9b0b7bec5ccd3dae1e8eff6fd"
        "040b121920272e353c434a51585f666d747b828990979ea5acb3bac1c8cfd6dde4ebf2f9",
        2449078334170002338,
        3875989658250115723,
    ),
    (
        "c8cfd6dde4ebf2f900070e151c232a31383f464d545b626970777e858c939aa1a8afb6bdc4cbd2d9e0e7eef5fc030a11181f262d"
        "343b424950575e656c737a81888f969da4abb2b9c0c7ced5dce3eaf1f8ff060d141b222930373e454c535a61686f767d848b9299"
        "a0a7aeb5bcc3cad1d8dfe6edf4fb020910171e252c333a41484f565d646b727980878e959ca3aab1b8bfc6cdd4dbe2e9f0f7fe05"
        "0c131a21282f363d444b525960676e757c838a91989fa6adb4bbc2c9d0d7dee5ecf3fa01080f161d242b3239",
        202520530910294351,
        10869846307367499485,
    ),
    (
        "00070e151c232a31383f464d545b626970777e858c939aa1a8afb6bdc4cbd2d9e0e7eef5fc030a11181f262d343b424950575e65"
        "6c737a81888f969da4abb2b9c0c7ced5dce3eaf1f8ff060d141b222930373e454c535a61686f767d848b9299a0a7aeb5bcc3cad1"
        "d8dfe6edf4fb020910171e252c333a41484f565d646b727980878e959ca3aab1b8bfc6cdd4dbe2e9f0f7fe050c131a21282f363d"
        "444b525960676e757c838a91989fa6adb4bbc2c9d0d7dee5ecf3fa01080f161d242b323940474e555c636a71787f868d949ba2a9"
        "b0b7bec5ccd3dae1e8eff6fd040b121920272e353c434a51585f666d747b828990979ea5acb3bac1c8cfd6dde4ebf2f9",
        12105616336390207267,
        16396518369852382845,
    ),
    (
        "2c333a41484f565d646b727980878e959ca3aab1b8bfc6cdd4dbe2e9f0f7fe050c131a21282f363d444b525960676e757c838a91"
        "989fa6adb4bbc2c9d0d7dee5ecf3fa01080f161d242b323940474e555c636a71787f868d949ba2a9b0b7bec5ccd3dae1e8eff6fd"
        "040b121920272e353c434a51585f666d747b828990979ea5acb3bac1c8cfd6dde4ebf2f900070e151c232a31383f464d545b6269"
        "70777e858c939aa1a8afb6bdc4cbd2d9e0e7eef5fc030a11181f262d343b424950575e656c737a81888f969da4abb2b9c0c7ced5"
        "dce3eaf1f8ff060d141b222930373e454c535a61686f767d848b9299a0a7aeb5bcc3cad1d8dfe6edf4fb020910171e252c333a41"
        "484f565d646b727980878e959ca3aab1b8bfc6cdd4dbe2e9f0f7fe050c131a21282f363d444b5259",
        13110221519668930530,
        5690689547910978957,
    ),
]


def as_tensors(strings: list[bytes], offset_dtype: torch.dtype = torch.int64) -> tuple[torch.Tensor, torch.Tensor]:
    data = torch.frombuffer(bytearray(b"".join(strings) or b"\0"), dtype=torch.uint8)
    lengths = torch.tensor([0, *map(len, strings)])
    return data, lengths.cumsum(0).to(offset_dtype)


def signed(values: list[int]) -> list[int]:
    return [value - (value >> 63 << 64) for value in values]


@pytest.fixture(params=["reference", "cpu"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TRITON_OPS", request.param)
    return request.param


@pytest.mark.parametrize("offset_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("kind", "column"), [("farm", 1), ("murmur", 2)])
def test_hash_bytes_gives_the_golden_values(
    implementation: str, kind: str, column: int, offset_dtype: torch.dtype
) -> None:
    data, offsets = as_tensors([bytes.fromhex(case[0]) for case in GOLDEN], offset_dtype)
    assert hash_bytes(data, offsets, kind).tolist() == signed([case[column] for case in GOLDEN])


@pytest.mark.parametrize("kind", ["farm", "murmur", "xxh64"])
def test_hash_bytes_of_a_slice_equals_the_slice_of_the_hashes(implementation: str, kind: str) -> None:
    data, offsets = as_tensors([b"one", b"", b"three", b"four" * 30, b"five"])
    assert torch.equal(hash_bytes(data, offsets[2:5], kind), hash_bytes(data, offsets, kind)[2:4])


@pytest.mark.parametrize("kind", ["farm", "murmur", "xxh64"])
def test_columns_named_by_address_have_the_hashes_of_their_strings(implementation: str, kind: str) -> None:
    columns = [as_tensors(strings, torch.int32) for strings in ([b"one", b"", b"three"], [b""], [b"four" * 30])]
    targets = [torch.zeros(len(offsets) - 1, dtype=torch.int64) for _, offsets in columns]
    table = [
        (data.data_ptr(), offsets.data_ptr(), len(target), target.data_ptr())
        for (data, offsets), target in zip(columns, targets, strict=True)
    ]
    hash_columns(np.array(table), kind)
    assert all(torch.equal(target, hash_bytes(*column, kind)) for target, column in zip(targets, columns, strict=True))


@pytest.mark.parametrize("kind", ["farm", "murmur", "xxh64"])
def test_hash_bytes_of_no_strings_is_empty(implementation: str, kind: str) -> None:
    data, offsets = as_tensors([])
    hashes = hash_bytes(data, offsets, kind)
    assert hashes.dtype == torch.int64
    assert len(hashes) == 0


@pytest.mark.parametrize("kind", ["farm", "murmur", "xxh64"])
@given(strings=st.lists(st.binary(max_size=300), max_size=8))
@settings(max_examples=60, deadline=None)
def test_kernel_equals_the_reference(kind: str, strings: list[bytes]) -> None:
    data, offsets = as_tensors(strings)
    assert torch.equal(hash_bytes(data, offsets, kind), reference.hash_bytes(data, offsets, kind))


@pytest.mark.parametrize("offsets", [[0, 5, 3], [0, 9], [-1, 2]])
def test_hash_bytes_refuses_offsets_that_leave_the_data(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="over 5 bytes; they must rise and stay inside"):
        hash_bytes(torch.zeros(5, dtype=torch.uint8), torch.tensor(offsets), "farm")


@given(strings=st.lists(st.binary(max_size=150), max_size=8))
@settings(max_examples=60, deadline=None)
def test_xxh64_equals_the_package_xxhash(strings: list[bytes]) -> None:
    expected = signed([xxhash.xxh64(string).intdigest() for string in strings])
    assert hash_bytes(*as_tensors(strings), "xxh64").tolist() == expected
    assert reference.hash_bytes(*as_tensors(strings), "xxh64").tolist() == expected


def test_hash_bytes_refuses_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="hash kind is 'md5', need one of farm, murmur, xxh64"):
        hash_bytes(*as_tensors([b"a"]), "md5")  # type: ignore[arg-type]


@pytest.mark.real_data
@pytest.mark.parametrize(("kind", "key"), [("farm", "farm_fingerprint64"), ("murmur", "murmur64a_seed0")])
def test_hash_bytes_gives_every_golden_value_of_the_oracle(implementation: str, kind: str, key: str) -> None:
    oracle = Path(os.environ.get("RECIS_DATA", "")) / ".." / "oracle" / "hash_golden.json"
    if "RECIS_DATA" not in os.environ or not oracle.exists():
        pytest.skip("RECIS_DATA names no folder beside which oracle/hash_golden.json lies")
    cases = json.loads(oracle.read_text())
    data, offsets = as_tensors([bytes.fromhex(case["hex"]) for case in cases])
    assert len(cases) == 529
    assert hash_bytes(data, offsets, kind).tolist() == signed([case[key] for case in cases])
