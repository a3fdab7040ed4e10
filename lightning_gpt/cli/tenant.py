"""`lightning-gpt tenant`: a key for somebody who may use the service."""


def tenant_command(
    name: str,
    file: str = "tenants.yaml",
    requests_per_minute: float | None = None,
    burst: int | None = None,
    tokens_per_minute: int | None = None,
    tokens_per_day: int | None = None,
    max_parallel: int | None = None,
    priority: int = 0,
    models: list[str] | None = None,
    admin: bool = False,
) -> None:
    """Make an API key, show it once, and add its owner to the file of tenants, which keeps only the key's hash.

    A running service follows the file within seconds. To exchange a key, put the hash of a second one beside the first.

    Args:
        name: of the tenant: letters, digits, `.`, `_`, `-`; a label in metrics and logs.
        file: YAML of tenants; made if it is missing, readable by you alone.
        requests_per_minute: on average; by default no limit, as below.
        burst: requests that may come at once; by default those of a minute.
        tokens_per_minute: prompt and answer together.
        tokens_per_day: prompt and answer together, from midnight to midnight UTC.
        max_parallel: requests under way or waiting at one time.
        priority: lower is served first, whatever the others ask for.
        models: that it may use; by default all.
        admin: may load, unload and weigh versions.
    """
    from pathlib import Path

    from lightning_gpt.serving.tenant_file import add_tenant
    from lightning_gpt.serving.tenants import Tenant, new_key

    key, hashed = new_key()
    limits = (requests_per_minute, burst, tokens_per_minute, tokens_per_day, max_parallel, priority)
    add_tenant(Path(file), Tenant(name, (hashed,), *limits, None if models is None else tuple(models), admin))
    print(key)
    print(f"The key of {name}, shown this once; {file} keeps its hash. Use: Authorization: Bearer KEY")
