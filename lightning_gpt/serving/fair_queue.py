"""The waiting requests: urgent classes first, in a class every tenant its share, a tenant's own in their order.

Start-time fair queuing (Goyal, Vin, Cheng 1996): a tenant's next request gets the tag S = max(V, F), where F is where
its last one ended (its S + its cost) and V the tag of what was served last; the smallest tag goes first. Who asks for
much moves its own tags ahead and waits, who asks for little is served nearly at once, and nothing is saved up by being
silent. Between two tenants that both wait the tokens served differ by at most one request of each.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class QueueFull(Exception):
    """The queue holds as many requests as it may."""


class _Entry(Generic[T]):
    __slots__ = ("cost", "deadline", "flow", "item")

    def __init__(self, item: T, flow: _Flow, cost: float, deadline: float) -> None:
        self.item, self.flow, self.cost, self.deadline = item, flow, cost, deadline


class _Flow:
    """What one tenant has waiting in a class."""

    __slots__ = ("finish", "in_heap", "level", "tenant", "waiting")

    def __init__(self, tenant: str, level: _Class) -> None:
        self.tenant, self.level = tenant, level
        self.finish = 0.0
        self.in_heap = False
        self.waiting: OrderedDict[int, _Entry] = OrderedDict()  # a dict finds its first slowly after many removals


class _Class:
    """One priority."""

    __slots__ = ("flows", "heap", "size", "tokens", "virtual")

    def __init__(self) -> None:
        self.virtual = 0.0
        self.flows: dict[str, _Flow] = {}
        self.heap: list[tuple[float, int, _Flow]] = []  # tag of the flow's first request, order of arrival
        self.size, self.tokens = 0, 0.0


class FairQueue(Generic[T]):
    """Bounded; every operation costs O(log n) at most, spread over the calls.

    Args:
        max_size: items.
    """

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        self.tokens = 0.0
        """Sum of the costs of all that wait."""
        self._entries: dict[int, _Entry[T]] = {}  # id of the item -> entry; an item is alive as long as it waits
        self._classes: dict[int, _Class] = {}
        self._order: list[int] = []  # the classes' priorities, sorted
        self._deadlines: list[tuple[float, int, _Entry[T]]] = []  # lazily: entries that have gone may be in it
        self._expired: list[T] = []
        self._count = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, item: T) -> bool:
        return id(item) in self._entries

    def push(self, item: T, tenant: str, priority: int = 0, cost: float = 1.0, deadline: float = float("inf")) -> None:
        """Puts an item behind the tenant's others.

        Args:
            item: not one that waits already.
            priority: lower is served first.
            cost: tokens.
            deadline: on the clock of `pop` and `expire`.

        Raises:
            QueueFull: max_size items are waiting.
        """
        assert id(item) not in self._entries, "the item waits already"
        if len(self._entries) >= self.max_size:
            raise QueueFull(f"{len(self._entries)} requests are waiting, max_size={self.max_size}")
        level = self._classes.get(priority)
        if level is None:
            level = self._classes[priority] = _Class()
            self._order = sorted(self._classes)
        flow = level.flows.get(tenant)
        if flow is None:
            flow = level.flows[tenant] = _Flow(tenant, level)
        entry = _Entry(item, flow, cost, deadline)
        self._entries[id(item)] = flow.waiting[id(item)] = entry
        level.size += 1
        level.tokens += cost
        self.tokens += cost
        self._line_up(flow)
        if deadline != float("inf"):
            heapq.heappush(self._deadlines, (deadline, next(self._count), entry))

    def _line_up(self, flow: _Flow) -> None:
        if not flow.in_heap:
            flow.in_heap = True
            heapq.heappush(flow.level.heap, (max(flow.level.virtual, flow.finish), next(self._count), flow))

    def pop(self, now: float) -> T | None:
        """The next item whose deadline has not passed; None = there is none. Those that have expired are left for
        `expire` to return."""
        self._retire(now)
        if not self._entries:
            return None
        for priority in self._order:
            level = self._classes[priority]
            while level.size:
                tag, _, flow = heapq.heappop(level.heap)
                flow.in_heap = False
                if not flow.waiting:  # all of it was removed
                    self._forget_idle(flow)
                    continue
                entry = next(iter(flow.waiting.values()))
                level.virtual, flow.finish = tag, tag + entry.cost
                self._leave(entry)
                if flow.waiting:
                    self._line_up(flow)
                return entry.item
        raise AssertionError("entries and classes disagree")

    def _leave(self, entry: _Entry[T]) -> None:
        level = entry.flow.level
        key = id(entry.item)
        del self._entries[key], entry.flow.waiting[key]
        level.size -= 1
        level.tokens -= entry.cost
        self.tokens -= entry.cost
        if not self._entries:
            self.tokens = 0.0  # no rounding is carried on
            self._deadlines.clear()
        elif len(self._deadlines) > 2 * len(self._entries) + 64:
            self._deadlines = [one for one in self._deadlines if self._waits(one[2])]
            heapq.heapify(self._deadlines)
        if not level.size:  # a new busy period: nobody owes anything
            level.virtual, level.tokens = 0.0, 0.0
            level.heap.clear()
            level.flows.clear()

    @staticmethod
    def _forget_idle(flow: _Flow) -> None:
        if flow.finish <= flow.level.virtual:
            flow.level.flows.pop(flow.tenant, None)

    def _waits(self, entry: _Entry[T]) -> bool:
        return self._entries.get(id(entry.item)) is entry

    def remove(self, item: T) -> bool:
        """Takes an item out wherever it waits, O(1); its tenant does not pay for it. False = it does not wait."""
        entry = self._entries.get(id(item))
        if entry is None:
            return False
        self._leave(entry)
        return True

    def _retire(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            entry = heapq.heappop(self._deadlines)[2]
            if self._waits(entry):
                self._leave(entry)
                self._expired.append(entry.item)

    def expire(self, now: float) -> list[T]:
        """Takes out the items whose deadline has passed, each once, the earliest deadline first."""
        self._retire(now)
        expired, self._expired = self._expired, []
        return expired

    def next_deadline(self) -> float:
        """When `expire` has something to do at the latest; inf = never, -inf = now."""
        while self._deadlines and not self._waits(self._deadlines[0][2]):
            heapq.heappop(self._deadlines)
        if self._expired:
            return float("-inf")
        return self._deadlines[0][0] if self._deadlines else float("inf")

    def tokens_ahead(self, priority: int) -> float:
        """Costs of all that waits in this class and in those before it: what a newcomer waits for at most."""
        return sum(one.tokens for number, one in self._classes.items() if number <= priority)
