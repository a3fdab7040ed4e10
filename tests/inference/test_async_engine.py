import asyncio
import random

import pytest
import torch

from lightning_gpt.inference.async_engine import AsyncEngine, EngineStoppedError
from lightning_gpt.inference.engine import Engine
from lightning_gpt.inference.engine_config import EngineConfig
from lightning_gpt.inference.one_by_one import one_by_one
from lightning_gpt.inference.request import Request
from lightning_gpt.inference.runner import TorchRunner
from lightning_gpt.inference.sampling import SamplingConfig
from lightning_gpt.inference.scheduler import QueueFullError
from lightning_gpt.nn import GPT, GPTConfig

LONG = 4000


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = GPT(GPTConfig(vocab_size=40, block_size=4096, n_layer=1, n_head=2, n_embd=16, position="alibi"))
    net = net.double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return net


def engine_of(net, **settings):
    return AsyncEngine(Engine(TorchRunner(net), config=EngineConfig(**{"block_size": 4, **settings})))


def request(number, new=6):
    sampling = SamplingConfig(temperature=1.0 if number % 2 else 0.0)
    return Request([number % 40, 3, 5], new, sampling, seed=number)


async def until(condition, seconds=20):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


def test_many_readers_get_their_own_texts_and_those_who_leave_free_their_blocks(net):
    async def reader(engine, number, draw):
        await asyncio.sleep(draw.random() * 0.05)
        leaves_after = draw.choice([None, None, 1, 4])
        new = draw.randint(1, 12) if leaves_after is None else leaves_after
        asked = request(number, new if leaves_after is None else LONG // 10)
        tokens = []
        async for output in engine.generate(asked):
            assert output.finish != "cancelled"
            tokens.append(output.token)
            if len(tokens) == leaves_after:
                break
        assert tokens == one_by_one(net, request(number, new))

    async def main():
        engine = engine_of(net, max_running=5, cache_blocks=1100)
        draw = random.Random(0)
        await asyncio.gather(*(reader(engine, number, draw) for number in range(60)))
        await until(lambda: engine.stats().blocks_held == 0)
        stats = engine.stats()
        assert sum(stats.finished.values()) == 60
        assert stats.finished["cancelled"] > 0
        assert engine.alive
        await engine.close()
        assert not engine.alive

    asyncio.run(main())


def test_a_cancelled_task_frees_its_blocks(net):
    async def main():
        engine = engine_of(net)
        task = asyncio.create_task(engine.complete(request(1, LONG)))
        await until(lambda: engine.stats().generated_tokens > 3)
        assert engine.stats().blocks_held > 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: engine.stats().blocks_held == 0)
        assert engine.stats().finished["cancelled"] == 1
        assert engine.stats().generated_tokens < LONG
        await engine.close()

    asyncio.run(main())


def test_an_error_reaches_every_reader_and_everyone_who_comes_later(net):
    async def main():
        engine = engine_of(net, max_running=2)
        tasks = [asyncio.create_task(engine.complete(request(number, LONG))) for number in range(4)]
        await until(lambda: engine.stats().running == 2)
        weight = net.head.weight
        net.head.weight = torch.nn.Parameter(torch.zeros(40, 7, dtype=torch.float64))  # does not fit
        try:
            for one in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(one, RuntimeError)
                assert "shapes" in str(one) or "size" in str(one)
        finally:
            net.head.weight = weight
        assert not engine.alive
        with pytest.raises(EngineStoppedError, match="the engine has failed"):
            await engine.complete(request(1))
        await engine.close()

    asyncio.run(main())


def test_what_is_refused_is_refused_at_once_and_harms_nobody(net):
    async def main():
        engine = engine_of(net, max_running=1, max_waiting=2)
        with pytest.raises(ValueError, match="outside the vocabulary"):
            await engine.complete(Request([41]))
        first = asyncio.create_task(engine.complete(request(0, 600)))
        await until(lambda: engine.stats().running == 1)
        others = [asyncio.create_task(engine.complete(request(number))) for number in range(1, 5)]
        done = await asyncio.gather(*others, return_exceptions=True)
        assert [isinstance(one, QueueFullError) for one in done] == [False, False, True, True]
        assert [one.tokens for one in done[:2]] == [one_by_one(net, request(number)) for number in (1, 2)]
        assert len((await first).tokens) == 600
        await engine.close()

    asyncio.run(main())


def test_draining_finishes_what_is_under_way_and_takes_no_more(net):
    async def main():
        engine = engine_of(net, max_running=2)
        tasks = [asyncio.create_task(engine.complete(request(number, 30))) for number in range(5)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
        with pytest.raises(EngineStoppedError, match="closing"):
            await engine.complete(request(1))
        done = await asyncio.gather(*tasks)
        assert [one.tokens for one in done] == [one_by_one(net, request(number, 30)) for number in range(5)]
        await closing
        await engine.close()

    asyncio.run(main())


@pytest.mark.parametrize("how", [{"drain": False}, {"drain": True, "timeout_s": 0.05}])
def test_closing_without_patience_cancels(net, how):
    async def main():
        engine = engine_of(net, max_running=2)
        tasks = [asyncio.create_task(engine.complete(request(number, LONG))) for number in range(3)]
        await until(lambda: engine.stats().running == 2)
        await engine.close(**how)
        done = await asyncio.gather(*tasks)
        assert [one.finish for one in done] == ["cancelled"] * 3
        assert engine.stats().blocks_held == 0

    asyncio.run(main())


def test_a_reader_that_lags_misses_nothing(net):
    async def main():
        engine = engine_of(net)
        tokens = []
        async for output in engine.generate(request(3, 40)):
            tokens.append(output.token)
            if len(tokens) == 1:
                await until(lambda: not engine.stats().running)
        assert tokens == one_by_one(net, request(3, 40))
        assert engine.silence_s < 5
        await engine.close()

    asyncio.run(main())


def test_readers_in_other_event_loops(net):
    engine = engine_of(net)
    found = [asyncio.run(engine.complete(request(number))).tokens for number in range(3)]
    assert found == [one_by_one(net, request(number)) for number in range(3)]
    asyncio.run(engine.close())
