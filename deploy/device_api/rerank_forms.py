"""The forms in which programs ask for scores, and in which they read the answer.

| form | asked as | answered as |
|---|---|---|
| text-embeddings-inference | query, texts | [{index, score, text?}] |
| Cohere v1, Jina, vLLM | query, documents | {id, model, results: [{index, relevance_score, document?}], …} |
| Cohere v2 | the same | the same, without documents unless they are asked for |
| infinity | the same, with both raw_scores and return_documents | the same, a document as a string |
| vLLM's score | text_1, text_2 | {id, object, model, data: [{index, score}], usage} |

A query is the prompt, and a text or document a response to it. Instead of a query, `messages` of a
conversation may be given: then texts are answers in it, in the form that the model was trained in.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from penchant.client.device.conversation_form import prompt_of, response_of
from penchant.client.device.warm_model import TextScore
from penchant.common.data.preferences import kind_of
from penchant.common.errors import DataError
from penchant.deploy.device_api.bodies import Fields
from penchant.deploy.device_api.dialects import ApiRefusal

__all__ = ["RerankForm", "is_infinity", "read_cohere", "read_score", "read_tei"]

Json = Any
Write = Callable[[Sequence[TextScore], str], Json]  # (scores in the order of the texts, the model's name)


@dataclass(frozen=True)
class RerankForm:
    """A request: the (prompt, response) texts that it has scored, and how its answer is written.

    whole: whether texts that the model can't read to their end are refused.
    """

    texts: list[tuple[str, str]] = field(repr=False)
    write: Write = field(repr=False)
    whole: bool = False


def read_tei(fields: Fields, conversational: bool) -> RerankForm:
    """text-embeddings-inference's form; without `truncate`, texts are cut."""
    texts = fields.texts("texts")
    raw, shown = fields.flag("raw_scores", False), fields.flag("return_text", False)
    whole = not fields.flag("truncate", True)

    def write(scores: Sequence[TextScore], model: str) -> Json:
        return [
            {"index": place, **({"text": texts[place]} if shown else {}), "score": _value(scores[place], raw)}
            for place in _best_first(scores)
        ]

    return RerankForm(_asked(fields, texts, conversational), write, whole)


def is_infinity(fields: Fields) -> bool:
    """Whether a body is one of infinity's: its client sends both of these, and no other one does."""
    return "raw_scores" in fields and "return_documents" in fields


def read_cohere(fields: Fields, conversational: bool, *, version: int, plain: bool = False) -> RerankForm:
    """Cohere's form, Jina's and vLLM's. plain: a document is a string in the answer, as infinity has it."""
    documents = _documents(fields)
    most = fields.whole("top_n", 0) or len(documents)
    raw = _wants_raw(fields)
    shown = fields.flag("return_documents", version == 1)
    for name in ("max_tokens_per_doc", "max_chunks_per_doc"):  # the model reads as much as it reads
        fields.whole(name, 1, least=1)

    def write(scores: Sequence[TextScore], model: str) -> Json:
        results = [
            {
                "index": place,
                "relevance_score": _value(scores[place], raw),
                **({"document": documents[place] if plain else {"text": documents[place]}} if shown else {}),
            }
            for place in _best_first(scores)[:most]
        ]
        return {
            "id": str(uuid.uuid4()),
            "object": "rerank",
            "model": model,
            "results": results,
            "usage": _usage(scores),
            "meta": {"api_version": {"version": str(version)}},
        }

    return RerankForm(_asked(fields, documents, conversational), write)


def read_score(fields: Fields, conversational: bool) -> RerankForm:
    """vLLM's form: one text against many, or pair by pair."""
    first, second = _one_or_many(fields, "text_1"), _one_or_many(fields, "text_2")
    if len(first) not in (1, len(second)):
        raise ApiRefusal(422, "'text_1' must be one text, or as many as 'text_2'")
    raw = _wants_raw(fields)
    prompts = first * len(second) if len(first) == 1 else first

    def write(scores: Sequence[TextScore], model: str) -> Json:
        data = [
            {"index": place, "object": "score", "score": _value(score, raw)}
            for place, score in enumerate(scores)
        ]
        return {
            "id": f"score-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": model,
            "data": data,
            "usage": _usage(scores),
        }

    return RerankForm(list(zip(prompts, second, strict=True)), write)


# --- inner parts --------------------------------------------------------------------------------------


def _asked(fields: Fields, responses: Sequence[str], conversational: bool) -> list[tuple[str, str]]:
    """The texts to score: behind a query, or as answers in a conversation."""
    query = fields.text("query") if "query" in fields or "messages" not in fields else ""
    if "messages" not in fields:
        return [(query, response) for response in responses]
    messages = fields.entries("messages")
    try:
        prompt = fields.bounded("messages", prompt_of(messages, conversation=conversational))
        answers = [response_of({"content": one}, conversation=conversational) for one in responses]
    except DataError as error:
        raise ApiRefusal(422, str(error)) from None
    return [(prompt, answer) for answer in answers]


def _documents(fields: Fields) -> list[str]:
    """The texts of documents; of an object, its fields that are named, `text` by default, a line each."""
    named = fields.texts("rank_fields") if "rank_fields" in fields else ["text"]
    found = []
    for place, one in enumerate(fields.entries("documents")):
        if isinstance(one, Mapping):
            parts = [one.get(name) for name in named]
            if not all(isinstance(part, str) for part in parts):
                raise ApiRefusal(
                    422, f"'documents' has an entry {place} without a text in a field that is ranked"
                )
            one = "\n".join(str(part) for part in parts)
        elif not isinstance(one, str):
            raise ApiRefusal(
                422, f"'documents' has an entry {place} that is {kind_of(one)}, not a string or an object"
            )
        found.append(fields.bounded("documents", one))
    return found


def _one_or_many(fields: Fields, name: str) -> list[str]:
    return [fields.text(name)] if isinstance(fields[name], str) else fields.texts(name)


def _wants_raw(fields: Fields) -> bool:
    """`raw_scores` is TEI's word for it, `use_activation` vLLM's for the opposite."""
    return fields.flag("raw_scores", not fields.flag("use_activation", True))


def _value(score: TextScore, raw: bool) -> float:
    return score.raw if raw else score.bounded


def _best_first(scores: Sequence[TextScore]) -> list[int]:
    return sorted(range(len(scores)), key=lambda place: -scores[place].raw)


def _usage(scores: Sequence[TextScore]) -> dict[str, int]:
    tokens = sum(score.tokens for score in scores)
    return {"prompt_tokens": tokens, "total_tokens": tokens}
