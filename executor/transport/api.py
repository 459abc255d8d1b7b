"""What the JetStream API answers, and how its errors read as ours."""

from __future__ import annotations

import json
from typing import Any, Final

from executor.errors import ExecutorError

NOT_FOUND: Final = 404
_FULL: Final = frozenset({10047, 10077, 10122})
_TOO_LARGE: Final = 10054
# The expected last sequence of a subject did not hold; in races of replicas the second.
CONFLICTS: Final = frozenset({10071, 10164})


class ApiError(Exception):
    """An error in an answer of the API; mapped by `mapped` before it leaves this room."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        self.code = code
        self.err_code = err_code
        self.description = description
        super().__init__(f"{code} {err_code} {description}")

    def mapped(self, stream: str) -> ExecutorError:
        """The same as an error of ours."""
        if self.code == NOT_FOUND:
            name = "transport.stream-missing"
        elif self.err_code in _FULL:
            name = "transport.stream-full"
        elif self.err_code == _TOO_LARGE:
            name = "message.too-large"
        else:
            name = "transport.stream-mismatch"
        return ExecutorError(name, self.description, stream=stream, err_code=self.err_code)


def decode(data: bytes) -> dict[str, Any]:
    """The answer of an API call or a PubAck; raises `ApiError`."""
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ApiError(500, 0, "the answer is not JSON")
    error = answer.get("error")
    if error is not None:
        raise ApiError(
            int(error.get("code", 500)),
            int(error.get("err_code", 0)),
            str(error.get("description", "no description")),
        )
    return answer


def header_size(headers: dict[str, str] | None) -> int:
    """The bytes that headers add to a message on the wire; an upper bound for ASCII."""
    if not headers:
        return 0
    # "NATS/1.0\r\n", "name: value\r\n" each, "\r\n".
    values = sum(map(len, map(str.encode, headers.values())))
    return 12 + sum(map(len, headers)) + values + 4 * len(headers)
