"""What memory is free here."""

from pathlib import Path


def free_memory() -> int:
    """Bytes that this process may still take: what is free on the machine, or in its control group if that is less."""
    import psutil

    free = psutil.virtual_memory().available
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        if Path(limit).exists() and (text := Path(limit).read_text().strip()).isdigit():
            free = min(free, max(0, int(text) - int(Path(used).read_text())))
    return free
