"""Stripe's error answers: https://docs.stripe.com/api/errors and https://docs.stripe.com/error-codes."""

from typing import Any


class ApiError(Exception):
    """Ends a request with Stripe's error object. Raised before anything is written: nothing was changed.

    `kept`: whether the answer is kept under the request's Idempotency-Key. A fault of the parameters is not.
    """

    def __init__(self, status: int, message: str, *, kept: bool = False, **members: Any) -> None:
        super().__init__(message)
        self.status = status
        self.kept = kept
        self.error = {"type": "invalid_request_error", "message": message, **members}
        code = members.get("code")
        if code is not None:
            self.error["doc_url"] = f"https://stripe.com/docs/error-codes/{str(code).replace('_', '-')}"

    def body(self) -> dict[str, Any]:
        return {"error": self.error}


def missing(kind: str, object_id: str, param: str = "intent") -> ApiError:
    """404 for an id that names nothing."""
    return ApiError(404, f"No such {kind}: '{object_id[:100]}'", code="resource_missing", param=param)


def bad_param(param: str, message: str, code: str | None = None) -> ApiError:
    """400 for one parameter."""
    if code is None:
        return ApiError(400, message, param=param)
    return ApiError(400, message, param=param, code=code)
