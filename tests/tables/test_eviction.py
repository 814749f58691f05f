"""Eviction: which ids a table forgets, against a dict of what was looked up when."""

import functools

import pytest
import torch
from hypothesis import strategies as st

from recis_lightning.schema import Constant, Sgd, Table
from recis_lightning.schema.policies import Admission, Age, Always, Counter, Eviction, L2Norm, Lfu, Lru, Score, Ttl
from recis_lightning.tables import PendingGrad, TableFullError, TableGroup, TableSlice, eviction
from recis_lightning.tables.group import LENT_ROWS
from tests.tables.blocks import Check, choose_implementation, device, sized
from triton_ops.row_layout import COUNT, LAST_STEP

INT64 = torch.iinfo(torch.int64)
EVERY_ID = Always()


def make_group(
    *policies: Eviction, capacity: int | None = None, admission: Admission = EVERY_ID, max_rows: int = 1 << 14
) -> TableGroup:
    table = Table(
        name="user",
        dim=2,
        initializer=Constant(value=1.0),
        optimizer=Sgd(),
        capacity=capacity,
        admission=admission,
        eviction=policies,
    )
    return TableGroup([table], max_rows=max_rows, device=device())


def train(group: TableGroup, ids: list[int], now: float | None = None) -> dict[str, int]:
    """A step that looks these ids up, and the evictions behind it."""
    group.begin_step()
    ids_N = torch.tensor(ids, dtype=torch.int64, device=group.device)
    rows = group.lookup(ids_N, torch.tensor([0, len(ids)]), torch.tensor([0]), True)
    group.unique_rows(rows, record=True)
    group[0].step += 1
    return group.evict(now)


def held(group: TableGroup) -> list[int]:
    return sorted(group[0].export().ids.tolist())


def test_age_forgets_what_more_than_so_many_steps_did_not_look_up() -> None:
    group = make_group(Age(steps=2, every=1))
    assert [train(group, ids) for ids in ([1, 2], [2], [3])] == [{}, {}, {}]
    assert train(group, [3]) == {"user": 1}  # id 1, of step 1, at the end of step 4: 1 < 4 - 2
    assert held(group) == [2, 3]
    assert group[0].stats()["evicted"] == 1


def test_age_acts_every_so_many_steps_as_the_filter_hook_of_recis_does() -> None:
    group = make_group(Age(steps=3, every=4))
    evicted = [train(group, [100 + step]) for step in range(1, 9)]
    # Steps 1 to 3 keep all; step 4 forgets last steps below 1, step 8 those below 5.
    assert evicted == [{}, {}, {}, {}, {}, {}, {}, {"user": 4}]
    assert held(group) == [105, 106, 107, 108]


def test_age_forgets_ids_that_wait_for_admission_too() -> None:
    group = make_group(Age(steps=1, every=1), admission=Counter(threshold=2))
    train(group, [1])
    train(group, [])
    train(group, [])
    assert len(group[0].export_admission()["ids"]) == 0
    train(group, [1])
    assert held(group) == []
    train(group, [1])
    assert held(group) == [1]


def test_time_to_live_forgets_by_the_clock_on_the_wall_and_never_early() -> None:
    group = make_group(Ttl(seconds=60, every=1))
    for now, ids in ((0.0, [1]), (30.0, [2]), (59.0, [3]), (60.0, [4])):
        assert train(group, ids, now) == {}
    assert train(group, [5], now=60.5) == {"user": 1}
    assert train(group, [5], now=100.0) == {"user": 1}
    assert held(group) == [3, 4, 5]


def test_times_of_steps_are_kept_as_long_as_they_matter() -> None:
    group = make_group(Ttl(seconds=10, every=1))
    for second in range(100):
        train(group, [second], now=float(second))
    assert len(group[0].times) <= 13
    assert held(group) == list(range(89, 100))


def test_lru_keeps_exactly_the_ids_looked_up_last() -> None:
    group = make_group(Lru(), capacity=3)
    train(group, [1, 2, 3])
    train(group, [1, 4])
    assert held(group) == [1, 3, 4]  # 2 and 3 are as old: the lower id goes
    train(group, [5])
    assert held(group) == [1, 4, 5]


def test_lfu_keeps_the_most_frequent_then_the_latest_then_the_higher_ids() -> None:
    group = make_group(Lfu(every=1), capacity=3)
    train(group, [1, 1, 1, 2, 2, 3, 3])
    train(group, [3, 4])
    assert held(group) == [1, 2, 3]
    train(group, [4, 4, 5, 5])
    assert held(group) == [1, 3, 5]


def test_bounded_table_fed_fifty_times_its_capacity_keeps_the_most_recent_ids_in_the_rows_it_had() -> None:
    capacity, batch = sized((200, 100), (60, 60))
    group = make_group(Lru(), capacity=capacity)
    ids = (torch.randperm(50 * capacity, generator=torch.Generator().manual_seed(0)) - 5000).tolist()
    for begin in range(0, len(ids), batch):
        train(group, ids[begin : begin + batch])
        assert len(group[0]) <= capacity
    assert held(group) == sorted(ids[-capacity:])
    stats = group[0].stats()
    assert stats["rows"] <= 2 * (capacity + batch)  # whole granules
    assert (stats["inserted"], stats["evicted"]) == (50 * capacity, 49 * capacity)


