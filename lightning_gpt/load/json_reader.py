"""The fastest reader of JSON that is installed."""

try:
    from orjson import loads
except ImportError:  # the extra `serve` brings it
    from json import loads

__all__ = ["loads"]
