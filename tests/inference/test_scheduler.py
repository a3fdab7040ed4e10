"""The scheduler alone, by properties: its steps are played with a network that needs no tensors."""

import random

import pytest

from lightning_gpt.inference.block_pool import BlockPool, root_hash
from lightning_gpt.inference.scheduler import QueueFullError, Row, Scheduler

SIZE = 4


class Play:
    """Rows that generate tokens, and a cache that knows which tokens each place was written for."""

    def __init__(self, blocks=12, max_running=4, token_budget=8, max_waiting=None, seed=0):
        self.pool = BlockPool(blocks)
        self.scheduler = Scheduler(self.pool, SIZE, max_running, token_budget, max_waiting)
        self.draw = random.Random(seed)
        self.rows, self.new, self.started = {}, {}, []
        self.cache = [[None] * SIZE for _ in range(blocks)]

    def add(self, prompt, new, priority=0, salt="", **settings):
        key = len(self.rows)
        root = None if salt is None else root_hash(salt)
        row = Row(key, list(prompt), len(prompt) + new - 1, (priority, key), root, **settings)
        self.scheduler.add(row)
        self.rows[key], self.new[key] = row, new
        return row

    def finish(self, row):
        self.scheduler.remove(row)
        del self.new[row.key]

    def step(self, drafts=False):
        """One step; checks what holds of every step."""
        scheduler = self.scheduler
        running = list(scheduler.running)
        for row in running:
            if drafts and len(row.tokens) - row.computed == 1:
                row.draft = [self.draw.randrange(3) for _ in range(self.draw.randint(0, 5))]
        plan = scheduler.schedule()
        assert sum(count for _, count in plan) <= scheduler.token_budget
        assert len(plan) <= scheduler.max_running
        assert [row.key for row, _ in plan] == [row.key for row in dict.fromkeys(row for row, _ in plan)]
        assert {row.key for row, _ in plan} == {row.key for row in scheduler.running}
        assert all(count >= 1 for _, count in plan)
        new = [row for row, _ in plan if row not in running]
        self.started += [row.key for row in new]
        assert all(row.order < waiting.order for row in new for waiting in scheduler.waiting)
        for row, count in plan:
            assert row.computed + count <= min(len(row.tokens) + len(row.draft), row.limit, len(row.blocks) * SIZE)
            self.read(row, count)
        for row, count in plan:
            self.settle(row, count)
        self.check()
        return plan

    def read(self, row, count):
        """What a network does: sees all tokens before, writes the new ones to blocks that nobody else holds."""
        text = row.tokens + row.draft
        for place in range(row.computed):
            assert self.cache[row.blocks[place // SIZE]][place % SIZE] == text[: place + 1]
        others = {block for other in self.scheduler.running if other is not row for block in other.blocks}
        for place in range(row.computed, row.computed + count):
            assert row.blocks[place // SIZE] not in others
            self.cache[row.blocks[place // SIZE]][place % SIZE] = text[: place + 1]

    def settle(self, row, count):
        if row.computed + count < len(row.tokens):
            self.scheduler.advance(row, row.computed + count)
            return
        for guess in [*row.draft, None]:
            token = self.draw.randrange(3)
            row.tokens.append(token)
            self.new[row.key] -= 1
            if token != guess or not self.new[row.key]:
                break
        row.draft = []
        self.scheduler.advance(row, len(row.tokens) - 1)
        if not self.new[row.key]:
            self.finish(row)

    def check(self):
        scheduler = self.scheduler
        self.pool.check([row.blocks for row in scheduler.running])
        assert not any(row.blocks or row.computed for row in scheduler.waiting)
        assert sorted(row.key for row in [*scheduler.running, *scheduler.waiting]) == sorted(self.new)
        assert len(scheduler.running) <= scheduler.max_running

    def run(self, limit=2000, **options):
        for count in range(limit):
            if not self.new:
                return count
            assert self.step(**options), "a step without work, though rows are there"
        raise AssertionError("rows starve")


@pytest.mark.parametrize("drafts", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_random_arrivals_cancellations_and_priorities(seed, drafts):
    draw = random.Random(seed)
    blocks, budget = draw.choice([6, 9, 30]), draw.choice([4, 5, 9, 40])
    play = Play(blocks, draw.randint(1, 4), budget, seed=seed)
    beginnings = [[draw.randrange(3) for _ in range(16)] for _ in range(2)]
    for _ in range(300):
        for _ in range(draw.choice([0, 0, 1, 2])):
            start = draw.choice(beginnings)[: draw.randint(0, 14)]
            prompt = [*start, *(draw.randrange(3) for _ in range(draw.randint(1, 5)))]
            new = draw.randint(1, min(12, blocks * SIZE - len(prompt) + 1))
            settings = {"salt": draw.choice(["a", "a", "b", None]), "chunk": draw.choice([3, 1000])}
            play.add(prompt, new, draw.choice([0, 0, 1, 5]), **settings, reusable=draw.choice([6, 1000]))
        if play.new and draw.random() < 0.1:
            play.finish(play.rows[draw.choice(list(play.new))])
        play.step(drafts)
    play.run(drafts=drafts)
    assert play.pool.available == blocks
    assert play.scheduler.shared_tokens > 0
    assert not play.scheduler._coming
    if blocks == 6 and play.scheduler.max_running > 1:
        assert play.scheduler.preemptions > 0


def test_within_a_priority_nobody_overtakes():
    play = Play(blocks=40, max_running=2)
    for _ in range(10):
        play.add([1, 2, 3], 3)
    play.add([1, 2, 3], 3, priority=-1)
    play.run()
    assert play.started == [10, *range(10)]


def test_a_long_prompt_is_read_in_pieces_beside_rows_that_generate():
    play = Play(blocks=40, max_running=3, token_budget=8)
    first = play.add([1], 20)
    play.step()
    long = play.add(range(30), 2)
    counts = []
    while not counts or long.computed < 30:
        counts.append({row.key: count for row, count in play.step()})
    assert counts == [{0: 1, 1: 7}, {0: 1, 1: 7}, {0: 1, 1: 7}, {0: 1, 1: 7}, {0: 1, 1: 2}]
    assert len(first.tokens) == 7


def test_requests_that_begin_alike_wait_for_the_first_and_read_only_the_rest():
    play = Play(blocks=40, max_running=4, token_budget=40)
    prompt = list(range(18))
    rows = [play.add([*prompt, 100 + n], 2) for n in range(3)]
    other = play.add(prompt, 2, salt="another tenant")
    assert [(row.key, count) for row, count in play.step()] == [(0, 19)]
    assert [(row.key, count) for row, count in play.step()] == [(0, 1), (1, 3), (2, 3), (3, 18)]
    assert [row.shared for row in rows] == [0, 16, 16]
    assert other.shared == 0
    assert play.scheduler.shared_tokens == 32


def test_equal_tokens_that_mean_different_things_are_not_shared():
    play = Play(blocks=40, max_running=4, token_budget=60)
    picture, other = [0] * 6, list(range(6))
    rows = [play.add([*[7] * 6, *range(8)], 2, marks=marks) for marks in (picture, other, picture, None)]
    play.step()
    assert rows[2].computed == 0  # waits for the first
    play.step()
    assert [row.shared for row in rows] == [0, 0, 12, 0]


def test_the_newest_of_the_least_urgent_gives_its_blocks_back_and_goes_on_later():
    play = Play(blocks=4, max_running=3, token_budget=12)
    urgent = play.add([1, 2, 3], 12, priority=0, salt=None)
    play.step()
    old, new = play.add([4], 4, priority=1, salt=None), play.add([5], 4, priority=1, salt=None)
    play.step()
    assert [row.key for row in play.scheduler.running] == [0, 1]  # a block is left for each that runs
    for _ in range(20):
        play.step()
        if not play.new:
            break
    assert play.scheduler.preemptions == 0
    assert [len(row.tokens) for row in (urgent, old, new)] == [15, 5, 5]

    play = Play(blocks=5, max_running=3, token_budget=12)
    urgent, lazy = play.add([1, 2, 3], 14, salt=None), play.add([4, 4, 4], 9, priority=1, salt=None)
    play.run()
    assert play.scheduler.preemptions > 0
    assert play.started[:2] == [0, 1]
    assert set(play.started[2:]) == {1}
    assert (len(urgent.tokens), len(lazy.tokens)) == (17, 12)


def test_a_guess_takes_no_blocks_from_others():
    play = Play(blocks=2, max_running=2, token_budget=20)
    first, second = play.add([1, 2, 3], 2, salt=None), play.add([1, 2], 3, salt=None)
    play.step()
    assert [row.key for row in play.scheduler.running] == [0]
    play = Play(blocks=4, max_running=2, token_budget=20)
    first, second = play.add([1, 2, 3], 14, salt=None), play.add([1, 2], 3, salt=None)
    play.step()
    play.scheduler.pool.take(1)  # someone else's
    first.draft = [0] * 9
    plan = play.scheduler.schedule()
    assert [(row.key, count) for row, count in plan] == [(0, 1), (1, 1)]
    assert not first.draft
    assert second.running


def test_what_never_fits_and_what_does_not_fit_now_is_refused():
    play = Play(blocks=4, max_waiting=2)
    play.add([1] * 10, 7)
    with pytest.raises(ValueError, match="up to 17 tokens needs 5 blocks of 4, the cache has 4"):
        play.add([1] * 10, 8)
    play.add([1], 1)
    with pytest.raises(QueueFullError, match="2 requests are waiting, max_waiting=2"):
        play.add([1], 1)
    play.step()
    play.add([1], 1)
    play.run()


def test_another_text_for_a_row_is_read_from_its_first_token():
    play = Play(blocks=8, token_budget=20)
    row = play.add(range(10), 5)
    play.step()
    play.scheduler.restart(row, [7, 8, 9])
    play.pool.check([[]])
    assert not row.published
    assert [(row.key, count) for row, count in play.step()] == [(0, 3)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"max_running": 0}, "max_running=0"), ({"max_running": 9, "token_budget": 8}, "token_budget=8 must be at least")],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        Play(**settings)
