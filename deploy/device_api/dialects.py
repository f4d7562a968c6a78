"""What an answer that refuses looks like: each program reads errors in the form of the API that it knows."""

from __future__ import annotations

from typing import Any, Literal

from starlette.responses import JSONResponse

from penchant.common.printable import one_line

__all__ = ["ApiRefusal", "Dialect", "dialect_of", "refused"]

Dialect = Literal["tei", "cohere", "openai"]

_DIALECTS: dict[str, Dialect] = {
    "/v1/rerank": "cohere",
    "/v1/reranking": "cohere",
    "/v2/rerank": "cohere",
    "/rerank": "tei",
    "/reranking": "tei",
}
_TEI_TYPES = {400: "Empty", 401: "Unauthorized", 413: "Validation", 422: "Validation", 503: "Overloaded"}
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


class ApiRefusal(Exception):
    """A request that is not answered: a status of HTTP, why in one line, and after how many seconds it is
    worth another try, 0 where it isn't. The line quotes nothing of what was sent."""

    def __init__(self, status: int, why: str, retry_after: int = 0) -> None:
        super().__init__(why)
        self.status = status
        self.retry_after = retry_after


def dialect_of(path: str) -> Dialect:
    """The API whose form is spoken at an address."""
    return _DIALECTS.get(path, "openai")


def refused(refusal: ApiRefusal, dialect: Dialect) -> JSONResponse:
    """The answer, a line of JSON. Cohere and OpenAI say 400 of a body of the wrong shape, TEI 422."""
    status = 400 if refusal.status == 422 and dialect != "tei" else refusal.status
    headers = {"retry-after": str(refusal.retry_after)} if refusal.retry_after else {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(_shaped(status, one_line(str(refusal)), dialect), status, headers)


def _shaped(status: int, why: str, dialect: Dialect) -> dict[str, Any]:
    if dialect == "tei":
        return {"error": why, "error_type": _TEI_TYPES.get(status, "Backend")}
    if dialect == "cohere":
        return {"message": why}
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": why, "type": kind, "param": None, "code": status}}
