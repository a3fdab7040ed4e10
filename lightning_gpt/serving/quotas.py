"""Tokens that each tenant has used today, kept over restarts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

from lightning_gpt.serving.atomic_file import write_atomically

DAY_S = 86400


class QuotaLedger:
    """Counts tokens by tenant and UTC day. Only today is kept.

    What was charged since the last `flush` is lost when the process is killed: a few seconds, in the tenants' favour.

    Args:
        path: JSON file; None = in memory only.
        wall: seconds since 1970, which say what day it is.
        every_s: `flush` writes no oftener than this.

    A damaged file is set aside (its name ends in .damaged), and `warning` says so.
    """

    def __init__(self, path: Path | None, wall: Callable[[], float] = time.time, every_s: float = 2.0) -> None:
        self.path, self.wall, self.every_s = path, wall, every_s
        self.warning: str | None = None
        """What was wrong with the file at the beginning."""
        self._day = int(wall() // DAY_S)
        self._used: dict[str, int] = {}
        self._dirty, self._written = False, float("-inf")
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            day = (date.fromisoformat(content["day"]) - date(1970, 1, 1)).days
            used = content["used"]
            if not all(isinstance(count, int) and count >= 0 for count in used.values()):
                raise ValueError("counts are not whole numbers")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            aside = path.with_name(path.name + ".damaged")
            try:
                os.replace(path, aside)
                kept = f"it is kept as {aside.name}"
            except OSError as trouble:
                kept = f"it could not be set aside ({trouble.strerror})"
            self.warning = f"{path} is damaged ({type(error).__name__}: {error}): today's quotas start anew, {kept}"
            return
        if self._same_day(day):
            self._day, self._used = max(day, self._day), used

    def _same_day(self, day: int) -> bool:
        # A clock set back a little over midnight does not give yesterday's quota again.
        return 0 <= day - self._today() <= 1

    def _today(self) -> int:
        return int(self.wall() // DAY_S)

    def _roll(self) -> None:
        if not self._same_day(self._day):
            self._day, self._used, self._dirty = self._today(), {}, True

    @property
    def day(self) -> int:
        """Days since 1970 of what is counted now."""
        self._roll()
        return self._day

    def used(self, tenant: str) -> int:
        """Tokens of today."""
        self._roll()
        return self._used.get(tenant, 0)

    def check(self, tenant: str, limit: int | None, asked: int) -> float:
        """Whether `asked` more tokens fit in today's `limit`: 0.0 = yes, else the seconds to midnight UTC."""
        if limit is None or self.used(tenant) + asked <= limit:
            return 0.0
        return max((self._day + 1) * DAY_S - self.wall(), 1.0)

    def charge(self, tenant: str, tokens: int) -> int:
        """Counts tokens; returns the day on which they were counted, for `give_back`."""
        self._roll()
        self._used[tenant] = self._used.get(tenant, 0) + tokens
        self._dirty = True
        return self._day

    def give_back(self, tenant: str, tokens: int, day: int) -> None:
        """Takes back what was charged on a day; nothing where that day is over. Negative = charge more."""
        self._roll()
        if day == self._day:
            self._used[tenant] = max(self._used.get(tenant, 0) - tokens, 0)
            self._dirty = True

    def flush(self, now: bool = False) -> str | None:
        """Writes the file if something changed and the last time is long enough ago; call it about once a second.

        Args:
            now: however short ago; at the end of the service.

        Returns:
            what went wrong, None = nothing.
        """
        moment = self.wall()
        since = moment - self._written
        if self.path is None or not self._dirty or (not now and 0 <= since < self.every_s):
            return None
        self._written = moment
        day = datetime.fromtimestamp(self._day * DAY_S, UTC).date().isoformat()
        try:
            write_atomically(self.path, json.dumps({"day": day, "used": self._used}).encode())
        except OSError as error:
            return f"{self.path} cannot be written ({error.strerror}): a restart would forget today's quotas"
        self._dirty = False
        return None
