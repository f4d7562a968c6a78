"""The API of a device, on a real port: each form, the same scores as `rank`, many clients, hostile ones."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.device_api_scene import TOKEN, ServedApi, chats, motions, new_device, served
from typer.testing import CliRunner

from penchant.client.device.warm_model import WarmModel
from penchant.common.errors import ConfigError, DeviceError
from penchant.deploy.cli.device import app as device_app
from penchant.deploy.device_api.api_token import TOKEN_FILE, api_token, new_api_token, token_now
from penchant.deploy.device_api.app import PUBLIC, ROUTES
from penchant.deploy.device_api.bodies import ApiLimits
from penchant.deploy.device_api.description import description

QUERY = "on bill 99: "
TEXTS = ["the table tax", "the motion tax", "cloture", "", "a vote\non the \x00 budget"]
SECRET = "the motion of the owner alone"
ASKS = ["/rerank", "/v1/rerank", "/v2/rerank", "/v1/score", "/v1/feedback"]


@pytest.fixture(scope="module")
def api(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedApi]:
    folder = tmp_path_factory.mktemp("api") / "device"
    with served(new_device(folder, tiny_model("bert"), motions())) as found:
        yield found


@pytest.fixture(scope="module")
def own(api: ServedApi) -> dict[str, float]:
    """The scores that `penchant device rank` gives."""
    return {row.response: row.personal for row in api.device.rank(QUERY, TEXTS)}


def told(response: httpx.Response) -> str:
    """The one line of an answer that refuses."""
    found = response.json()
    line = found.get("message") or (found["error"] if "error_type" in found else found["error"]["message"])
    assert isinstance(line, str)
    assert "\n" not in line
    return line


def best_first(own: dict[str, float]) -> list[int]:
    return sorted(range(len(TEXTS)), key=lambda place: -own[TEXTS[place]])


# --- the forms --------------------------------------------------------------------------------------------


def test_teis_form_gives_the_scores_of_rank(api: ServedApi, own: dict[str, float]) -> None:
    found = api.post("/rerank", {"query": QUERY, "texts": TEXTS, "raw_scores": True}).json()
    assert [row["index"] for row in found] == best_first(own)
    assert all(set(row) == {"index", "score"} for row in found)
    for row in found:
        assert row["score"] == pytest.approx(own[TEXTS[row["index"]]], abs=1e-6)


def test_teis_form_is_bounded_and_shows_texts_where_that_is_asked_for(api: ServedApi) -> None:
    body = {"query": QUERY, "texts": TEXTS, "return_text": True, "truncate": True, "extra": {"a": 1}}
    found = api.post("/rerank", body).json()
    assert all(0 < row["score"] < 1 and row["text"] == TEXTS[row["index"]] for row in found)


def test_teis_form_refuses_what_can_not_be_read_whole_only_if_that_is_asked_for(api: ServedApi) -> None:
    long = {"query": QUERY, "texts": ["tax " * 50, "tax"]}
    cut = api.post("/rerank", long)
    assert (cut.status_code, cut.headers["x-penchant-cut"]) == (200, "1")
    refused = api.post("/rerank", {**long, "truncate": False})
    assert refused.status_code == 413
    assert told(refused) == "1 texts have more than 16 tokens; send less, or truncate = true"
    assert api.post("/rerank", {"query": "", "texts": ["tax"], "truncate": False}).status_code == 200


@pytest.mark.parametrize("path", ["/rerank", "/reranking", "/v1/rerank", "/v1/reranking", "/v2/rerank"])
def test_coheres_form_gives_the_scores_of_rank(api: ServedApi, own: dict[str, float], path: str) -> None:
    body = {"model": "any", "query": QUERY, "documents": TEXTS, "raw_scores": True, "top_n": 3}
    found = api.post(path, body).json()
    assert [row["index"] for row in found["results"]] == best_first(own)[:3]
    for row in found["results"]:
        assert row["relevance_score"] == pytest.approx(own[TEXTS[row["index"]]], abs=1e-6)
        assert row.get("document") == (None if path == "/v2/rerank" else {"text": TEXTS[row["index"]]})
    assert found["model"] == "penchant-personal"
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] > 0
    assert found["meta"]["api_version"]["version"] == ("2" if path == "/v2/rerank" else "1")
    bounded = api.post(path, {"query": QUERY, "documents": TEXTS, "top_n": 0}).json()["results"]
    assert [row["index"] for row in bounded] == best_first(own)
    assert all(0 < row["relevance_score"] < 1 for row in bounded)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/reranking"])
def test_llama_cpps_form_is_teis_wherever_texts_are_sent(
    api: ServedApi, own: dict[str, float], path: str
) -> None:
    found = api.post(path, {"query": QUERY, "texts": TEXTS, "raw_scores": True}).json()
    assert [row["index"] for row in found] == best_first(own)
    assert [row["score"] for row in found] == pytest.approx(sorted(own.values(), reverse=True), abs=1e-6)
    both = api.post(path, {"query": QUERY, "texts": TEXTS, "documents": TEXTS}).json()
    assert len(both["results"]) == len(TEXTS)


COHERE = (  # what its SDK 7.3.1 sent to this API and understood the answers of: v1 twice, v2
    (
        "/v1/rerank",
        b'{"model":"rerank-v3.5","query":"on bill: ","documents":["the table tax","the motion tax"],'
        b'"top_n":1,"return_documents":true}',
        [{"document": {"text": "the motion tax"}, "index": 1}],
    ),
    (
        "/v1/rerank",
        b'{"query":"on bill: ","documents":[{"text":"the table tax"},{"text":"the motion tax"}],'
        b'"rank_fields":["text"]}',
        [
            {"document": {"text": "the motion tax"}, "index": 1},
            {"document": {"text": "the table tax"}, "index": 0},
        ],
    ),
    (
        "/v2/rerank",
        b'{"model":"rerank-v3.5","query":"on bill: ","documents":["the table tax","the motion tax"],'
        b'"top_n":2,"max_tokens_per_doc":99}',
        [{"index": 1}, {"index": 0}],
    ),
)


@pytest.mark.parametrize(("path", "body", "expected"), COHERE)
def test_requests_of_coheres_sdk_are_answered(
    api: ServedApi, path: str, body: bytes, expected: list[dict[str, Any]]
) -> None:
    headers = {
        "accept": "*/*",
        "accept-encoding": "gzip, deflate",
        "user-agent": "cohere/7.3.1",
        "x-fern-language": "Python",
        "x-fern-sdk-name": "cohere",
        "content-type": "application/json",
    }
    with api.client(**headers) as client:
        found = client.post(path, content=body).json()
    assert all(0 < row.pop("relevance_score") < 1 for row in found["results"])
    assert found["results"] == expected
    assert isinstance(found["id"], str)
    assert found["meta"] == {"api_version": {"version": path[2]}}
    with api.client(**headers) as client:
        empty = client.post(path, content=b'{"model":"m","query":"on bill: ","documents":[]}')
    assert (empty.status_code, set(empty.json())) == (400, {"message"})


INFINITY = (  # what its client 0.0.78 sent to this API and understood the answer of
    b'{"query": "on bill: ", "documents": ["the table tax", "the motion tax"], "return_documents": true, '
    b'"raw_scores": true, "model": "default/not-specified", "top_n": 1}'
)


def test_infinity_s_documents_are_strings_at_its_address_alone(api: ServedApi) -> None:
    table = json.loads(INFINITY)
    (score,) = api.post(
        "/v1/score", {"text_1": "on bill: ", "text_2": "the motion tax", "raw_scores": True}
    ).json()["data"]
    for path in ("/rerank", "/reranking"):
        (found,) = api.post(path, table).json()["results"]
        assert (found["index"], found["document"]) == (1, "the motion tax")
        assert found["relevance_score"] == pytest.approx(score["score"], abs=1e-5)  # alone and in company
    hidden = api.post("/rerank", table | {"return_documents": False}).json()["results"]
    assert "document" not in hidden[0]
    for path, body in (
        ("/v1/rerank", table),
        ("/v2/rerank", table),
        ("/rerank", {name: value for name, value in table.items() if name != "raw_scores"}),
    ):
        assert api.post(path, body).json()["results"][0]["document"] == {"text": "the motion tax"}


def test_documents_may_be_objects_whose_fields_are_named(api: ServedApi) -> None:
    plain = {"query": QUERY, "documents": ["the tax", "tax\nthe vote"], "raw_scores": True}
    objects = [{"text": "the tax", "id": 3}, {"text": "tax\nthe vote"}]
    asked = [{"title": "the tax", "body": "bill"}, {"title": "tax", "body": "the vote"}]
    scores = [row["relevance_score"] for row in api.post("/v1/rerank", plain).json()["results"]]
    same = api.post("/v1/rerank", {**plain, "documents": objects}).json()["results"]
    assert [row["relevance_score"] for row in same] == scores
    body = {**plain, "documents": asked, "rank_fields": ["title", "body"]}
    found = {row["index"]: row for row in api.post("/v1/rerank", body).json()["results"]}
    assert found[1]["document"] == {"text": "tax\nthe vote"}
    missing = api.post("/v1/rerank", {**body, "rank_fields": ["name"]})
    assert (missing.status_code, told(missing)) == (
        400,
        "'documents' has an entry 0 without a text in a field that is ranked",
    )


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_vllms_form_scores_pairs_in_the_order_given(api: ServedApi, own: dict[str, float], path: str) -> None:
    many = api.post(path, {"text_1": QUERY, "text_2": TEXTS, "use_activation": False}).json()
    assert [row["score"] for row in many["data"]] == pytest.approx([own[t] for t in TEXTS], abs=1e-6)
    assert [row["index"] for row in many["data"]] == list(range(len(TEXTS)))
    assert (many["object"], many["data"][0]["object"]) == ("list", "score")
    one = api.post(path, {"text_1": QUERY, "text_2": TEXTS[0], "raw_scores": True}).json()
    assert one["data"][0]["score"] == pytest.approx(own[TEXTS[0]], abs=1e-6)
    pairs = api.post(path, {"text_1": [QUERY, ""], "text_2": ["tax", QUERY + "tax"]}).json()
    assert pairs["data"][0]["score"] == pytest.approx(pairs["data"][1]["score"], abs=1e-6)
    refused = api.post(path, {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]})
    assert refused.status_code == 400
    assert told(refused) == "'text_1' must be one text, or as many as 'text_2'"


def test_a_conversation_is_asked_in_the_form_that_the_model_was_trained_in(
    tiny_model: Callable[[str], Path], tmp_path: Path, api: ServedApi
) -> None:
    messages = [{"role": "user", "content": "on bill 99:"}]
    texts = ["the table tax", "the motion tax"]
    plain = api.post("/v1/rerank", {"messages": messages, "documents": texts, "raw_scores": True}).json()
    expected = {row.response: row.personal for row in api.device.rank("on bill 99:", texts)}
    for row in plain["results"]:
        assert row["relevance_score"] == pytest.approx(expected[texts[row["index"]]], abs=1e-6)
    with served(new_device(tmp_path / "chats", tiny_model("bert"), chats())) as other:
        found = other.post("/rerank", {"messages": messages, "texts": texts, "raw_scores": True}).json()
        spoken = [f"assistant: {text}" for text in texts]
        rows = other.device.rank("user: on bill 99:\n", spoken)
        by_text = {row.response: row.personal for row in rows}
        for row in found:
            assert row["score"] == pytest.approx(by_text[spoken[row["index"]]], abs=1e-6)
    refused = api.post("/v1/rerank", {"messages": [{"role": "user"}], "documents": texts})
    assert "messages" in told(refused)


def test_health_and_description_need_no_token_and_everything_else_does(api: ServedApi) -> None:
    for method, path, _ in ROUTES:
        answer = httpx.request(method, api.url + path)
        assert answer.status_code == (200 if path in PUBLIC else 401), path
    assert httpx.get(api.url + "/health").json() == {"status": "ok"}
    with api.client() as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "penchant-personal"


def test_the_description_lists_what_there_is_and_the_page_shows_it(api: ServedApi) -> None:
    document = httpx.get(api.url + "/openapi.json").json()
    there = {(method.lower(), path) for method, path, _ in ROUTES}
    assert {(m, path) for path, methods in document["paths"].items() for m in methods} == there
    public = {p for p, ms in document["paths"].items() for m in ms.values() if m["security"] == []}
    assert public == PUBLIC
    page = httpx.get(api.url + "/docs")
    assert all(f"<code>{m.upper()} {p}</code>" in page.text for m, p in there)
    assert "script" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_answers_are_what_the_description_says(api: ServedApi) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    document = description(ApiLimits())
    asked = {
        "/rerank": {"query": QUERY, "texts": TEXTS},
        "/v1/rerank": {"query": QUERY, "documents": TEXTS},
        "/v2/rerank": {"query": QUERY, "documents": TEXTS},
        "/v1/score": {"text_1": QUERY, "text_2": TEXTS},
    }
    for path, body in asked.items():
        operation = document["paths"][path]["post"]
        form = operation["requestBody"]["content"]["application/json"]["schema"]
        jsonschema.validate(body, form)
        for sent, status in ((body, "200"), ({"query": 3}, "4XX")):
            schema = operation["responses"][status]["content"]["application/json"]["schema"]
            answer = api.post(path, sent)
            assert answer.is_success == (status == "200")
            jsonschema.validate(answer.json(), schema)


# --- choices ------------------------------------------------------------------------------------------------


def test_choices_of_other_programs_are_recorded_as_those_of_a_file(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    with served(new_device(tmp_path / "device", tiny_model("bert"), [])) as api:
        row = {"prompt": "on tax: ", "chosen": SECRET, "rejected": "the table"}
        other = {"prompt": "on vote: ", "completion": "the motion", "label": True}
        first = api.post("/v1/feedback", row)
        assert (first.status_code, first.json()) == (200, {"new": 1, "repeated": 0, "notes": []})
        assert api.post("/v1/feedback", [row]).json()["repeated"] == 1
        lines = "\n".join(
            json.dumps({**row, "prompt": f"on {n}: "}) for n in range(3)
        )  # of JSON, as a program streams them
        with api.client() as client:
            sent = client.post(
                "/v1/feedback", content=lines, headers={"content-type": "application/x-ndjson"}
            )
        assert sent.json()["new"] == 3
        rated = [other, {**other, "completion": "the table", "label": False}]
        assert api.post("/v1/feedback", rated).json()["new"] == 1
        assert api.device.store.sources() == {"a program, by the API": 5}
        assert api.device.store.recorded()[0].preference.chosen == SECRET


def test_choices_are_recorded_all_or_none_and_only_the_owners(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    good = {"prompt": "on tax: ", "chosen": "the motion", "rejected": "the table"}
    with served(new_device(tmp_path / "device", tiny_model("bert"), [])) as api:
        mixed = api.post("/v1/feedback", [good, {"chosen": SECRET}])
        assert mixed.status_code == 400
        assert told(mixed).startswith("1 of 2 rows can't be used: row 2: 'rejected' is missing")
        assert SECRET not in mixed.text
        people = [{**good, "person": "ada"}, {**good, "prompt": "on vote: ", "person": "bob"}]
        assert "say which of them is you" in told(api.post("/v1/feedback", people))
        assert "no choice names" in told(api.post("/v1/feedback?person=eve", people))
        assert len(api.device.store) == 0
        assert api.post("/v1/feedback?person=ada", people).json()["new"] == 1
        skipped = api.post("/v1/feedback?skip_bad_rows=true", [{**good, "prompt": "x"}, {"chosen": "y"}])
        assert skipped.json()["new"] == 1
        assert skipped.json()["notes"] == ["1 of 2 rows can't be used: row 2: 'rejected' is missing"]
        for nothing in ([], {}, [3], "text", 5, [None], [[]], {"data": []}):
            assert api.post("/v1/feedback", nothing).status_code == 400, nothing
        assert api.post("/v1/feedback?skip_bad_rows=1", [good]).status_code == 400


def test_a_body_makes_no_more_choices_than_are_allowed(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    def rated(count: int, prompt: str = "") -> list[dict[str, Any]]:
        return [{"prompt": prompt, "completion": f"text {n}", "label": n < 2} for n in range(count)]

    pairs = [{"prompt": "", "chosen": f"a {n}", "rejected": f"b {n}"} for n in range(12)]
    limits = ApiLimits(choices=10, choice_characters=1000)
    with served(new_device(tmp_path / "device", tiny_model("bert"), []), limits=limits) as api:
        for body in (rated(8), pairs, rated(6, "x" * 300)):
            refused = api.post("/v1/feedback", body)
            assert refused.status_code == 413
            assert told(refused).startswith("the body makes more than 10 choices, or 1000 characters")
        assert len(api.device.store) == 0
        assert api.post("/v1/feedback", rated(7)).json()["new"] == 10
        assert api.post("/v1/feedback", pairs[:10]).json()["new"] == 10


@pytest.mark.parametrize("query", ["", "?skip_bad_rows=true"])
@pytest.mark.parametrize(
    "row", [b"1", b"{}", b'{"chosen": 3}', b'{"prompt": "", "chosen": "a", "rejected": "b"}']
)
def test_a_body_has_no_more_rows_than_are_allowed_good_or_bad(
    tiny_model: Callable[[str], Path], tmp_path: Path, row: bytes, query: str
) -> None:
    """A bad row is noted with its place and reason: two bytes each, a body would hold two million of them."""
    device = new_device(tmp_path / "device", tiny_model("bert"), [])
    with served(device, limits=ApiLimits(rows=10)) as api, api.client() as client:
        json_kind = {"content-type": "application/json"}
        for body in (b"[" + b",".join([row] * 11) + b"]", b"\n".join([row] * 11)):
            refused = client.post(f"/v1/feedback{query}", content=body, headers=json_kind)
            assert refused.status_code == 400
            assert told(refused) == "there are more than 10 rows; give fewer at a time"
        assert len(device.store) == 0


def test_a_thousand_ratings_of_one_prompt_are_recorded_and_what_is_left_out_is_said(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = [{"prompt": "", "completion": f"text {n}", "label": n < 30} for n in range(1000)]
    with served(new_device(tmp_path / "device", tiny_model("bert"), [])) as api:
        found = api.post("/v1/feedback", rows).json()
    assert found["new"] == 30 * 16
    assert any(note.startswith(f"{30 * 970 - 480} comparisons left out") for note in found["notes"])


def test_a_chat_that_holds_each_message_in_the_one_before_is_read_as_by_import(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    def chat(length: int) -> dict[str, Any]:
        below: list[dict[str, Any]] = [
            {"messageId": "good", "text": "the motion", "feedback": {"rating": "thumbsUp"}},
            {"messageId": "other", "text": "the table"},
        ]
        for one in below:
            one["parentMessageId"] = f"{length - 1}"
        for n in reversed(range(length)):
            said = {"messageId": f"{n}", "text": f"{n}", "isCreatedByUser": n % 2 == (length - 1) % 2}
            below = [{**said, "parentMessageId": f"{n - 1}" if n else None, "children": below}]
        return {"conversationId": "c", "messages": below}

    with served(new_device(tmp_path / "device", tiny_model("bert"), [])) as api:
        assert api.post("/v1/feedback", chat(80)).json()["new"] == 1
        assert api.device.store.recorded()[0].preference.prompt.count("\n") == 80
        deeper = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
        with api.client(**{"content-type": "application/json"}) as client:
            refused = client.post("/v1/feedback", content=deeper)
        assert refused.status_code == 400
        assert "row 1: not JSON" in told(refused)


# --- many at a time -----------------------------------------------------------------------------------------


def test_32_clients_at_once_get_each_their_own_scores_and_no_error(api: ServedApi) -> None:
    before = api.model.scores([])
    assert before == []
    expected = {}
    for client in range(32):
        prompt = f"on {client}: "
        expected[prompt] = {row.response: row.personal for row in api.device.rank(prompt, TEXTS)}

    def ask(client: int) -> int:
        prompt = f"on {client}: "
        with api.client() as program:
            for _ in range(4):
                body = {"query": prompt, "texts": TEXTS, "raw_scores": True}
                answer = program.post("/rerank", json=body)
                assert answer.status_code == 200
                for row in answer.json():
                    assert row["score"] == pytest.approx(expected[prompt][TEXTS[row["index"]]], abs=1e-6)
        return 4

    with ThreadPoolExecutor(32) as clients:
        assert sum(clients.map(ask, range(32))) == 128


class _Gated(WarmModel):
    """A model that scores only when it is told to, and counts."""

    def __init__(self, model: WarmModel) -> None:
        self.__dict__ = model.__dict__
        self.asked: list[int] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def scores(self, texts: Any) -> Any:
        self.asked.append(len(texts))
        self.begun.set()
        if not self.go.wait(60):
            raise TimeoutError
        return super().scores(texts)


def test_who_waits_at_the_same_time_is_scored_together_and_no_more_than_so_many_wait(
    api: ServedApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated: list[_Gated] = []

    def gate(device: Any) -> WarmModel:
        gated.append(_Gated(WarmModel(device)))
        return gated[0]

    monkeypatch.setattr("support.device_api_scene.WarmModel", gate)
    limits = ApiLimits(waiting=6, waiting_texts=100)
    with served(api.device, limits=limits) as slow, ThreadPoolExecutor(8) as clients:
        (model,) = gated
        body = {"query": QUERY, "texts": ["tax", "vote"]}
        first = clients.submit(slow.post, "/rerank", body)
        assert model.begun.wait(60)
        rest = [clients.submit(slow.post, "/rerank", body) for _ in range(7)]
        done = as_completed(rest, timeout=60)
        full = [next(done).result() for _ in range(2)]  # answered while the model is at work
        model.go.set()
        answers = [first.result(60), *(one.result() for one in done)]
    assert [answer.status_code for answer in full] == [503, 503]
    assert all(answer.headers["retry-after"] == "1" for answer in full)
    assert {answer.status_code for answer in answers} == {200}
    scores = [[row["score"] for row in answer.json()] for answer in answers]
    assert all(own == pytest.approx(scores[0], abs=1e-6) for own in scores)
    assert model.asked == [2, 10]


# --- hostile ones -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ASKS)
@pytest.mark.parametrize(
    "token",
    ["", "Bearer", "Bearer penchant", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer \xff\xfe"],
)
def test_nobody_is_answered_without_the_token(api: ServedApi, path: str, token: str) -> None:
    headers = {b"authorization": token.encode("latin-1")} if token else {}
    answer = httpx.post(api.url + path, json={"query": SECRET}, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert told(answer) == "the token is missing or wrong; `penchant device api-token` shows it"


def test_two_tokens_are_none_and_the_other_header_is_as_good(api: ServedApi) -> None:
    body = {"query": QUERY, "texts": TEXTS}
    one = ("authorization", f"Bearer {TOKEN}")
    for headers, status in (
        ([one, one], 401),
        ([one, ("authorization", "Bearer x")], 401),
        ([("x-penchant-token", "x"), one], 401),
        ([("x-penchant-token", TOKEN)], 200),
        ([("x-penchant-token", TOKEN), ("authorization", "Bearer of another server")], 200),
    ):
        assert httpx.post(f"{api.url}/rerank", json=body, headers=headers).status_code == status


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1:{port}.evil", ""]
)
def test_a_foreign_name_for_this_address_is_refused(api: ServedApi, host: str) -> None:
    """DNS rebinding: a page of evil.example asks its own name, which now means this machine."""
    port = api.url.rpartition(":")[2]
    for path in ("/health", "/docs", "/v1/rerank"):
        answer = api.post(path, {"query": SECRET}, host=host.format(port=port))
        assert answer.status_code == 421
        assert SECRET not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_pages_of_others_are_refused_and_can_read_nothing(api: ServedApi, headers: dict[str, str]) -> None:
    answer = api.post("/v1/rerank", {"query": QUERY, "documents": TEXTS}, **headers)
    assert (answer.status_code, told(answer)) == (403, "pages of other sites are not answered")
    asked_before = httpx.options(
        f"{api.url}/v1/rerank", headers={**headers, "access-control-request-method": "POST"}
    )
    assert asked_before.status_code == 403
    for one in (answer, asked_before, httpx.get(f"{api.url}/health")):
        assert not [name for name in one.headers if name.startswith("access-control")]
        assert one.headers["cross-origin-resource-policy"] == "same-origin"
        assert one.headers["cache-control"] == "no-store"


def test_a_page_of_our_own_may_ask(api: ServedApi) -> None:
    body = {"query": QUERY, "documents": TEXTS}
    own = {"origin": api.url, "sec-fetch-site": "same-origin"}
    assert api.post("/v1/rerank", body, **own).status_code == 200


def nested(depth: int) -> bytes:
    return b'{"query": ' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[]", 422),
        (b"null", 422),
        (b"3", 422),
        (b'{"query": "a", "texts": [NaN]}', 400),
        (b'{"query": "a", "texts": ["b"], "n": ' + b"9" * 5000 + b"}", 400),
        (nested(63), 422),
        (nested(70), 422),
        (nested(100_000), 400),
        (b'{"a":' * 70 + b"1" + b"}" * 70, 422),
        (b"{}", 422),
        (b'{"query": "a"}', 422),
        (b'{"texts": ["a"]}', 422),
        (b'{"query": null, "texts": ["a"]}', 422),
        (b'{"query": ["a"], "texts": ["a"]}', 422),
        (b'{"query": "a", "texts": []}', 400),
        (b'{"query": "a", "texts": "b"}', 422),
        (b'{"query": "a", "texts": [1]}', 422),
        (b'{"query": "a", "texts": [{"text": "b"}]}', 422),
        (b'{"query": "a", "texts": ["b"], "raw_scores": 1}', 422),
        (b'{"query": "a", "texts": ["b"], "truncate": "false"}', 422),
        (b'{"query": "a", "texts": ["\\ud800"]}', 422),
        (b'{"query": "\\udfff", "texts": ["a"]}', 422),
        (b'{"query": "a", "texts": ["a"], "\\ud800": 1}', 422),
        (b'{"query": "a", "documents": ["b"], "top_n": -1}', 422),
        (b'{"query": "a", "documents": ["b"], "top_n": 1.5}', 422),
        (b'{"query": "a", "documents": ["b"], "top_n": true}', 422),
        (b'{"query": "a", "documents": ["b"], "top_n": 1e400}', 400),
        (b'{"query": "a", "documents": ["b"], "max_tokens_per_doc": 0}', 422),
        (b'{"query": "a", "documents": [{"text": 3}]}', 422),
        (b'{"query": "a", "documents": ["b"], "rank_fields": [3]}', 422),
        (b'{"messages": {}, "documents": ["b"]}', 422),
        (b'{"query": "a", "texts": ["' + b"x" * 200_001 + b'"]}', 413),
        (b'{"query": "a", "texts": [' + b",".join([b'"x"'] * 1001) + b"]}", 413),
        (b'{"query": "a", "texts": ["' + b" " * (4 << 20) + b'"]}', 413),
    ],
)
def test_odd_bodies_are_refused_in_one_line(api: ServedApi, body: bytes, status: int) -> None:
    with api.client() as client:
        answer = client.post("/rerank", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert answer.json()["error_type"] in ("Validation", "Empty")
    assert len(told(answer)) < 150


def test_each_api_hears_no_in_its_own_form(api: ServedApi) -> None:
    assert set(api.post("/rerank", {}).json()) == {"error", "error_type"}
    for path in ("/v1/rerank", "/v2/rerank"):
        assert api.post(path, {}).json() == {"message": "'documents' is missing"}
    for path in ("/v1/score", "/v1/feedback"):
        found = api.post(path, {}).json()["error"]
        assert (found["type"], found["code"]) == ("invalid_request_error", 400)
    assert told(api.post("/nowhere", {})) == "there is nothing at this address"
    with api.client() as client:
        assert client.get("/v1/rerank").status_code == 405
        kind = client.post("/rerank", content=b"{}", headers={"content-type": "text/plain"})
        assert (kind.status_code, told(kind)) == (415, "the header Content-Type must be application/json")


def test_a_body_that_does_not_come_is_not_waited_for(api: ServedApi) -> None:
    with served(api.device, limits=ApiLimits(body_seconds=0.2)) as quick:
        host, _, port = quick.url.removeprefix("http://").partition(":")
        head = f"POST /rerank HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {TOKEN}\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        with socket.create_connection((host, int(port)), timeout=30) as line:
            line.sendall(head.encode())
            assert line.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_a_fault_of_ours_names_its_kind_and_nothing_that_was_sent(
    api: ServedApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(texts: Any) -> Any:
        raise RuntimeError(f"so was {texts}")

    monkeypatch.setattr(api.model, "scores", fail)
    with caplog.at_level(logging.DEBUG):
        answer = api.post("/v1/rerank", {"query": SECRET, "documents": [SECRET]})
    assert (answer.status_code, told(answer)) == (500, "the server failed; its log names the kind of error")
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("penchant")]
    assert ours == ["POST /v1/rerank: RuntimeError"]
    assert SECRET not in caplog.text
    assert TOKEN not in caplog.text
    monkeypatch.undo()
    assert api.post("/v1/rerank", {"query": QUERY, "documents": TEXTS}).status_code == 200


def test_nothing_that_is_sent_or_answered_is_logged(
    api: ServedApi, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        for path in ASKS:
            body = {"query": SECRET, "documents": [SECRET], "texts": [SECRET], "text_1": SECRET}
            api.post(path, {**body, "text_2": SECRET, "chosen": SECRET})
            api.post(path, {"query": [SECRET], "chosen": 3})
            httpx.post(api.url + path, json=SECRET, headers={"authorization": f"Bearer {SECRET}"})
    served_logs = [r for r in caplog.records if not r.name.startswith(("httpx", "httpcore"))]
    assert not [r for r in served_logs if SECRET in r.getMessage() or TOKEN in r.getMessage()]
    assert SECRET not in "".join(capfd.readouterr())


# --- the token ----------------------------------------------------------------------------------------------


def test_the_token_is_made_once_for_the_owner_alone(tmp_path: Path) -> None:
    token = api_token(tmp_path)
    path = tmp_path / TOKEN_FILE
    assert api_token(tmp_path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(token) == len(TOKEN)
    other = new_api_token(tmp_path)
    assert other != token
    assert api_token(tmp_path) == other
    assert [one.name for one in tmp_path.iterdir()] == [TOKEN_FILE]


def test_a_token_that_others_may_know_or_have_written_is_refused(tmp_path: Path) -> None:
    api_token(tmp_path)
    path = tmp_path / TOKEN_FILE
    for mode, why in ((0o640, "others can read"), (0o602, "others can read|write")):
        path.chmod(mode)
        with pytest.raises((DeviceError, ConfigError), match=why):
            api_token(tmp_path)
    path.chmod(0o600)
    for text in ("", "short", "penchant-" + "x" * 42, "penchant-" + "x" * 44):
        path.write_text(text)
        with pytest.raises(DeviceError, match="holds no token"):
            api_token(tmp_path)
    path.write_bytes(b"\xff")
    with pytest.raises(DeviceError, match="can't read"):
        api_token(tmp_path)


def test_a_token_that_is_withdrawn_lets_nobody_in_any_more(api: ServedApi, tmp_path: Path) -> None:
    """While the API runs, on a connection that was let in with it too; the other one counts at once."""
    old = api_token(tmp_path)
    with served(api.device, token=partial(token_now, tmp_path)) as live, httpx.Client(timeout=60) as program:

        def status(token: str) -> int:
            headers = {"authorization": f"Bearer {token}"}
            answer = program.post(
                f"{live.url}/rerank", json={"query": QUERY, "texts": TEXTS}, headers=headers
            )
            assert answer.status_code == 200 or told(answer)
            return answer.status_code

        assert status(old) == 200
        new = new_api_token(tmp_path)
        assert (status(old), status(new), status(old)) == (401, 200, 401)
        path = tmp_path / TOKEN_FILE
        path.chmod(0o644)
        assert (status(old), status(new)) == (503, 503), "others can read it"
        assert program.get(f"{live.url}/health").status_code == 200
        path.chmod(0o600)
        assert status(new) == 200
        path.unlink()
        assert (status(old), status(new)) == (503, 503), "there is none"
        assert status(api_token(tmp_path)) == 200


# --- the commands, and the page ----------------------------------------------------------------------------


def test_the_commands_serve_with_a_token_and_a_passphrase(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """As an owner starts it: another process, a sealed home, the token by the other command."""
    home = tmp_path / "device"
    new_device(home, tiny_model("bert"), motions(), "four words drawn at random")
    (tmp_path / "secret").write_text("four words drawn at random\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    penchant = [sys.executable, "-m", "penchant.deploy.cli.main", "device"]
    own = {**os.environ, "PENCHANT_HOME": str(home), "PENCHANT_PASSPHRASE_FILE": str(tmp_path / "secret")}
    with subprocess.Popen(
        [*penchant, "serve-api", "--port", str(port)],
        env=own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"the API is at http://127.0.0.1:{port}, described at /docs\n"

            def token(*more: str) -> str:
                shown = subprocess.run(
                    [*penchant, "api-token", *more], env=own, capture_output=True, text=True
                )
                return shown.stdout.strip()

            first = token()
            body = {"query": QUERY, "texts": TEXTS}
            transport = httpx.HTTPTransport(retries=10)
            with httpx.Client(transport=transport, timeout=60) as client:

                def status(token: str) -> int:
                    headers = {"authorization": f"Bearer {token}"}
                    return client.post(
                        f"http://localhost:{port}/rerank", json=body, headers=headers
                    ).status_code

                assert status(first) == 200
                second = token("--new")
                assert (status(first), status(second)) == (401, 200)
        finally:
            process.terminate()
        rest = process.stdout.read()
    assert rest == "programs need the token: `penchant device api-token`\n"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--host", "0.0.0.0"], "not loopback: the API listens there only with --tls-cert and --tls-key"),
        (["--tls-cert", "x"], "--tls-cert and --tls-key belong together"),
        (["--name", "a:80"], "without a port"),
        (["--pass-authorization"], "need --upstream"),
        (["--upstream", "localhost:1"], "--upstream must be a URL"),
        (["--upstream", "http://a/v1", "--upstream-key", "/nowhere"], "can't read the upstream's key"),
    ],
)
def test_options_are_checked_before_anything_is_opened(options: list[str], why: str, tmp_path: Path) -> None:
    home = tmp_path / "device"
    result = CliRunner().invoke(device_app, ["serve-api", "--home", str(home), *options])
    assert result.exit_code == 2
    assert why in " ".join(result.output.split())
    assert not home.exists()


def test_the_token_is_shown_only_of_a_device(tmp_path: Path) -> None:
    shown = CliRunner().invoke(device_app, ["api-token", "--home", str(tmp_path)])
    again = CliRunner().invoke(device_app, ["api-token", "--home", str(tmp_path)])
    other = CliRunner().invoke(device_app, ["api-token", "--new", "--home", str(tmp_path)])
    assert shown.output == again.output != other.output
    assert CliRunner().invoke(device_app, ["api-token", "--home", str(tmp_path / "no")]).exit_code == 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_lines_of_the_page_work(
    api: ServedApi, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    page = (Path(__file__).parents[2] / "docs/device.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```sh\n(umask 077.*?)^```", page, re.M | re.S)
    lines = lines.replace('"$(penchant device api-token)"', TOKEN)
    with served(new_device(tmp_path / "device", tiny_model("bert"), [])) as own:
        script = lines.replace("http://127.0.0.1:8765", own.url).replace("\ncurl", "\necho; curl")
        done = subprocess.run(
            ["bash", "-e", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        answers = [json.loads(line) for line in done.stdout.splitlines() if line]
        assert len(own.device.store) == 1
    health, tei, cohere, score, feedback = answers
    assert health == {"status": "ok"}
    assert sorted(row["index"] for row in tei) == [0, 1]
    assert len(cohere["results"]) == len(score["data"]) == 1
    assert feedback == {"new": 1, "repeated": 0, "notes": []}
    assert stat.S_IMODE((tmp_path / "api.header").stat().st_mode) == 0o600
