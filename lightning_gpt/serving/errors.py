"""What goes wrong with a request, in the shape that OpenAI's clients read."""

from __future__ import annotations

import math
from typing import Any

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Status -> `type` of the error."""


class ApiError(Exception):
    """A refusal or a failure that the client is told of.

    Args:
        status: HTTP status.
        message: one sentence: what is wrong, its value, the mend.
        param: the field of the request that is at fault.
        code: a word for programs, such as context_length_exceeded, rate_limit_exceeded, insufficient_quota,
            queue_full, deadline_exceeded, breaker_open, draining, model_not_found, invalid_api_key.
        retry_after_s: when to come again; becomes the header Retry-After, in whole seconds, at least 1.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """{"error": {"message", "type", "param", "code"}}."""
        kind = "insufficient_quota" if self.code == "insufficient_quota" else TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Retry-After, where it is known."""
        return {} if self.retry_after_s is None else {"retry-after": str(max(math.ceil(self.retry_after_s), 1))}
