"""Errors in OpenAI's format: `{"error": {message, type, param, code}}`."""

import json
import reprlib
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

TYPES = {401: "authentication_error", 429: "rate_limit_error"}
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """OpenAI's format of an error."""

    error: ErrorDetail


class APIError(HTTPException):
    """Ends a request with an error in OpenAI's format; `param` is the field that is wrong."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(status, message, HEADERS.get(status))
        self.code = code or HTTPStatus(status).phrase.lower().replace(" ", "_")  # bad_request
        self.param = param

    @property
    def json(self) -> str:
        default = "invalid_request_error" if self.status_code < 500 else "server_error"
        kind = TYPES.get(self.status_code, default)
        detail = {"message": self.detail, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": detail})  # ASCII: a field's name may hold half a surrogate pair

    def response(self) -> Response:
        return Response(self.json, self.status_code, self.headers, "application/json")


class Full(APIError):
    """The queue has no room for these images."""

    def __init__(self) -> None:
        super().__init__(429, "Too many images are waiting; try again later.", "queue_full")


class Ended(APIError):
    """The engine accepts no images any more: it is closed or has failed for good."""

    def __init__(self) -> None:
        super().__init__(503, "The engine has ended; no more images are drawn.", "engine_ended")


async def _http_error(request: Request, error: HTTPException) -> Response:
    if not isinstance(error, APIError):
        headers, own = error.headers, APIError(error.status_code, _reason(request, error))
        own.headers = headers or own.headers
        error = own
    return error.response()


def _reason(request: Request, error: HTTPException) -> str:
    """Why the router or FastAPI refuses a request, in a sentence."""
    path, allowed = request.url.path, (error.headers or {}).get("Allow")
    if error.status_code == 405 and allowed:
        return f"{path} is served to {allowed} only, got {request.method}."
    if error.status_code != 404:
        return f"{error.detail}"
    if path.startswith("/v1/images/"):
        offered = "generations, edits and variations"
        return f"{path} is not served here; POST /v1/images/ has {offered}."
    return f"{path} is not served here."


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    request.app.state.metrics.requests.labels("400").inc()
    first = error.errors()[0]
    field, reason, code = ".".join(map(str, first["loc"][1:])), first["msg"], first["type"]
    if code == "json_invalid" or not field:
        return APIError(400, f"The body is not valid: {reason}.", code).response()
    got = "" if code == "missing" else f", got {reprlib.repr(first['input'])}"
    return APIError(400, f"{field}: {reason}{got}.", code, field).response()


async def _failed(_: Request, error: Exception) -> Response:
    return APIError(500, "The server has failed.", "server_error").response()


HANDLERS: dict[Any, Any] = {
    HTTPException: _http_error,
    RequestValidationError: _invalid,
    Exception: _failed,
}
