"""Why a request is not answered, in words and as HTTP says it."""

from __future__ import annotations

import math
from collections.abc import Mapping


class Refusal(Exception):
    """A request that is not answered.

    status: of HTTP. code: the reason in a word, for programs and for the metrics. message: for people. retry_after: seconds after which
    the same request may do better. headers: others that go with it.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    def problem(self, request_id: str) -> dict[str, str]:
        """What the client is told (`app.Problem`)."""
        return {"error": self.message, "code": self.code, "request_id": request_id}
