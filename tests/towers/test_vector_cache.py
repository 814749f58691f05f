import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recis_lightning.ragged import Ragged
from recis_lightning.towers.vector_cache import VectorCache, content_keys

ROW = 16 + 4 * 3  # bytes of a key and of a vector of three float32


def open_cache(folder: Path, tower: str = "aa", max_bytes: int = 1 << 20, file_bytes: int = 100 * ROW) -> VectorCache:
    return VectorCache(folder, tower, 3, torch.float32, max_bytes, file_bytes)


def keys_of(*numbers: int) -> list[bytes]:
    return [number.to_bytes(16, "little") for number in numbers]


def vectors_of(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)[:, None] / torch.tensor([3.0, 7.0, 11.0])


def stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def test_keys_depend_on_a_rows_values_and_nothing_else() -> None:
    keys = content_keys(Ragged.from_lists([[1, 2], [1], [2], [], [1, 2], [1, 2, 0]]))
    assert keys[0] == keys[4]
    assert len(set(keys)) == 5
    assert content_keys(Ragged.from_lists([[1, 2]])) == keys[:1]


@pytest.mark.parametrize("written", [False, True])
def test_vectors_are_found_to_the_bit_whether_they_wait_or_are_written(tmp_path: Path, written: bool) -> None:
    cache = open_cache(tmp_path)
    cache.add(keys_of(1, 2, 3), vectors_of(1, 2, 3))
    if written:
        cache.flush()
    known, found = cache.find(keys_of(3, 9, 1))
    assert known.tolist() == [0, 2]
    assert torch.equal(found, vectors_of(3, 1))


def test_a_later_process_finds_what_an_earlier_one_wrote(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    cache.add(keys_of(*range(250)), vectors_of(*range(250)))
    cache.close()
    later = open_cache(tmp_path)
    known, found = later.find(keys_of(*range(300)))
    assert known.tolist() == list(range(250))
    assert torch.equal(found, vectors_of(*range(250)))
    assert len(list(tmp_path.glob("aa/*.safetensors"))) == 3  # 100 + 100 + 50


def test_what_was_added_in_inference_mode_can_be_trained_on(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    with torch.inference_mode():
        cache.add(keys_of(1), vectors_of(1))
    weight = torch.ones(3, requires_grad=True)
    (cache.find(keys_of(1))[1] * weight).sum().backward()
    assert torch.equal(weight.grad, vectors_of(1)[0])


def test_another_tower_finds_nothing(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, "aa")
    cache.add(keys_of(1), vectors_of(1))
    cache.close()
    assert len(open_cache(tmp_path, "bb")) == 0


def test_files_stay_below_the_bound_and_what_found_no_room_is_counted(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, max_bytes=5_000, file_bytes=50 * ROW)
    with pytest.warns(UserWarning, match="has reached 5000 bytes.*raise cache_bytes"):
        cache.add(keys_of(*range(400)), vectors_of(*range(400)))
    cache.flush()
    known, found = cache.find(keys_of(*range(400)))
    assert len(known) + cache.not_kept == 400
    assert 50 <= len(known) < 400
    assert torch.equal(found, vectors_of(*known.tolist()))
    assert stored_bytes(tmp_path) <= 5_000


def test_room_is_made_by_removing_the_tower_used_longest_ago(tmp_path: Path) -> None:
    for age, tower in enumerate(("aa", "bb")):
        cache = open_cache(tmp_path, tower)
        cache.add(keys_of(*range(50)), vectors_of(*range(50)))
        cache.close()
        os.utime(tmp_path / tower / "in-use", (age, age))
    newest = open_cache(tmp_path, "cc", max_bytes=5_000)
    newest.add(keys_of(*range(50)), vectors_of(*range(50)))
    newest.flush()
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"bb", "cc"}


def test_vectors_that_another_process_uses_are_not_removed(tmp_path: Path) -> None:
    used = open_cache(tmp_path, "aa")
    used.add(keys_of(*range(100)), vectors_of(*range(100)))
    used.flush()
    other = open_cache(tmp_path, "bb", max_bytes=4_500)
    with pytest.warns(UserWarning, match="has reached"):
        other.add(keys_of(*range(100)), vectors_of(*range(100)))
    assert torch.equal(open_cache(tmp_path, "aa").find(keys_of(*range(100)))[1], vectors_of(*range(100)))
    assert stored_bytes(tmp_path) <= 4_500


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    cache.add(keys_of(1), vectors_of(1))
    cache.close()
    (path,) = tmp_path.glob("aa/*.safetensors")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=rf"{path.name} is no file of vectors.*remove it"):
        open_cache(tmp_path)


def test_what_a_process_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    (tmp_path / "aa" / "dead.tmp").write_bytes(b"half")
    cache.flush()
    assert not list(tmp_path.glob("aa/*.tmp"))


def test_a_bound_below_one_vector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one vector takes 28; give it more"):
        open_cache(tmp_path, max_bytes=20)


def fill(folder: Path, start: int) -> None:
    cache = open_cache(folder, file_bytes=10 * ROW)
    for number in range(start, start + 160):
        cache.add(keys_of(number), vectors_of(number))
    cache.close()


def test_several_processes_fill_one_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fill, args=(tmp_path, start)) for start in (0, 80)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    known, found = open_cache(tmp_path).find(keys_of(*range(240)))
    assert known.tolist() == list(range(240))
    assert torch.equal(found, vectors_of(*range(240)))


def test_a_process_sees_what_another_wrote_when_it_writes_itself(tmp_path: Path) -> None:
    one, other = open_cache(tmp_path), open_cache(tmp_path)
    one.add(keys_of(1), vectors_of(1))
    one.flush()
    assert len(other.find(keys_of(1))[0]) == 0
    other.flush()
    assert torch.equal(other.find(keys_of(1))[1], vectors_of(1))
