"""Admission: which unknown ids get a row, against counts in a dict."""

import copy

import pytest
import torch
from hypothesis import strategies as st

from recis_lightning.schema import Table, Uniform
from recis_lightning.schema.policies import Admission, Always, Bloom, Counter, Probability, ReadOnly
from recis_lightning.tables import TableFullError, TableGroup
from tests.tables.blocks import Check, choose_implementation, device

INT64 = torch.iinfo(torch.int64)


def make_group(*admissions: Admission, seed: int = 0, max_rows: int = 1 << 14) -> TableGroup:
    tables = [
        Table(name=f"t{number}", dim=2, initializer=Uniform(low=1.0, high=2.0), admission=admission)
        for number, admission in enumerate(admissions)
    ]
    return TableGroup(tables, seed=seed, max_rows=max_rows, device=device())


def look_up(group: TableGroup, *runs: list[int], insert: bool = True) -> list[list[bool]]:
    """Look up a list of ids in each table, and say of each id whether it has a row."""
    sizes = torch.tensor([0, *(len(run) for run in runs)])
    ids = torch.tensor([id_ for run in runs for id_ in run], dtype=torch.int64)
    rows = group.lookup(ids.to(group.device), sizes.cumsum(0), torch.arange(len(runs)), insert)
    known = (rows != group.default_row).split(sizes[1:].tolist())
    return [part.tolist() for part in known]


def test_counter_admits_an_id_with_its_third_occurrence_and_refuses_the_two_before() -> None:
    group = make_group(Counter(threshold=3))
    assert look_up(group, [5, 7]) == [[False, False]]
    assert look_up(group, [5]) == [[False]]
    assert look_up(group, [5, 7]) == [[True, False]]
    assert len(group[0]) == 1
    stats = group[0].stats()
    assert (stats["inserted"], stats["admitted"], stats["refused"], stats["waiting"]) == (1, 1, 4, 1)


def test_all_occurrences_in_a_lookup_count_before_the_id_is_decided_on() -> None:
    group = make_group(Counter(threshold=3))
    assert look_up(group, [5, 7, 5, 5]) == [[True, False, True, True]]


def test_an_id_given_once_with_its_number_of_occurrences_counts_as_often() -> None:
    group = make_group(Counter(threshold=3))
    ids, splits, counts = torch.tensor([5, 7, 8]), torch.tensor([0, 3]), torch.tensor([3, 2, 1])
    rows = group.lookup(ids, splits, torch.tensor([0]), True, counts)
    assert (rows != group.default_row).tolist() == [True, False, False]
    assert group[0].stats()["refused"] == 3
    assert look_up(group, [5, 7, 8]) == [[True, True, False]]


def test_what_is_counted_moves_with_its_group() -> None:
    group = make_group(Counter(threshold=2), Bloom(bytes=1 << 16, threshold=2))
    look_up(group, [5, 6], [5])
    group.build_anew(torch.device("cpu"))
    assert look_up(group, [5, 7], [5, 7]) == [[True, False], [True, False]]


