"""Which version of a model answers: weighted, the same one for the same client, and off when it does worse.

Weighted rendezvous hashing (Thaler, Ravishankar 1998): each version draws a number u in (0, 1) from the hash of (salt,
client, version), and the largest score -weight / ln u wins, which happens with probability weight / sum of weights. A
version's score depends on its own weight alone, so raising the canary's weight moves clients to the canary and none
between other versions, a client that it has won stays there, and the clients of a version that is not ready are shared
out without moving anybody else.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Mapping

from lightning_gpt.serving.canary_judge import CanaryJudge, JudgeConfig


class VersionRouter:
    """Chooses versions by their weights.

    Args:
        weights: version -> weight, at least 0; their ratio counts, so shares and per cents both do.
        salt: names the experiment, such as the model: with another one other clients meet the canary.
    """

    def __init__(self, weights: Mapping[str, float], salt: str = "") -> None:
        self.salt = salt
        self._weights: dict[str, float] = {}
        for version, weight in weights.items():
            self.set_weight(version, weight)

    def set_weight(self, version: str, weight: float) -> None:
        """Adds a version or changes its weight; 0 = nobody is sent there.

        Raises:
            ValueError: it is negative or not a number.
        """
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight {weight} of version {version}: give a number that is at least 0")
        self._weights[version] = float(weight)

    def remove(self, version: str) -> None:
        """Forgets a version."""
        self._weights.pop(version, None)

    def share(self, version: str) -> float:
        """Of all clients, 0 to 1, when every version is ready."""
        total = sum(self._weights.values())
        return self._weights.get(version, 0.0) / total if total else 0.0

    @property
    def weights(self) -> dict[str, float]:
        """version -> weight."""
        return dict(self._weights)

    def route(self, sticky: str, ready: Collection[str] | None = None) -> str | None:
        """The version for a client.

        Args:
            sticky: who asks: the tenant with its `user`, or a request's id where every request draws anew.
            ready: versions that can answer; None = all.

        Returns:
            None where no version that is ready has a weight.
        """
        there = [(version, weight) for version, weight in self._weights.items() if weight > 0]
        if ready is not None:
            there = [one for one in there if one[0] in ready]
        if len(there) <= 1:
            return there[0][0] if there else None
        best, found = math.inf, None
        for version, weight in there:
            time_drawn = -math.log(self._uniform(sticky, version)) / weight  # exponential with rate weight: least wins
            if time_drawn < best:
                best, found = time_drawn, version
        return found

    def _uniform(self, sticky: str, version: str) -> float:
        """In (0, 1), the same in every process and on every machine."""
        parts = (self.salt, version, sticky)
        data = b"\0".join(part.encode(errors="surrogatepass") for part in parts)
        bits = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 11
        return (bits + 0.5) / 2**53


class Rollout:
    """A router whose canaries are judged against the stable version, and lose their weight when they do worse.

    Args:
        router: of one model.
        stable: the version that is compared with; it is never judged.
        config: of the judges.
        clock: seconds.
    """

    def __init__(
        self,
        router: VersionRouter,
        stable: str,
        config: JudgeConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.router, self.stable, self.config, self.clock = router, stable, config or JudgeConfig(), clock
        self.rolled_back: dict[str, tuple[float, str]] = {}
        """version -> when and why."""
        self._judges: dict[str, CanaryJudge] = {}

    def set_weight(self, version: str, weight: float) -> None:
        """The operator's word: also gives a canary that was rolled back another chance. All records begin anew, as
        other clients are on each side from now on.

        Raises:
            ValueError: as VersionRouter.set_weight.
        """
        self.router.set_weight(version, weight)
        self.rolled_back.pop(version, None)
        self._judges.clear()

    def remove(self, version: str) -> None:
        """Forgets a version and its record."""
        self.router.remove(version)
        self.rolled_back.pop(version, None)
        self._judges.pop(version, None)

    def record(self, version: str, ok: bool, latency_s: float | None = None) -> str | None:
        """How a request ended.

        Args:
            version: that answered.
            ok: False = the service's failure (5xx), not a client's mistake.
            latency_s: of answers that are comparable: to the first token, or seconds a token, as clients of different
                versions ask for answers of different lengths. None = unknown.

        Returns:
            why the version was rolled back by this, else None.
        """
        if version == self.stable:
            for name, weight in self.router.weights.items():
                if weight > 0 and name != version:
                    self._judge(name).stable(ok, latency_s)
            return None
        if version in self.rolled_back or not self.router.share(version):
            return None  # requests that were under way
        verdict = self._judge(version).canary(ok, latency_s)
        if verdict is None:
            return None
        self.router.set_weight(version, 0.0)
        self.rolled_back[version] = self.clock(), verdict
        self._judges.pop(version, None)
        return verdict

    def _judge(self, version: str) -> CanaryJudge:
        if version not in self._judges:
            self._judges[version] = CanaryJudge(self.config)
        return self._judges[version]
