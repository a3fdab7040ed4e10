"""How long requests wait for a server when they come at random: Erlang's formula and its extension to other times.

k servers, Poisson arrivals of rate r, service times of mean s, one queue in the order of arrival. With exponential
service times the shares are exact (Erlang, 1917): of r s = a erlangs, B(0) = 1, B(i) = a B(i-1) / (i + a B(i-1)),
P(wait) = B(k) / (1 - a/k (1 - B(k))), and P(wait > t) = P(wait) exp(-(k - a) t / s). Other arrivals and services scale
the mean wait by (c_a^2 + c_s^2) / 2, squared coefficients of variation (Allen and Cunneen; Whitt, 1993, section 2): an
approximation, exact for one server with Poisson arrivals (Pollaczek and Khinchine).

Servers that batch are not quite this. One that computes up to B requests at once counts as B servers of the speed they
have in a full batch: the wait is then about right where it matters, with all places taken, while a request that finds
the batch half empty is served faster than the formula says. Caches that fill and requests set back are not in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


def erlang_b(servers: int, erlangs: float) -> float:
    """Share of arrivals that find all servers busy where nobody waits."""
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = erlangs * blocked / (number + erlangs * blocked)
    return blocked


def erlang_c(servers: int, erlangs: float) -> float:
    """Share of arrivals that have to wait; 1 where the servers cannot keep up."""
    if erlangs >= servers:
        return 1.0
    blocked = erlang_b(servers, erlangs)
    return blocked / (1 - erlangs / servers * (1 - blocked))


@dataclass(frozen=True)
class Queue:
    """Servers with one queue in front of them."""

    servers: int
    rate: float
    """Arrivals a second."""
    service_s: float
    """Mean time of a service."""
    arrival_scv: float = 1.0
    """Squared coefficient of variation of the times between arrivals; 1 = Poisson, more = in bursts."""
    service_scv: float = 1.0
    """Of service times; 0 = all alike, 1 = exponential."""

    @property
    def utilisation(self) -> float:
        """Share of the servers' time that is asked for; from 1 on the queue has no end."""
        return self.rate * self.service_s / self.servers

    @property
    def waiting(self) -> float:
        """Share of requests that wait at all."""
        return erlang_c(self.servers, self.rate * self.service_s)

    @property
    def wait_of_waiting_s(self) -> float:
        """Mean wait of those that do."""
        if self.utilisation >= 1:
            return math.inf
        alone = self.service_s / (self.servers * (1 - self.utilisation))
        return alone * (self.arrival_scv + self.service_scv) / 2

    @property
    def mean_wait_s(self) -> float:
        """Mean wait of all."""
        return self.waiting * self.wait_of_waiting_s

    def wait_quantile_s(self, share: float) -> float:
        """Wait that `share` of the requests do not exceed; the tail is taken to be exponential."""
        waiting = self.waiting
        if waiting <= 1 - share:
            return 0.0
        return self.wait_of_waiting_s * math.log(waiting / (1 - share))
