"""Which tokens of which requests the next step reads: integers only, no tensors.

There is no phase of prompts and none of generation (vLLM's rule): every row has `computed` tokens in the cache and
chases the number it has, under a budget of tokens per step. A prompt longer than the budget is read in pieces,
generation asks for one token a step, speculation for a few more.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

from lightning_gpt.inference.block_pool import BlockPool, chain_hash

UNLIMITED = 1 << 60


class QueueFullError(RuntimeError):
    """Too many requests are waiting: try again later."""


class Row:
    """A request as the scheduler sees it.

    Args:
        key: its name.
        tokens: to read; generated ones are appended.
        limit: the most positions it will ever need.
        order: (priority, arrival), smaller = served first; no two rows have the same.
        root: begins the chain of hashes by which its blocks are shared; None = never shared.
        chunk: the most tokens of it that one step reads.
        marks: for the first tokens, what they mean: rows whose marks differ share nothing, though their tokens are the
            same. None = the tokens say it all.
        reusable: how many tokens at the beginning may be left unread where others have read the same; the last token
            is always read, for its logits.
    """

    __slots__ = (
        "blocks",
        "chunk",
        "computed",
        "draft",
        "hashes",
        "key",
        "limit",
        "marks",
        "order",
        "published",
        "reusable",
        "root",
        "running",
        "shared",
        "tokens",
    )

    def __init__(
        self,
        key: int,
        tokens: list[int],
        limit: int,
        order: tuple[int, int],
        root: bytes | None = None,
        marks: Sequence[int] | None = None,
        chunk: int = UNLIMITED,
        reusable: int = UNLIMITED,
    ) -> None:
        self.key, self.tokens, self.limit, self.order = key, tokens, limit, order
        self.root, self.marks, self.chunk, self.reusable = root, marks, chunk, reusable
        self.computed = 0
        """Tokens whose keys and values are in the cache."""
        self.draft: list[int] = []
        """Guesses at the tokens that follow, to be read in the next step; the scheduler may cut them short."""
        self.blocks: list[int] = []
        self.hashes: list[bytes] = []
        """Of its full blocks, as far as they were needed."""
        self.published = 0
        """Blocks that others can find."""
        self.shared = 0
        """Tokens that were found when it last started."""
        self.running = False


def order_of(row: Row) -> tuple[int, int]:
    """By what rows are sorted."""
    return row.order


class Scheduler:
    """Running rows first, then waiting ones, each by (priority, arrival).

    When blocks run out, the running row of the least urgent priority, the newest of these, gives its own back and
    waits; it is read again later. The first row is never the one, so some row always goes on. Within a priority
    nobody overtakes; a lower one starves as long as a higher one fills all places.

    Args:
        pool: of the cache's blocks.
        block_size: positions in a block.
        max_running: rows in one step at most.
        token_budget: tokens in one step at most.
        max_waiting: rows that may wait; None = any number.
    """

    def __init__(
        self, pool: BlockPool, block_size: int, max_running: int, token_budget: int, max_waiting: int | None = None
    ) -> None:
        if max_running < 1:
            raise ValueError(f"max_running={max_running} must be at least 1")
        if token_budget < max_running:
            raise ValueError(
                f"token_budget={token_budget} must be at least max_running={max_running}: a token for each"
            )
        self.pool, self.block_size = pool, block_size
        self.max_running, self.token_budget, self.max_waiting = max_running, token_budget, max_waiting
        self.running: list[Row] = []
        self.waiting: list[Row] = []
        self.preemptions = 0
        """Times that a row had to give its blocks back."""
        self.shared_tokens = 0
        """Tokens that were not read, for others had."""
        self._coming: dict[bytes, Row] = {}  # blocks that running rows are about to fill

    def blocks_for(self, tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-tokens // self.block_size)

    def check(self, limit: int) -> None:
        """Whether a row of so many positions could be taken now.

        Raises:
            ValueError: it never could, for the cache is too small.
            QueueFullError: not now.
        """
        if self.blocks_for(limit) > self.pool.blocks:
            raise ValueError(
                f"a request of up to {limit} tokens needs {self.blocks_for(limit)} blocks of {self.block_size}, the "
                f"cache has {self.pool.blocks}: shorten the prompt, lower max_new_tokens, or enlarge the cache"
            )
        if self.max_waiting is not None and len(self.waiting) >= self.max_waiting:
            raise QueueFullError(f"{len(self.waiting)} requests are waiting, max_waiting={self.max_waiting}: try later")

    def add(self, row: Row) -> None:
        """Lets a row wait. Raises as `check`."""
        self.check(row.limit)
        insort(self.waiting, row, key=order_of)

    def remove(self, row: Row) -> None:
        """Takes a row out, finished or not."""
        if row.running:
            self._stop(row)
        else:
            del self.waiting[bisect_left(self.waiting, row.order, key=order_of)]

    def schedule(self) -> list[tuple[Row, int]]:
        """The next step: rows and how many of their tokens, then of their drafts, to read from `computed` on."""
        plan: list[tuple[Row, int]] = []
        budget, before = self.token_budget, self.preemptions
        running, size = self.running, self.block_size
        index = 0
        while index < len(running):
            row = running[index]
            missing = len(row.tokens) - row.computed
            if row.draft:
                del row.draft[row.limit - len(row.tokens) :]
            # One token is left for each row behind.
            count = min(missing + len(row.draft), budget - (len(running) - index - 1), row.chunk)
            if row.computed + count > len(row.blocks) * size and not self._extend(row, row.computed + count):
                if not row.running:
                    break  # it was the last one
                count = min(count, missing)
            if row.draft:
                del row.draft[max(count - missing, 0) :]
            plan.append((row, count))
            budget -= count
            index += 1
        if self.preemptions == before:
            self._admit(plan, budget)
        return plan

    def _extend(self, row: Row, positions: int) -> bool:
        """Gets blocks up to so many positions, from other rows if need be. False: without the draft only, or the row
        itself had to give its own back."""
        wanted = self.blocks_for(positions) - len(row.blocks)
        whole = True
        if wanted > self.pool.available and row.draft:  # nobody suffers for a guess
            row.draft.clear()
            wanted = self.blocks_for(min(positions, len(row.tokens))) - len(row.blocks)
            whole = False
        while wanted > self.pool.available:
            victim = self.running[-1]
            self.preempt(victim)
            if victim is row:
                return False
        row.blocks += self.pool.take(max(wanted, 0))
        return whole

    def preempt(self, row: Row) -> None:
        """Takes a running row's blocks away; it waits to be read again."""
        self._stop(row)
        self.preemptions += 1
        insort(self.waiting, row, key=order_of)

    def _admit(self, plan: list[tuple[Row, int]], budget: int) -> None:
        """Starts waiting rows, the first ones first, as long as there is room for all of their tokens and a block
        more for each running one."""
        while self.waiting and budget and len(self.running) < self.max_running:
            row = self.waiting[0]
            found = self._find(row)
            if found is None:
                return
            fresh = self.blocks_for(len(row.tokens)) - len(found)
            if fresh + len(self.running) > self.pool.available - self.pool.idle(found):
                return
            del self.waiting[0]
            self.pool.hold(found)
            row.blocks = found + self.pool.take(fresh)
            row.computed = row.shared = len(found) * self.block_size
            row.published = len(found)
            self.shared_tokens += row.shared
            for digest in row.hashes[row.published :]:
                self._coming.setdefault(digest, row)
            row.running = True
            insort(self.running, row, key=order_of)
            count = min(len(row.tokens) - row.computed, budget, row.chunk)
            plan.append((row, count))
            budget -= count

    def _find(self, row: Row) -> list[int] | None:
        """Blocks of its beginning that can be read already; None = a running row is about to fill the next one, and
        to wait for it costs less than to fill another."""
        if row.root is None:
            return []
        self._hash(row, len(row.tokens) // self.block_size)
        most = min(len(row.tokens) - 1, row.reusable) // self.block_size
        found = self.pool.find(row.hashes[:most])
        if len(found) < most and row.hashes[len(found)] in self._coming:
            return None
        return found

    def _hash(self, row: Row, blocks: int) -> None:
        size = self.block_size
        for block in range(len(row.hashes), blocks):
            parent = row.hashes[-1] if row.hashes else row.root
            start, stop = block * size, (block + 1) * size
            content = row.tokens[start:stop]
            if row.marks is not None and start < len(row.marks):
                content = [*row.marks[start:stop], *content[len(row.marks) - start :]]
            row.hashes.append(chain_hash(parent, content))

    def advance(self, row: Row, computed: int) -> None:
        """After a step: the first `computed` tokens are in the cache and are what they will stay."""
        row.computed = computed
        if row.root is None or computed < (row.published + 1) * self.block_size:
            return
        full = computed // self.block_size
        self._hash(row, full)
        for block in range(row.published, full):
            self.pool.publish(row.blocks[block], row.hashes[block])
            if self._coming.get(row.hashes[block]) is row:
                del self._coming[row.hashes[block]]
        row.published = full

    def restart(self, row: Row, tokens: Sequence[int]) -> None:
        """Gives a running row other tokens, to be read from the first on."""
        self._drop_blocks(row)
        row.tokens[:] = tokens
        row.hashes.clear()

    def _stop(self, row: Row) -> None:
        del self.running[bisect_left(self.running, row.order, key=order_of)]
        row.running = False
        self._drop_blocks(row)

    def _drop_blocks(self, row: Row) -> None:
        for digest in row.hashes[row.published :]:
            if self._coming.get(digest) is row:
                del self._coming[digest]
        self.pool.release(row.blocks)
        row.blocks, row.computed, row.published = [], 0, 0
        row.draft.clear()
