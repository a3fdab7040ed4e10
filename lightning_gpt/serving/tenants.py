"""Who may use the service, and how much of it: tenants from a YAML file, known by the hashes of their keys.

Keys are 256 random bits, so one SHA-256 keeps them: nobody can try 2^256 keys however fast the hash is. A slow hash
(bcrypt, scrypt) is for passwords that people think of; here it would only let strangers burn our processor.
"""

from __future__ import annotations

import difflib
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from lightning_gpt.serving.errors import ApiError

PREFIX = "lgpt-"
"""What every key begins with, so that a leaked one is recognised (by people and by secret scanners)."""
MAX_KEY = 256
"""Characters of a key that are looked at; longer ones are refused unhashed."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Ten times as fast where libyaml is there: a file is read while requests wait."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Tenant:
    """One customer and its limits. None = no limit."""

    name: str
    """Letters, digits, `.`, `_`, `-`: it becomes a label of metrics and a field of logs."""
    key_hashes: tuple[str, ...] = ()
    """SHA-256 of each key, 64 hexadecimal digits; two while a key is being exchanged."""
    requests_per_minute: float | None = None
    burst: int | None = None
    """Requests that may come at once; None = those of a minute."""
    tokens_per_minute: int | None = None
    """Prompt and answer together; the same number may be used at once."""
    tokens_per_day: int | None = None
    """Prompt and answer together, from midnight to midnight UTC."""
    max_parallel: int | None = None
    """Requests under way or waiting at one time."""
    priority: int = 0
    """Lower is served first, whatever the others ask for."""
    models: tuple[str, ...] | None = None
    """Models that it may use; None = all."""
    admin: bool = False
    """May load, unload and weigh versions."""

    def may_use(self, model: str) -> bool:
        """Whether a model is among its own."""
        return self.models is None or model in self.models


OPEN = Tenant("anonymous")
"""Who everybody is where there is no file of tenants."""


def new_key() -> tuple[str, str]:
    """A key, to be shown once, and its hash, to be kept."""
    key = PREFIX + secrets.token_urlsafe(32)
    return key, key_hash(key)


def key_hash(key: str) -> str:
    """SHA-256, as 64 hexadecimal digits."""
    return hashlib.sha256(key.encode()).hexdigest()


class TenantBook:
    """The tenants of a file, read again when it changes.

    Args:
        path: YAML with `tenants: [...]` (fields of Tenant) and perhaps `anonymous: {...}`, who is served without a
            key; None = everybody is the same tenant without limits, with whatever key.

    Raises:
        ValueError: the file is missing or wrong; names the file, the field and the mend.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None if path is None else _signature(path)  # None = it is gone
        self._take([], OPEN if path is None else None)
        if path is not None:
            self._take(*parse_tenants(_read(path), path))

    def _take(self, tenants: list[Tenant], anonymous: Tenant | None) -> None:
        self.tenants = {tenant.name: tenant for tenant in tenants}
        self.anonymous = anonymous
        everybody = [*tenants, *([] if anonymous is None else [anonymous])]
        self._best = min((tenant.priority for tenant in everybody), default=0)
        self._hashes = [(bytes.fromhex(one), tenant) for tenant in tenants for one in tenant.key_hashes]

    @property
    def names(self) -> set[str]:
        """Of all tenants, the anonymous one among them."""
        return {*self.tenants, *([] if self.anonymous is None else [self.anonymous.name])}

    @property
    def best_priority(self) -> int:
        """Of all tenants."""
        return self._best

    def authenticate(self, header: str | None) -> Tenant:
        """Whose key a header `Authorization: Bearer KEY` brings.

        A wrong key is refused even where there is an anonymous tenant: who mistypes a key wants to know. Every hash is
        compared, so that the time taken says nothing of which one was near.

        Raises:
            ApiError: 401, code invalid_api_key.
        """
        if self.path is None or (header is None and self.anonymous is not None):
            return self.anonymous or OPEN
        if header is None:
            raise _refusal("no API key was given: send the header Authorization: Bearer KEY")
        scheme, _, key = header.partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise _refusal("the header Authorization is not of the form Bearer KEY")
        if len(key) > MAX_KEY:
            raise _refusal("the API key is not known here: check it, or ask the operator for one")
        digest = hashlib.sha256(key.encode(errors="surrogatepass")).digest()
        found = None
        for known, tenant in self._hashes:
            if hmac.compare_digest(known, digest):
                found = tenant
        if found is None:
            raise _refusal("the API key is not known here: check it, or ask the operator for one")
        return found

    def refresh(self) -> str | None:
        """Reads the file again if it is another one than before (time, size or inode).

        Returns:
            what is wrong with the new file, once for each new file, and the old tenants stay; None = all is well.
        """
        if self.path is None:
            return None
        seen = self._seen
        try:
            self._seen = None
            self._seen = _signature(self.path)
            if self._seen != seen:
                self._take(*parse_tenants(_read(self.path), self.path))
        except ValueError as error:
            return None if self._seen == seen else f"{error}; the tenants stay as they were"
        return None


