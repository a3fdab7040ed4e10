import heapq
import random

import pytest

from lightning_gpt.serving.fair_queue import FairQueue
from lightning_gpt.serving.wait_predictor import WaitPredictor


class Job:
    def __init__(self, cost, predicted, asked):
        self.cost, self.predicted, self.asked = cost, predicted, asked


class Server:
    """`slots` requests at a time, each at `speed` tokens a second; costs are reserved tokens, a share of them made."""

    def __init__(self, clock, predictor, slots, speed, seed):
        self.clock, self.predictor, self.slots, self.speed = clock, predictor, slots, speed
        self.draw, self.queue, self.running = random.Random(seed), FairQueue(10**6), []
        self.waits = []  # predicted, actual

    def start(self):
        while len(self.running) < self.slots and len(self.queue):
            job = self.queue.pop(self.clock.now)
            self.waits.append((job.predicted, self.clock.now - job.asked))
            made = max(job.cost * self.draw.uniform(0.2, 1.0), 1)
            heapq.heappush(self.running, (self.clock.now + made / self.speed, id(job), job, self.clock.now))
        self.predictor.observe(busy=len(self.queue) > 0)

    def until(self, moment):
        while self.running and self.running[0][0] <= moment:
            self.clock.now, _, job, began = heapq.heappop(self.running)
            self.predictor.observe(len(self.queue) > 0, job.cost)
            self.predictor.served(job.cost, self.clock.now - began)
            self.start()
        self.clock.now = moment

    def ask(self, moment):
        self.until(moment)
        cost = self.draw.randint(10, 100)
        job = Job(cost, self.predictor.predict(self.queue.tokens), moment)
        self.queue.push(job, "t", cost=cost)
        self.start()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("slots", [1, 8])
def test_predicted_waits_are_near_the_real_ones_under_steady_overload(clock, seed, slots):
    server = Server(clock, WaitPredictor(clock=clock), slots, 200.0, seed)
    rate = 1.3 * slots * 200 / 33  # 33 = mean tokens made
    moment = clock.now
    for _ in range(3000):
        moment += server.draw.expovariate(rate)
        server.ask(moment)
    server.until(float("inf"))
    steady = [(predicted, actual) for predicted, actual in server.waits[500:] if actual > 2]
    assert len(steady) > 1000
    errors = sorted(abs(predicted / actual - 1) for predicted, actual in steady)
    assert errors[len(errors) // 2] < 0.1
    assert errors[int(0.95 * len(errors))] < 0.3


def test_it_is_optimistic_until_it_has_seen_enough(clock):
    predictor = WaitPredictor(enough_s=0.5, enough=8, clock=clock)
    assert predictor.predict(10**6, 10**6) == 0.0
    assert predictor.tokens_per_s is None
    predictor.observe(True)
    for _ in range(7):
        clock.now += 1
        predictor.observe(True, 10)
        assert predictor.predict(100) == 0.0
    clock.now += 1
    predictor.observe(True, 10)
    assert predictor.predict(100) == pytest.approx(10)
    assert predictor.tokens_per_s == pytest.approx(10)
    predictor.served(10, 4.0)
    assert predictor.predict(100, 5) == pytest.approx(12)


def test_idle_times_and_light_load_do_not_count_as_slow(clock):
    predictor = WaitPredictor(clock=clock)
    predictor.observe(True)
    for _ in range(100):
        clock.now += 0.1
        predictor.observe(True, 50)
    assert predictor.predict(500) == pytest.approx(1.0)
    for _ in range(100):  # one request now and then, nobody waits
        predictor.observe(False, 10)
        clock.now += 3600
    assert predictor.predict(500) == pytest.approx(1.0, rel=0.01)


def test_it_follows_a_server_that_becomes_slower_within_a_few_half_lives(clock):
    predictor = WaitPredictor(half_life_s=10, clock=clock)
    predictor.observe(True)
    for _ in range(600):
        clock.now += 0.1
        predictor.observe(True, 50)
    for _ in range(40):
        clock.now += 1
        predictor.observe(True, 50)
    assert 0.8 * 50 < predictor.tokens_per_s < 1.8 * 50
