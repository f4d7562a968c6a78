"""Best of n between a program and an upstream: real HTTP on both sides, an upstream that does as it likes."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.device_api_scene import TOKEN, ServedApi, chats, new_device, served
from support.upstream import WRITTEN, Upstream, said, upstream_server

from penchant.client.device.device import Device
from penchant.common.errors import UsageError
from penchant.deploy.device_api import best_of
from penchant.deploy.device_api import upstream as upstream_module
from penchant.deploy.device_api.best_of import PickedAnswer
from penchant.deploy.device_api.bodies import ApiLimits
from penchant.deploy.device_api.upstream import UpstreamSettings

SAID = [{"role": "user", "content": "on bill 99:"}]
SECRET = "sk-of-the-upstream"
WITHDRAWN = "penchant-" + "w" * 43


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with upstream_server() as found:
        yield found


@pytest.fixture(scope="module")
def device(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Device:
    return new_device(tmp_path_factory.mktemp("best") / "device", tiny_model("bert"), chats())


@pytest.fixture
def api(device: Device, upstream: Upstream) -> Iterator[ServedApi]:
    with served(device, upstream=UpstreamSettings(upstream.url, best_of=4, seconds=20)) as found:
        yield found


def ask(api: ServedApi, **body: Any) -> httpx.Response:
    return api.post("/v1/chat/completions", {"model": "m", "messages": SAID, **body})


def order(device: Device, texts: list[str] = WRITTEN) -> list[str]:
    """The answers as the owner would rank them, in the form of conversations."""
    rows = device.rank("user: on bill 99:\n", [f"assistant: {text}" for text in texts])
    return [row.response.removeprefix("assistant: ") for row in rows]


@pytest.mark.parametrize("manner", ["takes n", "ignores n", "refuses n"])
def test_the_owners_best_of_n_is_the_answer(
    api: ServedApi, device: Device, upstream: Upstream, manner: str
) -> None:
    upstream.manner = manner
    answer = ask(api, temperature=0.7, seed=11)
    found = answer.json()
    (choice,) = found["choices"]
    assert choice == {"index": 0, "message": said(order(device)[0]), "finish_reason": "stop"}
    assert (found["id"], found["model"], found["of_its_own"]) == ("c1", "m", [1])
    scores = found["penchant"]["scores"]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == found["penchant"]["asked"] == 4
    shown = [float(one) for one in answer.headers["x-penchant-scores"].split(",")]
    assert shown == pytest.approx(scores, abs=1e-6)
    assert answer.headers["x-penchant-model"] == "penchant-personal"
    calls = {"takes n": 1, "ignores n": 4, "refuses n": 5}[manner]
    assert len(upstream.asked) == calls
    assert all(body["temperature"] == 0.7 and body["stream"] is False for body in upstream.asked)
    seeds = sorted(body["seed"] for body in upstream.asked)
    assert seeds == {1: [11], 4: [11, 12, 13, 14], 5: [11, 11, 12, 13, 14]}[calls]
    written = found["usage"]["completion_tokens"]
    assert written == 8


def test_a_program_that_asks_for_several_gets_the_best_of_them(
    api: ServedApi, device: Device, upstream: Upstream
) -> None:
    found = ask(api, n=3).json()
    assert [one["message"]["content"] for one in found["choices"]] == order(device)[:3]
    assert [one["index"] for one in found["choices"]] == [0, 1, 2]
    assert upstream.asked[0]["n"] == 4
    assert len(ask(api, n=6).json()["penchant"]["scores"]) == 6
    refused = ask(api, n=65)
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, "'n' must be 64 or less")


def test_the_chosen_one_is_streamed_after_it_is_chosen(
    api: ServedApi, device: Device, upstream: Upstream
) -> None:
    answer = ask(api, stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    assert text == order(device)[0]
    assert chunks[1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[2]["usage"]["completion_tokens"] == 8
    assert upstream.asked == [{"model": "m", "messages": SAID, "n": 4, "stream": False}]
    assert "usage" not in ask(api, stream=True).text


def test_calls_of_tools_are_streamed_with_their_places_and_ranked_as_texts() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    completion = {"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    events = PickedAnswer(completion, (), True, False).events()
    first = json.loads(events[0].removeprefix(b"data: "))
    assert first["choices"][0]["delta"]["tool_calls"] == [{"index": 0, **call}]
    assert json.loads(events[1].removeprefix(b"data: "))["choices"][0]["finish_reason"] == "tool_calls"


def test_what_is_no_text_comes_last(api: ServedApi, device: Device, upstream: Upstream) -> None:
    upstream.written = [{"role": "assistant", "content": None}, "the table", {"content": 3}, "the motion"]
    found = ask(api, n=4).json()
    kept = [one["message"].get("content") for one in found["choices"]]
    assert kept == [*order(device, ["the table", "the motion"]), None, 3]
    assert len(found["penchant"]["scores"]) == 2
    upstream.written = [{"content": None}]
    nothing = ask(api)
    assert (nothing.status_code, nothing.headers["x-penchant-scores"]) == (200, "")


@pytest.mark.parametrize(
    ("manner", "status", "body"),
    [
        ("fails", 500, b'{"error": {"message": "out of memory"}}'),
        ("refuses all", 400, b'{"error": "no such model"}'),
        ("fails later", 429, b'{"error": "slow down"}'),
    ],
)
def test_the_upstreams_errors_are_passed_on_as_they_are(
    api: ServedApi, upstream: Upstream, manner: str, status: int, body: bytes
) -> None:
    upstream.manner = manner
    for stream in (False, True):
        upstream.asked.clear()
        answer = ask(api, stream=stream)
        assert (answer.status_code, answer.content) == (status, body)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers.get("retry-after") == ("7" if manner == "fails later" else None)
        assert "x-of-its-own" not in answer.headers


@pytest.mark.parametrize(
    "manner",
    [
        "junk",
        "no choices",
        "odd choices",
        "a list",
        "deep",
        "rather deep",
        "half a character",
        "no number",
        "a number too large",
        "moved",
    ],
)
def test_what_is_no_answer_is_said_to_be_none(api: ServedApi, upstream: Upstream, manner: str) -> None:
    upstream.manner = manner
    answer = ask(api)
    assert answer.status_code == 502
    assert answer.json()["error"]["message"].startswith("the upstream")


def test_an_upstream_that_is_too_slow_too_long_or_away_is_not_waited_for(
    device: Device, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.manner = "slow"
    with served(device, upstream=UpstreamSettings(upstream.url, seconds=0.3)) as api:
        assert ask(api).status_code == 504
        upstream.go.set()
        upstream.manner = "takes n"
        monkeypatch.setattr(upstream_module, "ANSWER_MOST", 100)
        assert "longer than 100 bytes" in ask(api).json()["error"]["message"]
    with served(device, upstream=UpstreamSettings("http://127.0.0.1:9/v1")) as api:
        answer = ask(api)
        assert (answer.status_code, answer.json()["error"]["message"]) == (
            502,
            "the upstream can't be asked (ConnectError)",
        )


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": "on bill"},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": None},
        {"n": 0},
        {"n": "4"},
        {"stream": "yes"},
    ],
)
def test_what_can_not_be_ranked_never_reaches_the_upstream(
    api: ServedApi, upstream: Upstream, body: dict[str, Any]
) -> None:
    answer = ask(api, **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert upstream.asked == []


def test_an_address_that_is_no_url_is_the_upstreams_fault(device: Device) -> None:
    url = "http://127.0.0.1:1/"
    long = UpstreamSettings(url + "a" * (65_536 - len(url)))  # the longest that httpx takes, and more follows
    with served(device, upstream=long) as api:
        answer = ask(api)
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        502,
        "the upstream can't be asked (InvalidURL)",
    )


def test_counts_that_are_too_long_to_add_up_are_left_out() -> None:
    assert best_of._summed([{"a": int("9" * 4300), "b": 2}, {"a": int("9" * 4300), "b": 3}]) == {"b": 5}


def test_only_so_many_conversations_are_with_the_upstream(device: Device, upstream: Upstream) -> None:
    upstream.manner = "waits"
    settings = UpstreamSettings(upstream.url, seconds=30)
    with served(device, upstream=settings, limits=ApiLimits(chats=1)) as api:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(ask(api).status_code))
        thread.start()
        while not upstream.asked:
            time.sleep(0.01)
        full = ask(api)
        assert (full.status_code, full.headers["retry-after"]) == (503, "5")
        upstream.go.set()
        thread.join(60)
        assert found == [200]
        assert ask(api).status_code == 200


# --- keys ---------------------------------------------------------------------------------------------------


def test_our_token_never_reaches_the_upstream_and_its_key_comes_from_the_owner(
    device: Device, upstream: Upstream
) -> None:
    cases = (
        (UpstreamSettings(upstream.url), {}, None),
        (UpstreamSettings(upstream.url, key=SECRET), {}, f"Bearer {SECRET}"),
        (UpstreamSettings(upstream.url, key=SECRET), {"x-penchant-token": TOKEN}, f"Bearer {SECRET}"),
        (UpstreamSettings(upstream.url), {"x-penchant-token": TOKEN, "authorization": "Bearer a"}, None),
        (UpstreamSettings(upstream.url, passes_key=True), {}, None),
        (UpstreamSettings(upstream.url, passes_key=True), {"x-penchant-token": TOKEN}, None),
        (
            UpstreamSettings(upstream.url, passes_key=True),
            {"x-penchant-token": TOKEN, "authorization": f"Bearer {WITHDRAWN}"},
            None,
        ),
        (
            UpstreamSettings(upstream.url, passes_key=True),
            {"x-penchant-token": TOKEN, "authorization": "Bearer of the program"},
            "Bearer of the program",
        ),
    )
    for settings, headers, shown in cases:
        upstream.headers.clear()
        with served(device, upstream=settings) as api:
            answer = api.post("/v1/chat/completions", {"messages": SAID, "model": "m"}, **headers)
            assert answer.status_code == 200
            with api.client(**headers) as client:
                assert client.get("/v1/models").json()["data"] == [{"id": "m"}]
        assert len(upstream.headers) == 2
        for seen in upstream.headers:
            assert seen.get("authorization") == shown
            assert TOKEN not in str(seen)
            assert WITHDRAWN not in str(seen)
            assert "x-penchant-token" not in seen


def test_without_an_upstream_nobody_writes(device: Device) -> None:
    with served(device) as api:
        answer = ask(api)
        assert answer.status_code == 404
        assert "--upstream" in answer.json()["error"]["message"]


def test_nothing_of_a_conversation_is_logged(
    api: ServedApi, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        for upstream.manner in ("takes n", "fails", "junk"):
            api.post("/v1/chat/completions", {"messages": [{"role": "user", "content": SECRET}]})
    assert SECRET not in caplog.text
    assert "the motion tax" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"url": "127.0.0.1:80"}, "--upstream must be"),
        ({"url": "ftp://a/v1"}, "--upstream must be"),
        ({"url": "http:///v1"}, "--upstream must be"),
        ({"url": "http://me:key@a/v1"}, "without a key in it"),
        ({"url": "http://a/v1?key=1"}, "--upstream must be"),
        ({"url": "http://[::1/v1"}, "--upstream must be"),
        ({"url": "http://a:99999/v1"}, "--upstream must be"),
        ({"url": "http://a:abc/v1"}, "--upstream must be"),
        ({"url": "http://a:0/v1"}, "--upstream must be"),
        ({"url": "http://a\x01/v1"}, "--upstream must be"),
        ({"url": "http://a/v1", "best_of": 0}, "--best-of is 0"),
        ({"url": "http://a/v1", "best_of": 65}, "--best-of is 65"),
        ({"url": "http://a/v1", "key": "k", "passes_key": True}, "exclude each other"),
        ({"url": "http://a/v1", "key": "a\nb"}, "printable"),
    ],
)
def test_settings_of_an_upstream_are_checked_first(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        UpstreamSettings(**settings)
    assert SECRET not in repr(UpstreamSettings("http://a/v1", key=SECRET))
