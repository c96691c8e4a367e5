"""Errors in OpenAI's form, `{"error": {message, type, param, code}}`, whatever happens."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from lgpl.serving.metrics import Metrics

TYPES = {401: "authentication_error", 429: "rate_limit_error"}
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """OpenAI's form of an error."""

    error: ErrorDetail


# Of a request for pictures, for the API's own description.
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Error} for status in (400, 401, 408, 413, 415, 421, 429, 500, 503, 504)
}


class APIError(Exception):
    """Ends a request with OpenAI's form of an error."""

    def __init__(self, status: int, message: str, param: str | None, code: str) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        of_client = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": TYPES.get(self.status, of_client),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        # ASCII: a name of a field may hold what UTF-8 does not.
        content = json.dumps(self.body)
        return Response(content, self.status, HEADERS.get(self.status), "application/json")


def engine_ended() -> APIError:
    return APIError(503, "No pictures are drawn any more.", None, "engine_ended")


def add_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Give every error of the app this form."""

    @app.exception_handler(APIError)
    async def refused(_: Request, error: APIError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:]) if first["loc"] else ""
        known = first["type"] != "json_invalid" and field != ""
        metrics.requests.labels("400").inc()
        said = f"{field}: {first['msg']}." if known else f"The body is wrong: {first['msg']}."
        return APIError(400, said, field if known else None, first["type"]).response()

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        answer = APIError(error.status_code, f"{error.detail}", None, code).response()
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return APIError(500, "The server made a mistake.", None, "server_error").response()