def test_lru_is_exact_while_its_queue_is_touched_erased_and_overtaken() -> None:
    capacity, steps = sized((640, 120), (100, 24))
    group = make_group(Lru(), capacity=capacity)
    random = torch.Generator().manual_seed(3)
    last: dict[int, int] = {}
    for step in range(1, steps):
        ids = torch.randint(3 * capacity, (60,), generator=random).tolist()
        train(group, ids)
        last |= dict.fromkeys(ids, step)
        for id_ in sorted(last, key=lambda id_: (last[id_], id_))[: max(0, len(last) - capacity)]:
            del last[id_]
        if step % 10 == 0:
            erased = sorted(last)[::7]
            group[0].erase(torch.tensor(erased))
            last = {id_: when for id_, when in last.items() if id_ not in set(erased)}
        assert held(group) == sorted(last)


def test_evicted_ids_start_anew_when_they_come_back() -> None:
    group = make_group(Lru(), capacity=1)
    train(group, [1])
    row = group[0].find(torch.tensor([1]))
    group.weight[row] = 9.0
    train(group, [2])
    train(group, [1])
    row = group[0].find(torch.tensor([1]))
    assert group[0].weight(row).tolist() == [[1.0, 1.0]]
    assert group.meta[row, COUNT].tolist() == [1]


def test_short_embeddings_are_forgotten_by_their_norm() -> None:
    group = make_group(L2Norm(below=1.0, every=2))
    train(group, [1, 2, 3])
    group.weight[group[0].find(torch.tensor([1, 3]))] = torch.tensor([[0.6, 0.8], [0.6, 0.7]])
    assert held(group) == [1, 2, 3]
    assert train(group, [2]) == {"user": 1}
    assert held(group) == [1, 2]


def distance_from_ten(rows: TableSlice, step: int) -> torch.Tensor:
    return -(rows.ids - 10).abs()


def nothing_of_use(rows: TableSlice, step: int) -> torch.Tensor:
    return torch.full((len(rows),), float("nan"))


def test_score_of_the_user_decides_down_to_the_capacity_or_below_a_bound() -> None:
    group = make_group(Score(function=f"{__name__}.distance_from_ten", every=1), capacity=3)
    train(group, [8, 9, 10, 11, 12])
    assert held(group) == [9, 10, 11]
    group = make_group(Score(function=f"{__name__}.distance_from_ten", below=-1.0, every=1))
    train(group, [8, 9, 10, 12])
    assert held(group) == [9, 10]


def test_score_functions_that_do_not_exist_or_give_no_numbers_are_told_with_their_table() -> None:
    with pytest.raises(ValueError, match="table 'user': eviction score finds no function 'math.nothing'"):
        make_group(Score(function="math.nothing", below=0.0))
    with pytest.raises(ValueError, match=r"score names math.pi, which can't be called"):
        make_group(Score(function="math.pi", below=0.0))
    group = make_group(Score(function=f"{__name__}.nothing_of_use", below=0.0, every=1))
    with pytest.raises(ValueError, match=r"nothing_of_use gives torch.float32 \[2\] for 2 ids; give a finite number"):
        train(group, [1, 2])


def test_several_evictions_follow_one_another() -> None:
    group = make_group(Age(steps=1, every=1), Lru(), capacity=2)
    train(group, [1, 2, 3])
    assert held(group) == [2, 3]
    train(group, [])
    train(group, [4])
    assert held(group) == [4]


def test_eviction_is_refused_while_gradients_wait() -> None:
    group = make_group(Lru(), capacity=1)
    train(group, [1])
    group.pending.append(PendingGrad(torch.tensor([64]), torch.zeros(1, 2), frozenset([0])))
    with pytest.raises(RuntimeError, match="evict was called while gradients of tables user wait for the optimizer"):
        group.evict()
    with pytest.raises(RuntimeError, match="erase was called while"):
        group[0].erase(torch.tensor([1]))
    assert held(group) == [1]


def test_table_at_its_capacity_without_an_eviction_is_an_error_that_names_it() -> None:
    group = make_group(capacity=100)
    group[0].find_or_insert(torch.arange(100))
    with pytest.raises(TableFullError, match="table 'user' is full: it holds 100 ids, its capacity; raise capacity"):
        group[0].find_or_insert(torch.arange(101))
    assert held(group) == list(range(100))
    assert group[0].stats()["erased_rows"] == 0
    group[0].erase(torch.tensor([7]))
    group[0].find_or_insert(torch.tensor([1000]))
    group[0].clear()
    group[0].find_or_insert(torch.arange(100))
    with pytest.raises(TableFullError):
        group[0].find_or_insert(torch.tensor([-1]))


