"""What the API takes and gives, as an OpenAPI document and as a page; `app.ROUTES` and this list the same."""

from __future__ import annotations

from html import escape
from importlib.metadata import version
from typing import Any

from penchant.deploy.device_api.bodies import ApiLimits
from penchant.deploy.device_api.upstream import BEST_OF_MOST

__all__ = ["description", "description_page"]

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
MESSAGE: Schema = {
    "type": "object",
    "properties": {"role": TEXT, "content": TEXT},
    "required": ["role", "content"],
}
MESSAGES: Schema = {"type": "array", "items": MESSAGE, "minItems": 1}
USAGE: Schema = {"type": "object", "properties": {"prompt_tokens": WHOLE, "total_tokens": WHOLE}}


def description(limits: ApiLimits) -> Schema:
    """The OpenAPI 3.1 document."""
    paths: dict[str, Any] = {
        "/health": {"get": _operation("Whether it answers", {"status": TEXT}, public=True)},
        "/openapi.json": {"get": _operation("This document", {}, public=True)},
        "/docs": {"get": _page_operation()},
        "/v1/models": {
            "get": _passing_on(
                _operation(
                    "The upstream's models, or ours", {"object": TEXT, "data": _list({"type": "object"})}
                )
            )
        },
        "/v1/feedback": {"post": _feedback(limits)},
        "/v1/chat/completions": {"post": _chat()},
    }
    for path in ("/rerank", "/reranking"):
        summary = "Rank texts (text-embeddings-inference), or documents (vLLM, infinity)"
        paths[path] = {"post": _rerank_or_tei(limits, summary, "tei", plain=True)}
    for path in ("/v1/rerank", "/v1/reranking"):
        summary = "Rank documents (Cohere v1, Jina, vLLM), or texts (llama.cpp)"
        paths[path] = {"post": _rerank_or_tei(limits, summary, "cohere")}
    paths["/v2/rerank"] = {"post": _rerank(limits, "Rank documents (Cohere v2)", "cohere")}
    for path in ("/score", "/v1/score"):
        paths[path] = {"post": _score(limits)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "penchant: a personal reward model",
            "version": version("penchant"),
            "description": "Scores say how much the owner of this device would like a response. "
            "Those in [0, 1] are the logistic function of raw ones; differences of raw ones are log-odds.",
        },
        "paths": dict(sorted(paths.items())),
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def description_page(limits: ApiLimits) -> str:
    """The same as a page, without scripts."""
    document = description(limits)
    rows = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            token = "" if operation["security"] == [] else " · token"
            head = f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
            rows.append(f"{head}<p>{escape(operation['summary'])}{token}</p>{_fields(operation)}")
    info = document["info"]
    return PAGE.format(
        title=escape(info["title"]),
        said=escape(info["description"]),
        rows="".join(rows),
        version=info["version"],
    )


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
:root {{ color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }}
main {{ max-width: 50rem; margin: auto; padding: 1rem }}
h2 {{ font-size: 1rem; margin: 2rem 0 0 }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0 }}
</style></head><body><main><h1>{title}</h1><p>{said} Version {version}.
The document is <a href="/openapi.json">openapi.json</a>.</p>{rows}</main></body></html>
"""


# --- operations -----------------------------------------------------------------------------------------


def _rerank_or_tei(limits: ApiLimits, summary: str, dialect: str, *, plain: bool = False) -> Schema:
    """plain: whether a document may be a string in the answer."""
    tei = _taken(
        {
            "query": TEXT,
            "messages": MESSAGES,
            "texts": _texts(limits),
            "truncate": FLAG,
            "raw_scores": FLAG,
            "return_text": FLAG,
        },
        "texts",
    )
    ranked = _list(_object({"index": WHOLE, "score": NUMBER, "text": TEXT}, "index", "score"))
    operation = _rerank(limits, summary, dialect)
    operation["requestBody"] = _body({"anyOf": [tei, _cohere(limits)]})
    operation["responses"]["200"] = _answer({"anyOf": [ranked, _ranked(plain=plain)]})
    return operation


def _rerank(limits: ApiLimits, summary: str, dialect: str) -> Schema:
    return {
        "summary": summary,
        "security": [{"token": []}],
        "requestBody": _body(_cohere(limits)),
        "responses": {"200": _answer(_ranked()), **_errors(dialect)},
    }


def _cohere(limits: ApiLimits) -> Schema:
    whole = {"type": "object", "minProperties": 1, "description": "with a text in each of rank_fields"}
    document = {"anyOf": [_text(limits), whole]}
    fields = {
        "model": {"description": "Any; the owner's model answers."},
        "query": TEXT,
        "messages": MESSAGES,
        "documents": _list(document) | {"minItems": 1, "maxItems": limits.documents},
        "top_n": WHOLE,
        "rank_fields": _list(TEXT) | {"minItems": 1, "default": ["text"]},
        "return_documents": FLAG,
        "max_tokens_per_doc": {"type": "integer", "minimum": 1},
        "max_chunks_per_doc": {"type": "integer", "minimum": 1},
        "raw_scores": FLAG,
        "use_activation": FLAG,
    }
    return _taken(fields, "documents")


def _ranked(*, plain: bool = False) -> Schema:
    document: Schema = {"type": "object", "properties": {"text": TEXT}}
    if plain:
        document = {"anyOf": [document, TEXT]}
    result = {"index": WHOLE, "relevance_score": NUMBER, "document": document}
    fields = {
        "id": TEXT,
        "object": TEXT,
        "model": TEXT,
        "results": _list(_object(result, "index", "relevance_score")),
        "usage": USAGE,
        "meta": {"type": "object"},
    }
    return _object(fields, "id", "model", "results", "usage", "meta")


def _score(limits: ApiLimits) -> Schema:
    one_or_many = {"anyOf": [_text(limits), _texts(limits)]}
    asked = {"text_1": one_or_many, "text_2": one_or_many, "raw_scores": FLAG, "use_activation": FLAG}
    scored = _object({"index": WHOLE, "object": TEXT, "score": NUMBER}, "index", "score")
    answer = {
        "id": TEXT,
        "object": TEXT,
        "created": WHOLE,
        "model": TEXT,
        "data": _list(scored),
        "usage": USAGE,
    }
    return {
        "summary": "Score text_2 as responses to text_1 (vLLM)",
        "security": [{"token": []}],
        "requestBody": _body(_taken(asked, "text_1", "text_2")),
        "responses": {"200": _answer(_object(answer, *answer)), **_errors("openai")},
    }


def _feedback(limits: ApiLimits) -> Schema:
    row = {"type": "object", "minProperties": 1}
    answer = {"new": WHOLE, "repeated": WHOLE, "notes": _list(TEXT)}
    parameters = [
        {"name": "person", "in": "query", "schema": TEXT},
        {"name": "skip_bad_rows", "in": "query", "schema": {"enum": ["true", "false"]}},
    ]
    body = _body({"anyOf": [_list(row) | {"minItems": 1}, row]})
    for kind in ("application/x-ndjson", "application/jsonl"):
        body["content"][kind] = {"schema": TEXT}
    return {
        "summary": "Record choices, in any format of `penchant device import`: all, or none",
        "security": [{"token": []}],
        "parameters": parameters,
        "requestBody": body,
        "responses": {"200": _answer(_object(answer, *answer)), **_errors("openai")},
    }


def _chat() -> Schema:
    asked = {
        "messages": MESSAGES,
        "n": {"type": "integer", "minimum": 1, "maximum": BEST_OF_MOST},
        "stream": FLAG,
    }
    answer = {"choices": _list({"type": "object"}), "penchant": {"type": "object"}}
    chat: Schema = {
        "summary": "Answers of the upstream (--upstream): the one that the owner would like most (OpenAI)",
        "security": [{"token": []}],
        "requestBody": _body(_taken(asked, "messages")),
        "responses": {"200": _answer(_object(answer, "choices")), **_errors("openai")},
    }
    chat["responses"]["200"]["content"]["text/event-stream"] = {}
    return _passing_on(chat)


def _passing_on(operation: Schema) -> Schema:
    """The same, which may also be refused by the upstream, in whatever form that writes."""
    for status in ("4XX", "5XX"):
        operation["responses"][status]["content"]["*/*"] = {}
    return operation


def _operation(summary: str, answer: dict[str, Schema], *, public: bool = False) -> Schema:
    return {
        "summary": summary,
        "security": [] if public else [{"token": []}],
        "responses": {"200": _answer(_object(answer, *answer)), **_errors("openai")},
    }


def _page_operation() -> Schema:
    return {
        "summary": "The same as a page",
        "security": [],
        "responses": {
            "200": {"description": "The page", "content": {"text/html": {"schema": TEXT}}},
            **_errors("openai"),
        },
    }


# --- parts ----------------------------------------------------------------------------------------------


def _errors(dialect: str) -> Schema:
    message = {"message": TEXT, "type": TEXT, "param": {}, "code": WHOLE}
    shapes = {
        "tei": _object({"error": TEXT, "error_type": TEXT}, "error", "error_type"),
        "cohere": _object({"message": TEXT}, "message"),
        "openai": _object({"error": _object(message, "message", "type")}, "error"),
    }
    refusal = _answer(shapes[dialect])
    return {"4XX": refusal | {"description": "Refused, and why"}, "5XX": refusal | {"description": "Not now"}}


def _answer(schema: Schema) -> Schema:
    return {"description": "The answer", "content": {"application/json": {"schema": schema}}}


def _body(schema: Schema) -> Schema:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _object(properties: dict[str, Schema], *required: str) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


def _taken(properties: dict[str, Schema], *required: str) -> Schema:
    """An object of a body: a field that is null counts as not given."""
    return _object(
        {name: one if name in required else _or_null(one) for name, one in properties.items()}, *required
    )


def _or_null(schema: Schema) -> Schema:
    return schema | {"type": [schema["type"], "null"]} if "type" in schema else schema


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _text(limits: ApiLimits) -> Schema:
    return TEXT | {"maxLength": limits.characters}


def _texts(limits: ApiLimits) -> Schema:
    return _list(_text(limits)) | {"minItems": 1, "maxItems": limits.documents}


def _fields(operation: Schema) -> str:
    """A table of what an operation takes in its body."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = content.get("schema", {})
    found: dict[str, Schema] = {}
    for one in (schema, *schema.get("anyOf", ())):
        found |= one.get("properties", {})
    if not found:
        return ""
    cells = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_kind(one))}</td></tr>"
        for name, one in found.items()
    )
    return f"<table><thead><tr><th>field</th><th>kind</th></tr></thead><tbody>{cells}</tbody></table>"


def _kind(schema: Schema) -> str:
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    kind = schema.get("type", "any")
    if isinstance(kind, list):
        kind = next(one for one in kind if one != "null")
    return f"{kind} of {_kind(schema['items'])}" if kind == "array" else kind
