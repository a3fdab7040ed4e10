import pytest

from lightning_gpt.serving.canary import Rollout, VersionRouter
from lightning_gpt.serving.canary_judge import JudgeConfig

CLIENTS = [f"client {number}" for number in range(20_000)]


def spread(router, ready=None):
    return {client: router.route(client, ready) for client in CLIENTS}


def test_clients_are_spread_by_weight_and_stay_where_they_are():
    weights = {"v1": 7, "v2": 2, "v3": 1, "off": 0}
    router = VersionRouter(weights, salt="tiny")
    found = spread(router)
    for version, weight in weights.items():
        share = sum(one == version for one in found.values()) / len(CLIENTS)
        assert share == pytest.approx(weight / 10, abs=0.012)
        assert router.share(version) == weight / 10
    assert spread(VersionRouter(dict(reversed(weights.items())), salt="tiny")) == found
    assert spread(VersionRouter({name: 3.7 * weight for name, weight in weights.items()}, salt="tiny")) == found
    assert spread(VersionRouter(weights, salt="other")) != found


def test_raising_a_canary_moves_clients_to_it_and_nobody_else():
    router = VersionRouter({"v1": 60, "v2": 40, "canary": 0})
    before = spread(router)
    for weight in (1, 5, 20, 100, 400):
        router.set_weight("canary", weight)
        after = spread(router)
        moved = {client for client in CLIENTS if before[client] != after[client]}
        assert moved
        assert {after[client] for client in moved} == {"canary"}
        before = after
    shares = VersionRouter({"stable": 100, "canary": 0})
    before = spread(shares)
    for percent in (5, 10, 50, 100):  # both ends of a share change
        shares.set_weight("stable", 100 - percent)
        shares.set_weight("canary", percent)
        after = spread(shares)
        assert all(after[client] == "canary" for client in CLIENTS if after[client] != before[client])
        before = after
    assert set(before.values()) == {"canary"}


def test_clients_of_a_version_that_is_not_ready_are_shared_out_and_come_back():
    router = VersionRouter({"v1": 5, "v2": 3, "v3": 2})
    before, without = spread(router), spread(router, {"v1", "v3"})
    for client in CLIENTS:
        assert without[client] == before[client] or before[client] == "v2"
    orphans = [without[client] for client in CLIENTS if before[client] == "v2"]
    assert orphans.count("v1") / len(orphans) == pytest.approx(5 / 7, abs=0.02)
    assert spread(router, {"v1", "v2", "v3"}) == before
    assert router.route("a", set()) is None
    router.set_weight("v1", 0)
    assert router.route("a", {"v1"}) is None
    router.remove("v2")
    assert router.route("a") == "v3"
    assert VersionRouter({}).route("a") is None
    assert VersionRouter({}).share("v1") == 0


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(ValueError, match="of version v2"):
        VersionRouter({"v1": 1}).set_weight("v2", weight)


def test_a_bad_canary_loses_its_weight_until_the_operator_gives_it_one(clock):
    router = VersionRouter({"v1": 80, "v2": 10, "v3": 10})
    rollout = Rollout(router, "v1", JudgeConfig(), clock)

    def serve(requests, broken):
        for number in range(requests):
            version = router.route(f"request {number}")
            reason = rollout.record(version, version != broken, 0.1)
            if reason:
                assert version == broken
                return reason
        return None

    assert serve(2000, None) is None
    assert "errors" in serve(2000, "v2")
    assert router.weights == {"v1": 80, "v2": 0, "v3": 10}
    assert rollout.rolled_back["v2"][0] == clock.now
    for _ in range(100):  # those that were under way
        assert rollout.record("v2", False) is None
    assert serve(2000, "v1") is None  # the stable version is never judged
    rollout.set_weight("v2", 10)
    assert not rollout.rolled_back
    assert serve(2000, None) is None
    assert router.weights["v2"] == 10
    rollout.remove("v2")
    assert rollout.record("v2", False) is None
