"""Who has which block of a PagedKVCache (nn/paged_cache.py): integers only, no tensors.

Blocks that are full may be shared by requests that begin alike. They are known by a chain of hashes: of their tokens
and of the block before, so that equal hashes mean equal texts from the first token on (vLLM's design of prefix
caching). The hashes have 128 bits: two different texts do not meet in one by accident.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

DIGEST_BYTES = 16


def chain_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Hash of a full block.

    Args:
        parent: hash of the block before; of the first one what sets requests apart that must not share (`root_hash`).
        tokens: of the block.
    """
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=DIGEST_BYTES).digest()


def root_hash(salt: str) -> bytes:
    """What the chain of a request begins with: only requests of one salt share blocks."""
    return blake2b(salt.encode(), digest_size=DIGEST_BYTES).digest()


def mark(content: bytes) -> int:
    """What stands for a token that is read as something else than its id (a picture's part)."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little", signed=True)


class BlockPool:
    """Gives blocks out and takes them back; those that were published stay readable until they are needed anew.

    A block is in one of three states: held by one or more requests; idle = held by none, but found by its hash; empty.

    Args:
        blocks: how many there are.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._holders = [0] * blocks
        self._hashes: list[bytes | None] = [None] * blocks
        self._found: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._empty = list(range(blocks - 1, -1, -1))

    @property
    def available(self) -> int:
        """Blocks that no request holds."""
        return len(self._empty) + len(self._idle)

    @property
    def published(self) -> int:
        """Blocks that can be found by their hash."""
        return len(self._found)

    def take(self, count: int) -> list[int]:
        """Blocks for one holder to write to: empty ones, then the least recently used idle ones, which are forgotten.

        Raises:
            IndexError: more than are available.
        """
        if count > self.available:
            raise IndexError(f"{count} blocks asked for, {self.available} available")
        taken = []
        for _ in range(count):
            block = self._empty.pop() if self._empty else self._forget()
            self._holders[block] = 1
            taken.append(block)
        return taken

    def _forget(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._found[self._hashes[block]]
        self._hashes[block] = None
        return block

    def find(self, hashes: Sequence[bytes]) -> list[int]:
        """Blocks of the longest beginning of a chain that is known. They are not held yet."""
        blocks = []
        for one in hashes:
            block = self._found.get(one)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def idle(self, blocks: Sequence[int]) -> int:
        """How many of these are held by none, and so count as available."""
        return sum(not self._holders[block] for block in blocks)

    def hold(self, blocks: Sequence[int]) -> None:
        """One more holder for each, to read only."""
        for block in blocks:
            if not self._holders[block]:
                del self._idle[block]
            self._holders[block] += 1

    def publish(self, block: int, digest: bytes) -> None:
        """From now on the block, which is full, is found by this hash; the first of two equal ones is."""
        if digest not in self._found and self._hashes[block] is None:
            self._found[digest] = block
            self._hashes[block] = digest

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less for each block of a request, in its order: the last ones are forgotten first."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if self._hashes[block] is None:
                self._empty.append(block)
            else:
                self._idle[block] = None

    def check(self, held: Sequence[Sequence[int]]) -> None:
        """Raises AssertionError unless these lists of blocks are all that is held, and nothing is lost or doubled."""
        holders = [0] * self.blocks
        for blocks in held:
            assert len(set(blocks)) == len(blocks), "a request holds a block twice"
            for block in blocks:
                holders[block] += 1
        assert holders == self._holders
        free = sorted([*self._empty, *self._idle])
        assert free == [block for block, count in enumerate(holders) if not count]
        assert all(self._hashes[block] is None for block in self._empty)
        assert {block: self._hashes[block] for block in self._found.values()} == {
            block: digest for digest, block in self._found.items()
        }
        assert sum(digest is not None for digest in self._hashes) == len(self._found)