def _refusal(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key")


def _signature(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}: `lightning-gpt tenant NAME --file {path}` makes one") from None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def parse_tenants(text: str, path: Path) -> tuple[list[Tenant], Tenant | None]:
    """The tenants and the anonymous one of a file's text.

    Raises:
        ValueError: names the file, the field, the value and the mend in one line.
    """
    try:
        content = yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f" line {mark.line + 1}:"
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"{path}:{place} not YAML: {problem}") from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a mapping with `tenants:` is needed, not a {type(content).__name__}")
    _refuse_unknown(content, ("tenants", "anonymous"), "", path)
    entries = [] if content.get("tenants") is None else content["tenants"]
    if not isinstance(entries, list):
        raise ValueError(f"{path}: tenants is a {type(entries).__name__}: give a list, each entry with `- name: ...`")
    tenants: list[Tenant] = []
    names = {OPEN.name}
    owners: dict[str, str] = {}
    for number, entry in enumerate(entries):
        where = f"tenants[{number}]"
        if not isinstance(entry, dict) or "name" not in entry:
            raise ValueError(f"{path}: {where} has no name: give `- name: ...`")
        tenant = _tenant(entry, where, path)
        if tenant.name in names:
            raise ValueError(f"{path}: {where}.name={tenant.name!r} is taken: choose another")
        for one in tenant.key_hashes:
            if one in owners:
                raise ValueError(f"{path}: {where}.key_hashes: {one[:8]}... is also of {owners[one]}: make a new key")
            owners[one] = tenant.name
        names.add(tenant.name)
        tenants.append(tenant)
    anonymous = None
    if content.get("anonymous") is not None:
        entry = content["anonymous"]
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: anonymous is a {type(entry).__name__}: give a mapping of limits, {{}} for none")
        for field in ("key_hashes", "name"):
            if field in entry:
                raise ValueError(f"{path}: anonymous.{field} means nothing, as it is used without a key: remove it")
        anonymous = _tenant({**entry, "name": OPEN.name}, "anonymous", path)
    return tenants, anonymous


def _refuse_unknown(entry: dict, known: tuple[str, ...], where: str, path: Path) -> None:
    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            mend = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"{path}: {where}{'.' if where else ''}{key} is unknown: {mend}")


def _tenant(entry: dict[str, Any], where: str, path: Path) -> Tenant:
    _refuse_unknown(entry, tuple(field.name for field in fields(Tenant)), where, path)
    values = {}
    for field, value in entry.items():
        mend = _mend(field, value)
        if mend:
            raise ValueError(f"{path}: {where}.{field}={value!r}: {mend}")
        if isinstance(value, list):
            value = tuple(one.lower() if field == "key_hashes" else one for one in value)
        values[field] = value
    return Tenant(**values)


def _mend(field: str, value: Any) -> str | None:
    """What to do about a field's value, None = nothing."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if field == "name":
        fine = isinstance(value, str) and _NAME.fullmatch(value)
        return None if fine else "give 1 to 64 letters, digits, `.`, `_` or `-` (numbers in quotes)"
    if field == "key_hashes":
        fine = isinstance(value, list) and all(
            isinstance(one, str) and re.fullmatch("[0-9a-fA-F]{64}", one) for one in value
        )
        return None if fine else "give a list of SHA-256 hashes of 64 hexadecimal digits, never the keys themselves"
    if field == "models":
        fine = value is None or (isinstance(value, list) and all(isinstance(one, str) for one in value))
        return None if fine else "give a list of names of models, or leave it out for all"
    if field == "admin":
        return None if isinstance(value, bool) else "give true or false"
    if field == "priority":
        return None if number and isinstance(value, int) else "give a whole number, lower is served first"
    if field == "requests_per_minute":
        fine = value is None or (number and 0 < value < float("inf"))
        return None if fine else "give a number above 0, or leave it out for no limit"
    fine = value is None or (number and isinstance(value, int) and value >= 1)
    return None if fine else "give a whole number, at least 1, or leave it out for no limit"
