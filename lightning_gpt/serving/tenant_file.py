"""Writing tenants into a YAML file that people keep by hand: their comments and their order stay."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import yaml

from lightning_gpt.serving.atomic_file import write_atomically
from lightning_gpt.serving.tenants import Tenant, parse_tenants

HEADER = "# Tenants of lightning-gpt serve. A running service follows changes of this file.\n"


def add_tenant(path: Path, tenant: Tenant) -> None:
    """Appends a tenant to a file in one step; a missing file is made, readable by its owner alone.

    Raises:
        ValueError: the name is taken, a field is wrong, or the file is not one of tenants; it is then as it was.
        OSError: it cannot be read or written.
    """
    with _alone(path):
        text = path.read_text(encoding="utf-8") if path.exists() else HEADER
        tenants, anonymous = parse_tenants(text, path)
        if tenant.name in {one.name for one in tenants}:
            raise ValueError(f"{path}: a tenant {tenant.name!r} is there already: choose another name")
        new = _with_entry(text, _entry(tenant))
        expected = [*tenants, tenant], anonymous
        try:
            added = parse_tenants(new, path)
        except ValueError:
            _entry_is_fine(tenant, path)
            added = None
        if added != expected:
            raise ValueError(f"{path} is written in a way that cannot be added to: write the entries below `tenants:`")
        write_atomically(path, new.encode(), mode=0o600, sync=True)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two that add at one time do so one after the other. The directory is locked, as the file is replaced."""
    try:
        folder = os.open(os.path.realpath(path.parent), os.O_RDONLY)
    except OSError as error:
        raise ValueError(f"{path}: there is no directory {path.parent} ({error.strerror}): make it first") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _entry(tenant: Tenant) -> dict:
    """The fields that differ from their defaults."""
    entry = {}
    for field in fields(Tenant):
        value = getattr(tenant, field.name)
        if field.name == "name" or value != field.default:
            entry[field.name] = list(value) if isinstance(value, tuple) else value
    return entry


def _entry_is_fine(tenant: Tenant, path: Path) -> None:
    """Raises what is wrong with the tenant itself."""
    parse_tenants(json.dumps({"tenants": [_entry(tenant)]}), path)


def _with_entry(text: str, entry: dict) -> str:
    """The text with one more entry at the end of its list."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    tenants = next((value for key, value in pairs if key.value == "tenants"), None)
    text = text if text.endswith("\n") or not text else text + "\n"
    if tenants is None:
        return text + "tenants:\n" + _lines(entry, 2)
    start, end = tenants.start_mark.index, tenants.end_mark.index
    if not isinstance(tenants, yaml.SequenceNode) or not tenants.value:  # nothing, null, []
        return text[:start].rstrip(" ") + "\n" + _lines(entry, 2).rstrip("\n") + text[end:]
    if tenants.flow_style:
        return text[: end - 1].rstrip() + ", " + json.dumps(entry) + text[end - 1 :]
    place = text.index("\n", _end(tenants)) + 1
    return text[:place] + _lines(entry, tenants.start_mark.column) + text[place:]


def _lines(entry: dict, column: int) -> str:
    """The entry as an item of a list that begins at a column."""
    lines = yaml.safe_dump(entry, sort_keys=False, allow_unicode=True).splitlines()
    return "".join(f"{' ' * column}{'  ' if number else '- '}{line}\n" for number, line in enumerate(lines))


def _end(node: yaml.Node) -> int:
    """Index at which the last written character of a node ends; the marks of block nodes lie beyond comments."""
    if isinstance(node, yaml.ScalarNode) or node.flow_style or not node.value:
        return node.end_mark.index
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last)