@pytest.mark.parametrize("implementation", ["cpu"], indirect=True)
def test_kernels_of_a_gpu_decide_and_forget_as_the_cpu(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = Counter(threshold=2), Bloom(bytes=1 << 16, threshold=2, halve_every=3), Probability(probability=0.5)
    generator = torch.Generator().manual_seed(4)
    steps = [torch.randint(0, 12, (3, 8), generator=generator).tolist() for _ in range(3)]
    found = []
    for place in (implementation, "triton"):
        choose_implementation(place, monkeypatch)
        group = make_group(*rules)
        decided = [look_up(group, *runs) for runs in steps]
        group[0].erase(torch.tensor([1, 2]))
        group.gate.end_step(3)
        exports = [(table.export().ids.tolist(), table.export_admission()) for table in group]
        copied = copy.deepcopy(group)
        decided.append(look_up(copied, *steps[0]))
        found.append((decided, exports, [table.stats()["refused"] for table in copied]))
    (decided, exports, refused), (decided_there, exports_there, refused_there) = found
    assert decided == decided_there
    assert refused == refused_there
    for (ids, known), (ids_there, known_there) in zip(exports, exports_there, strict=True):
        assert ids == ids_there
        assert known.keys() == known_there.keys()
        assert all(torch.equal(known[name], known_there[name]) for name in known)


def test_id_not_admitted_reads_zeros_and_lies_in_no_trained_granule() -> None:
    group = make_group(Counter(threshold=2))
    ids = torch.tensor([5, 6, 6])
    rows = group.lookup(ids, torch.tensor([0, 3]), torch.tensor([0]), insert=True)
    assert not group.weight[rows[0]].any()
    assert (group.weight[rows[1]] >= 1).all()
    unique, inverse = group.unique_rows(rows)
    assert (int((unique >= 0).sum()), inverse.tolist()) == (1, [-1, 0, 0])


def test_evaluation_counts_nothing() -> None:
    group = make_group(Counter(threshold=2))
    for _ in range(5):
        assert look_up(group, [5], insert=False) == [[False]]
    assert look_up(group, [5]) == [[False]]


def test_read_only_inserts_nothing_and_trains_what_was_loaded() -> None:
    group = make_group(ReadOnly())
    group[0].find_or_insert(torch.tensor([1]))  # as loading does: past admission
    assert look_up(group, [1, 2]) == [[True, False]]
    assert len(group[0]) == 1
    assert group[0].stats()["refused"] == 1
    row = int(group[0].find(torch.tensor([1])))
    assert group.granule_table[row // 64] == 0


def test_tables_of_a_group_each_follow_their_own_admission_in_one_call() -> None:
    group = make_group(Always(), Counter(threshold=2), ReadOnly(), Bloom(threshold=2, bytes=1 << 16, hashes=2))
    assert look_up(group, [5, 6], [5, 5, 6], [5], [5, 5, 6]) == [
        [True, True],
        [True, True, False],
        [False],
        [True, True, False],
    ]
    assert [table.stats()["refused"] for table in group] == [0, 1, 1, 1]


def test_probability_admits_about_its_share_and_decides_by_seed_table_id_and_step_alone() -> None:
    group, other = make_group(Probability(probability=0.25)), make_group(Probability(probability=0.25))
    ids = list(range(4000))
    (admitted,) = look_up(group, ids)
    assert abs(sum(admitted) - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5
    (reversed_,) = look_up(other, ids[::-1])
    assert reversed_[::-1] == admitted
    seeded = make_group(Probability(probability=0.25), seed=1)
    assert look_up(seeded, ids) != [admitted]
    group[0].step = 1
    (again,) = look_up(group, ids)
    assert sum(again) > sum(admitted)


def test_probability_one_admits_all() -> None:
    group = make_group(Probability(probability=1.0))
    assert look_up(group, [0, -1, INT64.min, INT64.max]) == [[True] * 4]


def test_bloom_filter_never_counts_too_little_and_rarely_too_much() -> None:
    group = make_group(Bloom(threshold=2, bytes=1 << 16, hashes=3))
    once = list(range(8000))
    (early,) = look_up(group, once)
    assert sum(early) < 0.08 * len(once)  # (1 - exp(-3 * 8000 / 65536)) ** 3 = 3 % at the end
    (again,) = look_up(group, once)
    assert all(again)


def test_bloom_cells_stop_at_their_largest_count() -> None:
    group = make_group(Bloom(threshold=255, bytes=1 << 16))
    assert look_up(group, [1] * 254) == [[False] * 254]
    assert look_up(group, [1] * 1000) == [[True] * 1000]
    assert look_up(group, [2] * 300) == [[True] * 300]


def test_halving_lets_counts_of_long_ago_fade_and_happens_once_a_step() -> None:
    group = make_group(Bloom(threshold=4, bytes=1 << 16, halve_every=2), Bloom(threshold=4, bytes=1 << 16))
    look_up(group, [1, 1, 1], [1, 1, 1])
    group[0].step = 1
    group.evict()
    assert look_up(group, [2, 2], []) == [[False, False], []]
    group[0].step = 2
    for _ in range(3):  # as where other groups step and this one does not
        group.evict()
    twin = copy.deepcopy(group)
    twin.evict()
    for copied in (group, twin):  # 1 is counted 1, 2 is counted 1
        assert look_up(copied, [1, 1, 2], [1]) == [[False, False, False], [True]]
        assert look_up(copied, [1, 2], []) == [[True, False], []]


def test_bloom_tells_which_share_of_unseen_ids_would_pass() -> None:
    group = make_group(Bloom(threshold=2, bytes=1 << 16, hashes=2))
    assert group[0].stats(scan=True)["bloom_passes"] == 0.0
    look_up(group, list(range(20_000)))
    told = group[0].stats(scan=True)["bloom_passes"]
    (passed,) = look_up(group, list(range(10**6, 10**6 + 2000)))
    assert 0.1 < told < 0.4
    assert sum(passed) / 2000 == pytest.approx(told, abs=0.05)


def test_id_forgotten_and_met_again_is_counted_anew() -> None:
    group = make_group(Counter(threshold=2))
    look_up(group, [5, 5])
    group[0].erase(torch.tensor([5]))
    assert look_up(group, [5]) == [[False]]
    assert look_up(group, [5]) == [[True]]


@pytest.mark.parametrize("admission", [Counter(threshold=3), Bloom(threshold=3, bytes=1 << 16)])
def test_counts_go_into_copies_and_through_export_by_shard_and_clear_forgets_them(admission: Admission) -> None:
    group, other = make_group(admission), make_group(admission)
    ids = [0, -1, INT64.min, INT64.max, *range(100, 200)]
    look_up(group, ids + ids)
    for first in (2048, 0):
        other[0].load_admission(group[0].export_admission(first, first + 2048))
    copied = group.__deepcopy__({})
    group[0].clear()
    assert look_up(group, ids) == [[False] * len(ids)]
    assert look_up(other, ids) == [[True] * len(ids)]
    assert look_up(copied, ids) == [[True] * len(ids)]
    assert copied[0].stats()["refused"] == 2 * len(ids)


def test_parts_of_what_was_counted_load_by_the_shards_that_are_asked_for() -> None:
    group, lower = make_group(Counter(threshold=2)), make_group(Counter(threshold=2))
    look_up(group, list(range(64)))
    lower[0].load_admission(group[0].export_admission(), 0, 2048)
    kept = set(lower[0].export_admission()["ids"].tolist())
    assert kept == set(group[0].export_admission(0, 2048)["ids"].tolist())
    assert 0 < len(kept) < 64


def test_filter_of_another_size_is_refused_by_name_of_both_sizes() -> None:
    group, other = make_group(Bloom(threshold=2, bytes=1 << 16)), make_group(Bloom(threshold=2, bytes=1 << 17))
    with pytest.raises(ValueError, match="table 't0': a filter of 65,536 bytes was saved, 131,072 are declared"):
        other[0].load_admission(group[0].export_admission())


def test_room_for_ids_that_wait_is_bounded_and_says_so() -> None:
    group = make_group(Counter(threshold=2), max_rows=64)

    def count_too_many() -> None:
        look_up(group, list(range(65)))
        group.gate.raise_lost(wait=True)  # a device has told nobody yet

    with pytest.raises(TableFullError, match="table 't0': its admission has room to count 64 ids that wait"):
        count_too_many()


ids_lists = st.lists(st.one_of(st.integers(-8, 8), st.sampled_from([INT64.min, INT64.max])), max_size=30)
calls = st.lists(
    st.tuples(st.sampled_from(["train", "train", "train", "evaluate", "erase", "copy", "clear"]), ids_lists, ids_lists),
    max_size=10,
)


@pytest.mark.interpreted
def test_any_sequence_of_calls_admits_what_counts_in_a_dict_say(check: Check) -> None:
    check(admits_what_counts_in_a_dict_say, st.integers(1, 4), calls, examples=60)


def admits_what_counts_in_a_dict_say(threshold: int, sequence: list[tuple[str, list[int], list[int]]]) -> None:
    group = make_group(Counter(threshold=threshold), Always(), max_rows=512)
    held: list[set[int]] = [set(), set()]
    counts: dict[int, int] = {}
    for name, *runs in sequence:
        if name == "train":
            for id_ in runs[0]:
                if id_ not in held[0]:
                    counts[id_] = counts.get(id_, 0) + 1
            admitted = {id_ for id_, count in counts.items() if count >= threshold}
            counts = {id_: count for id_, count in counts.items() if id_ not in admitted}
            held[0] |= admitted
            held[1] |= set(runs[1])
            found = look_up(group, *runs)
        elif name == "erase":
            group[0].erase(torch.tensor(runs[0], dtype=torch.int64))
            held[0] -= set(runs[0])
            continue
        elif name == "copy":
            group = group.__deepcopy__({})
            continue
        elif name == "clear":
            group[0].clear()
            held[0], counts = set(), {}
            continue
        else:
            found = look_up(group, *runs, insert=False)
        assert found == [[id_ in ids for id_ in run] for ids, run in zip(held, runs, strict=True)]
        state = group[0].export_admission()
        assert dict(zip(state["ids"].tolist(), state["count"].tolist(), strict=True)) == counts
        assert [set(table.export().ids.tolist()) for table in group] == held