def test_table_that_is_never_let_evict_stops_at_a_bound_and_says_what_to_call() -> None:
    group = make_group(Lru(), capacity=100, max_rows=1 << 18)
    ids = torch.arange(100 + LENT_ROWS)
    group[0].find_or_insert(ids)
    message = "holds 65,636 ids, its capacity is 100, and no eviction came to pass; call EmbeddingCollection.evict"
    with pytest.raises(TableFullError, match=message):
        group[0].find_or_insert(torch.tensor([-1]))
    group.evict()
    assert held(group) == ids[-100:].tolist()


def test_eviction_does_not_depend_on_where_rows_lie() -> None:
    one, other = make_group(Lru(), capacity=40), make_group(Lru(), capacity=40)
    for group, ids in ((one, list(range(60))), (other, list(range(59, -1, -1)))):
        train(group, ids)
        train(group, ids[:5])
    other_kept = set(held(other))
    assert set(range(20, 60)) == other_kept
    assert held(one) == [0, 1, 2, 3, 4, *range(25, 60)]


@pytest.mark.parametrize("implementation", ["cpu"], indirect=True)
@pytest.mark.parametrize(
    "policy", [Age(steps=1, every=1), Lru(), Lfu(every=2), L2Norm(below=1.2, every=2)], ids=lambda p: p.kind
)
def test_a_gpu_forgets_what_the_cpu_forgets(
    implementation: str, policy: Eviction, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(2)
    steps = [torch.randint(0, 40, (30,), generator=generator).tolist() for _ in range(4)]
    found = []
    for place in (implementation, "triton"):
        choose_implementation(place, monkeypatch)
        monkeypatch.setattr(eviction, "_is_host", lambda device, is_host=place == implementation: is_host)
        group = make_group(policy, capacity=None if policy.kind in ("age", "l2_norm") else 12)
        evicted = []
        for ids in steps:
            evicted.append(train(group, ids))
            few = group[0].find_or_insert(torch.tensor(ids[:3]))
            group.weight[few] = torch.full((3, 2), 0.5)
        content = group[0].export()
        found.append((evicted, content.ids.tolist(), content.last_step.tolist(), content.count.tolist()))
    assert found[0] == found[1]
    assert any(found[0][0])


def rank(kind: str, model: dict[int, tuple[int, int]], id_: int) -> tuple[int, ...]:
    """What an eviction sorts by: the lowest go first."""
    last_step, count = model[id_]
    return (count, last_step, id_) if kind == "lfu" else (last_step, id_)


lists = st.lists(st.one_of(st.integers(-12, 12), st.sampled_from([INT64.min, INT64.max])), max_size=12)
calls = st.lists(st.tuples(st.sampled_from(["train"] * 5 + ["erase", "copy", "reload", "clear"]), lists), max_size=14)


@pytest.mark.interpreted
def test_any_sequence_of_steps_forgets_what_a_dict_forgets(check: Check) -> None:
    kinds = st.sampled_from(["age", "lru", "lfu"])
    check(forgets_what_a_dict_forgets, kinds, st.integers(1, 3), st.integers(1, 3), calls, examples=100)


def forgets_what_a_dict_forgets(kind: str, limit: int, every: int, sequence: list[tuple[str, list[int]]]) -> None:
    capacity = None if kind == "age" else 16 * limit
    policy: Eviction = {"age": Age(steps=limit, every=every), "lru": Lru(every=every), "lfu": Lfu(every=every)}[kind]
    group = make_group(policy, capacity=capacity, max_rows=1024)
    model: dict[int, tuple[int, int]] = {}  # id -> last step, count
    step = 0
    for name, ids in sequence:
        if name == "train":
            step += 1
            train(group, ids)
            for id_ in ids:
                model[id_] = step, model.get(id_, (0, 0))[1] + 1
            if step % every == 0:
                ranked = sorted(model, key=functools.partial(rank, kind, model))
                gone = (
                    [id_ for id_ in ranked if model[id_][0] < step - limit]
                    if capacity is None
                    else ranked[: max(0, len(model) - capacity)]
                )
                for id_ in gone:
                    del model[id_]
        elif name == "erase":
            group[0].erase(torch.tensor(ids, dtype=torch.int64))
            for id_ in ids:
                model.pop(id_, None)
        elif name == "copy":
            group = group.__deepcopy__({})
        elif name == "reload":
            content, state = group[0].export(), group[0].policy_state()
            group = make_group(policy, capacity=capacity, max_rows=1024)
            group[0].load(content)
            group[0].step = step
            group[0].load_policy_state(state)
        else:
            group[0].clear()
            model, step = {}, 0
        found = group[0].export()
        columns = found.ids.tolist(), found.last_step.tolist(), found.count.tolist()
        assert {id_: rest for id_, *rest in zip(*columns, strict=True)} == {i: list(r) for i, r in model.items()}
        used = group.rows.handed_out(0)
        assert sum(int((group.meta[piece, LAST_STEP] >= 0).sum()) for piece in used) == len(model)
