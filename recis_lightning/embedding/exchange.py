"""The route of several ranks: each owns a range of virtual shards, and looks up, trains and forgets the ids in it.

A step asks with two all-to-alls (how many ids of each table, then the ids), is answered with one (their rows), and
brings the gradients with one, for all groups of tables together. What is asked for is asked once: ids that repeat in a
rank's batch are one request, with the number of times where an admission counts.

All of it happens where the tables lie. On a GPU the host waits for it once a step, to read the numbers of ids, by which
it says how much goes where.

    ids of my batch -> partition_ids -> ids for each owner   ==>  lookup there
    pooled outputs  <- gather_pool   <- rows in that order   <==  rows
    their gradients -> pool_grads    -> a sum for each row   ==>  summed over ranks, divided by their number

The sum is divided since each rank's loss is its rows' share times the number of ranks, so that DDP's mean over ranks
is the gradient of the whole batch.

W ranks, T tables of a group, U unique ids of this rank's batch, M ids that ranks ask of this one, D row width.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from recis_lightning.embedding.route import Request
from recis_lightning.embedding.stopwatch import Stopwatch
from recis_lightning.embedding.wire import Codec, Parcels, Precision, Section, codec_of, copy_each
from recis_lightning.tables import PendingGrad, TableGroup
from recis_lightning.tables.buffers import BufferPool
from recis_lightning.tables.pending import add_by_row
from triton_ops.gather_pool import GradSums, PooledGrad
from triton_ops.group_by_row import group_by_row
from triton_ops.index import SHARDS
from triton_ops.partition import Partition, partition_ids
from triton_ops.row_layout import COUNT, GRANULE, RECORD, UNTRAINED
from triton_ops.transfer import to_device


def owned_shards(rank: int, world_size: int) -> tuple[int, int]:
    """The virtual shards [first, last) of a rank: rank 1 of 3 owns [1366, 2731) of 4096."""
    return -(-rank * SHARDS // world_size), -(-(rank + 1) * SHARDS // world_size)


class FetchedRows:
    """A request whose rows other ranks have sent, and what this one was asked for at the same time."""

    def __init__(self, request: Request, partition: Partition, sizes_2WT: Tensor) -> None:
        """``sizes_2WT``: how many ids of each table this rank asks of each, and each of it; on the CPU."""
        self.group = request.group
        self.sent: list[int] = sizes_2WT[0].sum(1).tolist()
        """How many ids this rank asks of each."""
        self.received: list[int] = sizes_2WT[1].sum(1).tolist()
        """And each of it."""
        self.asked_WT = sizes_2WT[1]
        """What each asks of it, by table."""
        self.rows = partition.inverse
        self.weight: Tensor
        self.owned_rows: Tensor
        """int64 [M]: the group's rows of what it was asked for, rank by rank."""
        self.counts: Tensor
        """int64 [U]: how often each row that came is in the batch, features that backward leaves out left out."""

    def unique(self, unused: Sequence[slice], record: bool) -> tuple[Tensor, Tensor]:
        # The rows that came are a store of their own for once, with a granule behind them for what is not trained.
        unique, device = sum(self.sent), self.rows.device
        granules = -(-unique // GRANULE) + 1
        granule_table = torch.zeros(granules, dtype=torch.int32, device=device)
        granule_table[-1] = UNTRAINED
        meta = torch.zeros(granules * GRANULE, RECORD, dtype=torch.int64, device=device)
        rows_N = self.rows
        if unused:
            rows_N = rows_N.clone()
            for values in unused:
                rows_N[values] = len(meta) - 1
        rows_U, inverse_N = group_by_row(rows_N, meta, granule_table, tick=1, step=0)
        self.counts = meta[:unique, COUNT]
        return rows_U[:unique], inverse_N


class Exchange:
    """Sends ids to their owners and rows back, over a process group of its own.

    ``rows_as`` and ``grads_as`` say in which precision rows and gradients travel. ``device`` is where the tables lie,
    the CPU where none is given, and ``process_group`` connects such devices: gloo for CPUs, nccl for GPUs. Every rank
    of it calls `fetch` and `leave` as often as the others, be its batch empty.
    """

    def __init__(
        self,
        process_group: dist.ProcessGroup,
        rows_as: Precision = "full",
        grads_as: Precision = "full",
        device: torch.device | None = None,
    ) -> None:
        self.process_group = process_group
        self.device = device or torch.device("cpu")
        self.rank, self.world_size = dist.get_rank(process_group), dist.get_world_size(process_group)
        self._rows_codec, self._grads_codec = codec_of(rows_as), codec_of(grads_as)
        self._memory = BufferPool(self.device)  # of parcels: fresh memory costs more than what is copied into it
        owner_S = torch.empty(SHARDS, dtype=torch.int64)
        for rank in range(self.world_size):
            first, last = owned_shards(rank, self.world_size)
            owner_S[first:last] = rank
        self._owner_S = to_device(owner_S, self.device)
        self._stopwatch = Stopwatch(self.device)
        self.steps = 0
        """Lookups of training since `take_costs`."""
        self.bytes_sent = 0
        """Bytes that went to other ranks since then."""

    def take_costs(self) -> dict[str, float]:
        """Bytes sent and seconds spent for a step of training, on average since this was last asked.

        Seconds are those of all-to-alls, waiting for other ranks included; on a GPU of those that it has told of.
        """
        steps = max(self.steps, 1)
        costs = {"exchange/bytes": self.bytes_sent / steps, "exchange/seconds": self._stopwatch.take() / steps}
        self.steps, self.bytes_sent = 0, 0
        return costs

    def __deepcopy__(self, memo: dict[int, object]) -> "Exchange":
        return self  # a process group has no copy

    # ------------------------------------------------------------------------------------------------------- forward

    def fetch(self, requests: Sequence[Request], insert: bool) -> list[FetchedRows]:
        self.steps += insert
        parts = [
            partition_ids(*request[1:], len(request.group), self._owner_S, self.world_size) for request in requests
        ]
        sizes = self._tell_sizes(parts, requests)
        fetched = [FetchedRows(*of_group) for of_group in zip(requests, parts, sizes, strict=True)]
        incoming = self._ask(parts, fetched, insert)
        for number, rows in enumerate(fetched):
            self._look_up(rows, [sections[number] for sections in incoming], insert)
        self._answer(fetched)
        return fetched

    def _tell_sizes(self, parts: Sequence[Partition], requests: Sequence[Request]) -> list[Tensor]:
        """What this rank asks of each, and each of it: for each group int64 [2, W, T] on the CPU."""
        sizes = torch.cat([part.sizes for part in parts], dim=1)
        asked = torch.empty_like(sizes)
        self._all_to_all(asked, sizes)
        both = torch.stack([sizes, asked]).cpu()  # where a step waits for the device, the one time
        return list(both.split([len(request.group) for request in requests], dim=2))

    def _ask(
        self, parts: Sequence[Partition], fetched: Sequence[FetchedRows], insert: bool
    ) -> list[list[list[Tensor]]]:
        """Send ids, with their counts where an admission needs them; [rank][group][ids, counts] of what came."""
        counted = [insert and (rows.group.is_frozen or not rows.group.gate.is_open) for rows in fetched]
        shapes = [_of_ranks(rows.sent, is_counted) for rows, is_counted in zip(fetched, counted, strict=True)]
        outgoing = _Post(shapes, self._memory)
        for number, (part, rows) in enumerate(zip(parts, fetched, strict=True)):
            whole = [part.ids, part.counts] if counted[number] else [part.ids]
            for to_ranks, tensor in zip(zip(*outgoing.sections(number), strict=True), whole, strict=True):
                copy_each(to_ranks, tensor[: sum(rows.sent)].split(rows.sent))
        expected = [_of_ranks(rows.received, count) for rows, count in zip(fetched, counted, strict=True)]
        incoming = _Post(expected, self._memory)
        self._send(outgoing, incoming)
        return [[incoming.sections(group)[rank] for group in range(len(fetched))] for rank in range(self.world_size)]

    def _look_up(self, rows: FetchedRows, sections_of_ranks: Sequence[Sequence[Tensor]], insert: bool) -> None:
        """Find the rows that this rank was asked for."""
        ids, *counts = map(torch.cat, zip(*sections_of_ranks, strict=True))
        sizes = rows.asked_WT.flatten()
        splits = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        tables = torch.arange(len(rows.group)).repeat(self.world_size)
        rows.owned_rows = rows.group.lookup(ids, splits, tables, insert, *counts)

    def _answer(self, fetched: Sequence[FetchedRows]) -> None:
        """Send the rows that were asked for, and put those that come side by side."""
        codec, memory = self._rows_codec, self._memory
        outgoing = _Post([self._rows_of_ranks(rows.group, rows.received, codec) for rows in fetched], memory)
        incoming = _Post([self._rows_of_ranks(rows.group, rows.sent, codec) for rows in fetched], memory)
        for number, rows in enumerate(fetched):
            codec.encode(rows.group.copy_rows(rows.owned_rows).split(rows.received), outgoing.sections(number))
        self._send(outgoing, incoming)
        for number, rows in enumerate(fetched):
            rows.weight = rows.group.buffers.take((sum(rows.sent), rows.group.dim), rows.group.dtype)
            codec.decode(incoming.sections(number), rows.weight.split(rows.sent))

    # ------------------------------------------------------------------------------------------------------ backward

    def leave(self, fetched: Sequence[FetchedRows], grads: Sequence[PendingGrad | None], record: bool) -> None:
        outgoing = _Post([self._grads_of_ranks(rows, rows.sent) for rows in fetched], self._memory)
        incoming = _Post([self._grads_of_ranks(rows, rows.received) for rows in fetched], self._memory)
        for number, (rows, pending) in enumerate(zip(fetched, grads, strict=True)):
            self._write_grads(rows, pending, outgoing.sections(number))
        self._send(outgoing, incoming)
        for number, (rows, pending) in enumerate(zip(fetched, grads, strict=True)):
            self._leave_group(rows, pending, incoming.sections(number), record)

    def _grads_of_ranks(self, rows: FetchedRows, sizes: Sequence[int]) -> list[list[Section]]:
        """For each rank: which tables are trained, how often each id occurred, the sums of its gradients."""
        tables: Section = (torch.bool, (len(rows.group),))
        codec, group = self._grads_codec, rows.group
        if group.is_frozen:
            return [[] for _ in sizes]
        return [[tables, (torch.int32, (n,)), *codec.sections(n, group.dim, group.layout.read_dtype)] for n in sizes]

    def _write_grads(
        self, rows: FetchedRows, pending: PendingGrad | None, sections_of_ranks: Sequence[Sequence[Tensor]]
    ) -> None:
        if pending is None:  # other ranks may have found something, and wait for this one
            for sections in sections_of_ranks:
                for section in sections:
                    section.zero_()
            return
        is_trained = torch.tensor([table in pending.tables for table in range(len(rows.group))])
        found_UD = pending.summed(rows.group.buffers).grads
        assert isinstance(found_UD, Tensor)
        # On a GPU there are places for more rows than have gradients: theirs is a row behind the others.
        behind = len(rows.weight)
        grads_UD = found_UD.new_zeros(behind + 1, rows.group.dim)
        grads_UD.index_copy_(0, torch.where(pending.rows < 0, behind, pending.rows), found_UD)
        to_tables, to_counts, *_ = zip(*sections_of_ranks, strict=True)
        copy_each(to_tables, [to_device(is_trained, self.device)] * self.world_size)
        copy_each(to_counts, rows.counts.split(rows.sent))
        self._grads_codec.encode(grads_UD[:behind].split(rows.sent), [sections[2:] for sections in sections_of_ranks])

    def _leave_group(
        self,
        rows: FetchedRows,
        own: PendingGrad | None,
        sections_of_ranks: Sequence[Sequence[Tensor]],
        record: bool,
    ) -> None:
        """Sum up what came from all ranks by row, for the group's optimizer."""
        group = rows.group
        if group.is_frozen:
            return
        is_trained_WT = torch.stack([sections[0] for sections in sections_of_ranks])
        tables = _trained_tables(group, frozenset() if own is None else own.tables, is_trained_WT)
        if not tables:
            return
        counts_M = torch.cat([sections[1] for sections in sections_of_ranks]).long()
        dtype = group.layout.read_dtype
        grads_MD = group.buffers.take((len(counts_M), group.dim), dtype)
        self._grads_codec.decode([sections[2:] for sections in sections_of_ranks], grads_MD.split(rows.received))
        rows_M = rows.owned_rows.masked_fill(counts_M == 0, group.default_row)
        rows_U, inverse_M = group.unique_rows(rows_M, record, counts_M)
        offsets_M1 = torch.arange(len(rows_M) + 1, device=rows_M.device)
        share_M = grads_MD.new_full((len(rows_M),), 1 / self.world_size)
        sums = GradSums([PooledGrad(grads_MD[:, None], offsets_M1[None], share_M)], inverse_M)
        pending = PendingGrad(rows_U, sums, tables, add_by_row(counts_M, inverse_M, len(rows_U)))
        group.leave(pending if group.is_deferred else pending.summed(group.buffers))

    # --------------------------------------------------------------------------------------------------- collectives

    def _rows_of_ranks(self, group: TableGroup, sizes: Sequence[int], codec: Codec) -> list[list[Section]]:
        return [codec.sections(n, group.dim, group.dtype) for n in sizes]

    def _send(self, outgoing: "_Post", incoming: "_Post") -> None:
        to, from_ = outgoing.parcels, incoming.parcels
        self._all_to_all(from_.buffer, to.buffer, (from_.splits, to.splits))
        self.bytes_sent += sum(to.splits) - to.splits[self.rank]

    def _all_to_all(
        self, into: Tensor, tensor: Tensor, splits: tuple[list[int] | None, list[int] | None] = (None, None)
    ) -> None:
        with self._stopwatch.running():
            dist.all_to_all_single(into, tensor, *splits, group=self.process_group)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks of a tensor, as a new one where that lies; one of the CPU goes by way of the device."""
        total = value.to(self.device, copy=True)
        dist.all_reduce(total, group=self.process_group)
        return total.to(value.device)


class _Post:
    """Parcels of all groups: for each rank the sections of the first group, then those of the second, ..."""

    def __init__(self, shapes: Sequence[Sequence[Sequence[Section]]], memory: BufferPool) -> None:
        """``shapes[group][rank]`` are the sections of a group that go to a rank, or come from it."""
        ranks = range(len(shapes[0]) if shapes else 0)
        self._shapes = shapes
        sections = [[section for of_group in shapes for section in of_group[rank]] for rank in ranks]
        self.parcels = Parcels(sections, memory)

    def sections(self, group: int) -> list[list[Tensor]]:
        """The sections of one group, for each rank."""
        found = []
        for rank, sections in enumerate(self.parcels.sections):
            begin = sum(len(shapes[rank]) for shapes in self._shapes[:group])
            found.append(sections[begin : begin + len(self._shapes[group][rank])])
        return found


def _of_ranks(sizes: Sequence[int], is_counted: bool) -> list[list[Section]]:
    return [[(torch.int64, (n,))] * (1 + is_counted) for n in sizes]


def _trained_tables(group: TableGroup, own: frozenset[int], is_trained_WT: Tensor) -> frozenset[int]:
    """The tables that any rank has gradients for: a step of theirs.

    Where nobody waits for the device these are this rank's, and of others that differ a later step tells.
    """
    if not group.is_deferred:
        return frozenset(is_trained_WT.any(0).nonzero().squeeze(1).tolist())

    def explain(table: int, step: int, _: int) -> RuntimeError:
        return RuntimeError(
            f"table '{group[table].name}': at step {step} a loss depended on it on some ranks and not on others, which "
            "ranks of GPUs can't learn in time; let losses use the same features on all ranks, times 0 where they must"
        )

    is_any_T = is_trained_WT.any(0)
    group.watch.note("trained on all ranks", is_any_T & ~is_trained_WT.all(0), explain)
    return own
