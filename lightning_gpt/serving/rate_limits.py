"""What a tenant may ask for now: requests and tokens a minute, tokens a day, requests at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from lightning_gpt.serving.errors import ApiError
from lightning_gpt.serving.quotas import QuotaLedger
from lightning_gpt.serving.tenants import Tenant
from lightning_gpt.serving.token_bucket import TokenBucket


class _Account:
    """What one tenant has used."""

    __slots__ = ("parallel", "requests", "tenant", "tokens")

    def __init__(self) -> None:
        self.tenant: Tenant | None = None
        self.requests: TokenBucket | None = None
        self.tokens: TokenBucket | None = None
        self.parallel = 0

    def follow(self, tenant: Tenant, clock: Callable[[], float]) -> None:
        """The limits are the tenant's present ones; what was used stays used."""
        if tenant is self.tenant:
            return
        self.tenant = tenant
        rate = tenant.requests_per_minute
        burst = tenant.burst or max(rate or 1.0, 1.0)
        self.requests = _bucket(self.requests, rate, burst, clock)
        self.tokens = _bucket(self.tokens, tenant.tokens_per_minute, tenant.tokens_per_minute or 1, clock)


def _bucket(
    bucket: TokenBucket | None, per_minute: float | None, burst: float, clock: Callable[[], float]
) -> TokenBucket | None:
    if per_minute is None:
        return None
    if bucket is None:
        return TokenBucket(per_minute / 60, burst, clock)
    bucket.configure(per_minute / 60, burst)
    return bucket


class Lease:
    """The right to one request: holds what it may use at most until `settle` or `refund`, whichever comes first."""

    __slots__ = ("_account", "_day", "_ledger", "_open", "reserved", "tenant")

    def __init__(self, account: _Account, ledger: QuotaLedger, tenant: Tenant, reserved: int) -> None:
        self._account, self._ledger, self.tenant, self.reserved = account, ledger, tenant, reserved
        self._day = ledger.charge(tenant.name, reserved)
        self._open = True
        account.parallel += 1

    def settle(self, actual_tokens: int) -> None:
        """The request is over: what it did not use is given back, what it used beyond is owed. Further calls do
        nothing.

        Args:
            actual_tokens: of prompt and answer that were computed, however the request ended.
        """
        if not self._open:
            return
        self._open = False
        self._account.parallel -= 1
        unused = self.reserved - actual_tokens
        self._ledger.give_back(self.tenant.name, unused, self._day)
        if self._account.tokens is not None:
            if unused >= 0:
                self._account.tokens.give_back(unused)
            else:
                self._account.tokens.debit(-unused)

    def refund(self) -> None:
        """The service refused the request after all (full queue, open breaker): it does not count as one either."""
        if self._open and self._account.requests is not None:
            self._account.requests.give_back(1)
        self.settle(0)


class TenantLimits:
    """The accounts of all tenants. Refused requests use nothing up.

    Args:
        ledger: tokens of the day.
        clock: seconds.
    """

    def __init__(self, ledger: QuotaLedger, clock: Callable[[], float] = time.monotonic) -> None:
        self.ledger, self.clock = ledger, clock
        self._accounts: dict[str, _Account] = {}

    def _account(self, tenant: Tenant) -> _Account:
        account = self._accounts.get(tenant.name)
        if account is None:
            account = self._accounts[tenant.name] = _Account()
        account.follow(tenant, self.clock)
        return account

    def parallel(self, tenant: Tenant) -> int:
        """Leases that are not settled."""
        return self._account(tenant).parallel

    def admit(self, tenant: Tenant, prompt_tokens: int, max_new_tokens: int) -> Lease:
        """Reserves what a request may use at most.

        Raises:
            ApiError: 429 with retry_after_s: code too_many_parallel_requests, insufficient_quota (the day's tokens) or
                rate_limit_exceeded.
        """
        account = self._account(tenant)
        asked = prompt_tokens + max_new_tokens
        if tenant.max_parallel is not None and account.parallel >= tenant.max_parallel:
            raise _refusal(
                "too_many_parallel_requests",
                f"{account.parallel} requests of {tenant.name} are under way, max_parallel={tenant.max_parallel}: "
                "wait for one to finish",
                1.0,
            )
        wait = self.ledger.check(tenant.name, tenant.tokens_per_day, asked)
        if wait:
            raise _refusal(
                "insufficient_quota",
                f"{self.ledger.used(tenant.name)} tokens of tokens_per_day={tenant.tokens_per_day} are used or "
                f"reserved and this request may need {asked}: lower max_tokens, or wait until midnight UTC",
                wait,
            )
        if account.requests is not None:
            wait = account.requests.wait_s(1)
            if wait:
                raise _refusal(
                    "rate_limit_exceeded",
                    f"requests_per_minute={tenant.requests_per_minute:g} of {tenant.name} is reached: "
                    f"try again in {wait:.1f} s",
                    wait,
                )
        if account.tokens is not None:
            wait = account.tokens.take(asked)
            if wait:
                raise _refusal(
                    "rate_limit_exceeded",
                    f"tokens_per_minute={tenant.tokens_per_minute} of {tenant.name} is reached, as this request may "
                    f"need {asked}: try again in {wait:.1f} s, or lower max_tokens",
                    wait,
                )
        if account.requests is not None:
            account.requests.take(1)
        return Lease(account, self.ledger, tenant, asked)

    def headers(self, tenant: Tenant) -> dict[str, str]:
        """x-ratelimit-{limit,remaining,reset}-{requests,tokens}, as OpenAI's; those of limits that the tenant has."""
        account = self._account(tenant)
        found = {}
        for kind, bucket, limit in (
            ("requests", account.requests, tenant.requests_per_minute),
            ("tokens", account.tokens, tenant.tokens_per_minute),
        ):
            if bucket is not None:
                found[f"x-ratelimit-limit-{kind}"] = f"{limit:.12g}"
                found[f"x-ratelimit-remaining-{kind}"] = str(max(int(bucket.level + 1e-6), 0))
                found[f"x-ratelimit-reset-{kind}"] = duration(bucket.full_in_s())
        return found

    def keep(self, names: Collection[str]) -> None:
        """Forgets the accounts of tenants that are gone, those with requests under way excepted. After a reload."""
        gone = [name for name, one in self._accounts.items() if name not in names and not one.parallel]
        for name in gone:
            del self._accounts[name]


def _refusal(code: str, message: str, wait_s: float) -> ApiError:
    return ApiError(429, message, code=code, retry_after_s=wait_s)


def duration(seconds: float) -> str:
    """As OpenAI writes times: 20ms, 1.5s, 6m0s."""
    milliseconds = round(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
