"""The owner's page asks: who writes, in whose order, what becomes a choice, and what is never shown."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from support.device_api_scene import chats, motions, new_device
from support.device_page_scene import OwnerAtPage, join_fleet, opened
from support.tiny_models import write_tiny_chat_model, write_tiny_model
from support.upstream import WRITTEN, Upstream, upstream_server
from typer.testing import CliRunner

from penchant.client.device.device import Device
from penchant.client.device.home import OfflineConfig
from penchant.client.device.preference_store import Recorded
from penchant.client.learning.active import ActiveLearner
from penchant.common.data.preferences import Preference
from penchant.common.errors import UpstreamError
from penchant.common.settings import section_table
from penchant.deploy.cli.device import app as device_app
from penchant.deploy.device_api.upstream import UpstreamSettings
from penchant.deploy.device_page.views.choices import named
from penchant.deploy.device_page.writers import GeneratorWriter, PolicyWriter, UpstreamWriter, different

PROMPT = "on bill 99: "
KEY = "sk-of-the-owner"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with upstream_server() as found:
        yield found


@pytest.fixture(scope="module")
def device(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Device:
    return new_device(tmp_path_factory.mktemp("ask") / "device", tiny_model("bert"), motions(24))


@pytest.fixture
def owner(device: Device, upstream: Upstream) -> Iterator[OwnerAtPage]:
    with opened(device, motions(30), UpstreamWriter(UpstreamSettings(upstream.url, key=KEY))) as found:
        yield found
    for row in device.store.recorded():
        if row.source == "ask":
            device.store.remove_these([row])


class Listed:
    """Writes what a test tells it to."""

    name, address = "a list", ""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def write(self, prompt: str, count: int) -> list[str]:
        return different(self.texts, count)


def shown(page: str) -> list[str]:
    """The responses of the page, in order."""
    return [
        re.sub("<[^>]+>", "", text).strip()
        for text in re.findall(r'class="response"[^>]*>(.*?)</div>', page, re.S)
    ]


def mark(page: str) -> str:
    (found,) = set(re.findall(r'name="mark" value="([0-9a-f]+)"', page))
    return str(found)


def asked_choices(device: Device) -> list[Preference]:
    return [row.preference for row in device.store.recorded() if row.source == "ask"]


@pytest.mark.parametrize("manner", ["takes n", "ignores n", "refuses n"])
def test_responses_of_the_upstream_are_ranked_as_by_the_command(
    owner: OwnerAtPage, device: Device, upstream: Upstream, manner: str
) -> None:
    upstream.manner = manner
    page = owner.asked(PROMPT)
    ranked = device.rank(PROMPT, WRITTEN)
    assert shown(page) == [row.response for row in ranked]
    for row in ranked:
        assert f"{row.personal:+.2f}<small> ± {row.error:.2f}" in page
    assert [f"{row.over_next:.0%} sure" in page for row in ranked[:-1] if row.over_next] == [True] * 3
    first = upstream.asked[0]
    assert (first["model"], first["messages"]) == ("m", [{"role": "user", "content": PROMPT}])
    assert all(seen.get("authorization") == f"Bearer {KEY}" for seen in upstream.headers)


def test_each_place_says_which_of_the_owners_choices_speak_for_it(owner: OwnerAtPage, device: Device) -> None:
    page = owner.asked(PROMPT)
    responses = [row.response for row in device.rank(PROMPT, WRITTEN)]
    reasons = re.findall(r"<details>(.*?)</details>", page, re.S)
    assert len(reasons) == len(responses) - 1
    for said, why in zip(reasons, device.explain(PROMPT, responses), strict=True):
        for one in (*why.speak_for, *why.against):
            assert f"{one.change:+.2f}<small> ± {one.error:.2f}</small>" in said
            assert f"{one.choice.preference.chosen}</q>" in said
    assert f"{len(device.store.train())} choices were heard" in page


def test_without_training_there_is_a_ranking_without_reasons(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    device = new_device(tmp_path / "device", tiny_model("bert"), [])
    with opened(device, motions(3), Listed(WRITTEN)) as owner:
        page = owner.asked(PROMPT)
    assert len(shown(page)) == 4
    assert "<details>" not in page
    assert "How sure the model is of it isn’t known" in page


def test_picking_another_one_than_the_first_is_a_choice_and_can_be_taken_back(
    owner: OwnerAtPage, device: Device
) -> None:
    page = owner.asked(PROMPT)
    first, second = shown(page)[:2]
    assert page.count("I would rather have had this") == 3
    assert page.count("This one is right") == 1
    form = {"mark": mark(page), "place": "1"}
    picked = owner.follow("/ask/pick", form)
    assert asked_choices(device) == [Preference(PROMPT, second, first)]
    assert "Recorded: you would rather have response 2 than the first" in picked
    assert "I would rather have had this" not in picked
    assert "This one is right" not in picked
    assert owner.post("/ask/pick", {**form, "place": "2"}).status_code == 409
    back = owner.follow("/ask/undo", form)
    assert "Taken back." in back
    assert asked_choices(device) == []
    assert owner.post("/ask/undo", form).status_code == 409
    assert shown(back) == shown(page)


def test_that_the_first_is_right_is_a_choice_as_well_and_can_be_taken_back(
    owner: OwnerAtPage, device: Device
) -> None:
    page = owner.asked(PROMPT)
    first, second = shown(page)[:2]
    form = {"mark": mark(page), "place": "0"}
    picked = owner.follow("/ask/pick", form)
    assert asked_choices(device) == [Preference(PROMPT, first, second)]
    assert "Recorded: you would rather have the first response than the second" in picked
    assert owner.post("/ask/pick", {**form, "place": "1"}).status_code == 409
    assert "Taken back." in owner.follow("/ask/undo", form)
    assert asked_choices(device) == []


def test_of_a_single_response_nothing_can_be_picked(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    device = new_device(tmp_path / "device", tiny_model("bert"), motions(24))
    with opened(device, motions(3), Listed(["The motion."])) as owner:
        page = owner.asked(PROMPT)
        assert len(shown(page)) == 1
        assert "This one is right" not in page


def test_taking_back_leaves_what_had_been_recorded_before(owner: OwnerAtPage, device: Device) -> None:
    page = owner.asked(PROMPT)
    before = Preference(PROMPT, shown(page)[1], shown(page)[0])
    device.record([before], "ask")
    assert "recorded already" in owner.follow("/ask/pick", {"mark": mark(page), "place": "1"})
    owner.follow("/ask/undo", {"mark": mark(page)})
    assert asked_choices(device) == [before]


def test_a_choice_that_is_deleted_or_turned_round_is_no_reason_any_more(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = new_device(tmp_path / "device", tiny_model("bert"), motions(24))
    device.train()
    learners: list[ActiveLearner] = []
    made = Device.learner

    def learner(self: Device, candidates: Sequence[Preference]) -> ActiveLearner:
        learners.append(made(self, candidates))
        return learners[-1]

    monkeypatch.setattr(Device, "learner", learner)

    def loudest() -> Recorded:
        return next(one.choice for why in device.explain(PROMPT, ranked) for one in why.speak_for)

    def says(page: str, row: Recorded) -> bool:
        return row.preference.prompt.strip() + "</small>" in page

    with opened(device, motions(30), Listed(WRITTEN)) as owner:
        page = owner.asked(PROMPT)
        ranked = shown(page)
        row = loudest()
        assert says(page, row)
        owner.follow("/choices/turn", {"choice": named(row)})
        page = owner.get("/ask").text
        assert not says(page, row)
        assert shown(page) == ranked

        page = owner.asked(PROMPT)
        row = loudest()
        assert says(page, row)
        owner.say("first")
        owner.post("/choices/delete", {"choice": named(row)})
        owner.finished()
        assert row not in device.store.recorded()
        page = owner.get("/ask").text
        assert not says(page, row)
        assert PROMPT.strip() not in page
        owner.ready()
        assert row.preference in learners[0]._known
        assert learners[-1]._known == list(device.store.train())


def test_what_was_asked_before_forgetting_everything_is_no_choice_after_it(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not while the server that the device leaves lets itself be waited for, and not after."""
    device = new_device(tmp_path / "device", tiny_model("bert"), motions(24))
    device.train()
    join_fleet(device, tmp_path)
    asked, answered = threading.Event(), threading.Event()
    monkeypatch.setattr(
        "penchant.client.device.joining.tell_server", lambda *_: asked.set() or answered.wait(60)
    )
    for patience in ("page_requests", "sitting", "views.fleet"):
        monkeypatch.setattr(f"penchant.deploy.device_page.{patience}.PATIENCE", 0.05)
    with opened(device, motions(30), Listed(WRITTEN)) as owner:
        try:
            form = {"mark": mark(owner.asked(PROMPT)), "place": "1"}
            owner.follow("/ask/pick", form)
            people = [
                {"person": name, "prompt": "p", "chosen": "a", "rejected": "b"} for name in ("ann", "bob")
            ]
            held = owner.upload("two.jsonl", "\n".join(map(json.dumps, people)).encode()).text
            owner.finished()
            owner.post("/fleet/forget", {"confirm": "forget everything"})
            assert asked.wait(60)
            assert len(device.store) == 0
            assert PROMPT.strip() not in owner.get("/ask").text
            assert "the motion tax" not in owner.get("/ask").text
            for path, data in (
                ("/ask/pick", form),
                ("/ask/undo", form),
                ("/choices/who", {"person": "ann", "mark": mark(held)}),
            ):
                assert owner.post(path, data).status_code == 503
        finally:
            answered.set()
        page = owner.finished()
        assert "25 choices and the personal model are deleted" in page
        assert "motion" not in page
        for path in ("/ask/pick", "/ask/undo"):
            assert owner.post(path, form).status_code == 409
        assert owner.post("/choices/who", {"person": "ann", "mark": mark(held)}).status_code == 409
        assert len(device.store) == 0
        assert "<b>0</b> now, 0 in all, 30 to ask" in owner.ready().get().text


@pytest.mark.parametrize(
    "form",
    [{}, {"place": ""}, {"place": "4"}, {"place": "-1"}, {"place": "first"}, {"mark": "x", "place": "0"}],
)
def test_a_form_of_another_prompt_or_place_records_nothing(
    owner: OwnerAtPage, device: Device, form: dict[str, str]
) -> None:
    page = owner.asked(PROMPT)
    assert owner.post("/ask/pick", {"mark": mark(page), **form}).status_code == 409
    old = mark(page)
    owner.asked("on bill 98: ")
    assert owner.post("/ask/pick", {"mark": old, "place": "1"}).status_code == 409
    assert asked_choices(device) == []


def test_who_learned_from_conversations_is_asked_in_their_form(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    device = new_device(tmp_path / "device", tiny_model("bert"), chats())
    with opened(device, motions(3), Listed(WRITTEN)) as owner:
        page = owner.asked("on bill 99:")
        ranked = device.rank("user: on bill 99:\n", [f"assistant: {text}" for text in WRITTEN])
        assert [f"assistant: {text}" for text in shown(page)] == [row.response for row in ranked]
        owner.follow("/ask/pick", {"mark": mark(page), "place": "1"})
    assert asked_choices(device) == [
        Preference("user: on bill 99:\n", ranked[1].response, ranked[0].response)
    ]


@pytest.mark.parametrize(
    ("manner", "why"),
    [
        ("fails", "the upstream answered with 500: out of memory"),
        ("refuses all", "the upstream answered with 400: no such model"),
        ("junk", "the upstream’s answer is not JSON"),
        ("no choices", "the upstream’s answer is no chat completion"),
        ("moved", "the upstream answered with 302; give the URL it leads to"),
    ],
)
def test_errors_of_the_upstream_are_one_line_and_the_prompt_stays(
    owner: OwnerAtPage, upstream: Upstream, manner: str, why: str
) -> None:
    upstream.manner = manner
    page = owner.asked("my own <prompt>")
    (said,) = re.findall(r'role="alert">(.*?)</div>', page, re.S)
    assert "\n" not in said
    assert why.replace("’", "&#39;") in said
    assert "required>my own &lt;prompt&gt;</textarea>" in page
    assert "failed" not in owner.get("/model").text.lower()
    upstream.manner = "takes n"
    assert "alert" not in owner.asked(PROMPT)


def test_an_upstream_that_is_away_or_writes_no_text_is_told_so(device: Device, upstream: Upstream) -> None:
    with opened(device, motions(3), UpstreamWriter(UpstreamSettings("http://127.0.0.1:9/v1"), "m")) as owner:
        assert "the upstream can&#39;t be asked (ConnectError)" in owner.asked(PROMPT)
    upstream.written = [{"role": "assistant", "content": None}, "  ", {"content": 3}, "\n"]
    with opened(device, motions(3), UpstreamWriter(UpstreamSettings(upstream.url))) as owner:
        assert "no response came that is a text" in owner.asked(PROMPT)
        upstream.written = ["the table", "the table", " the table ", "the motion"]
        page = owner.asked(PROMPT)
        assert len(shown(page)) == 2
        assert "2 different responses came of the 4" in page


def test_the_key_is_on_no_page_and_in_no_log_even_where_the_upstream_quotes_it(
    owner: OwnerAtPage, upstream: Upstream, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    quoting = f'{{"error": {{"message": "Incorrect key {KEY} given"}}}}'.encode()
    monkeypatch.setattr(Upstream, "answer", lambda *_: (401, quoting, {}))
    with caplog.at_level(logging.DEBUG):
        page = owner.asked("a secret prompt")
    assert "the upstream answered with 401: Incorrect key … given" in page
    monkeypatch.undo()
    with caplog.at_level(logging.DEBUG):
        pages = [
            page,
            owner.asked("a secret prompt"),
            *(owner.get(path).text for path in ("/ask", "/model", "/")),
        ]
    assert all(KEY not in one for one in pages)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("penchant")]
    for secret in (KEY, "a secret prompt", "the motion tax"):
        assert secret not in " ".join(ours)
    assert KEY not in repr(UpstreamWriter(UpstreamSettings(upstream.url, key=KEY)))
    assert all(KEY not in record.getMessage() for record in caplog.records)


def test_no_form_of_the_page_names_whom_to_ask(owner: OwnerAtPage, upstream: Upstream) -> None:
    with upstream_server() as other:
        for name in ("upstream", "url", "address", "base_url", "model", "writer"):
            owner.follow("/ask", {"prompt": PROMPT, "count": "2", name: other.url})
            while "/ask/now" in owner.get("/ask").text:
                threading.Event().wait(0.02)
        assert other.asked == []
    assert upstream.asked
    assert all(set(body) == {"model", "messages", "n", "stream"} for body in upstream.asked)
    assert {body["model"] for body in upstream.asked} == {"m"}


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ({"prompt": "", "count": "4"}, 422),
        ({"prompt": " \n", "count": "4"}, 422),
        ({"prompt": "p", "count": "1"}, 413),
        ({"prompt": "p", "count": "17"}, 413),
        ({"prompt": "p", "count": "x"}, 413),
        ({"prompt": "p"}, 413),
        ({"prompt": "p" * 20_001, "count": "4"}, 413),
    ],
)
def test_odd_prompts_reach_nobody(
    owner: OwnerAtPage, upstream: Upstream, form: dict[str, str], status: int
) -> None:
    assert owner.post("/ask", form).status_code == status
    assert upstream.asked == []


@pytest.mark.parametrize("letter", ["字", "\U0001f600"])
def test_a_prompt_may_be_as_long_in_any_writing(device: Device, letter: str) -> None:
    """A form writes a character of these in nine or twelve bytes."""
    with opened(device, motions(3), Listed(WRITTEN)) as owner:
        assert owner.post("/ask", {"prompt": letter * 20_001, "count": "4"}).status_code == 413
        page = owner.asked(letter * 20_000)
        assert len(shown(page)) == 4
        assert f">{letter * 20_000}</textarea>" in page


def test_what_the_upstream_writes_does_nothing_on_the_page(device: Device) -> None:
    hostile = [
        "<script>alert(1)</script>",
        "![x](http://evil.example/x.png)",
        "[go](javascript:alert(1))",
        "<img src=x>",
    ]
    with opened(device, motions(3), Listed(hostile)) as owner:
        page = owner.asked("<b onclick=x>p</b>")
    for sign in ("<script>alert", "<img", 'href="javascript', "<b onclick"):
        assert sign not in page


def test_without_anybody_who_writes_the_page_says_how_to_name_one(device: Device) -> None:
    with opened(device, motions(3)) as owner:
        assert "--upstream http://127.0.0.1:11434/v1" in owner.get("/ask").text
        assert owner.post("/ask", {"prompt": "p", "count": "4"}).status_code == 422


def test_a_model_on_this_device_writes_others_each_time(generator_folder: Path) -> None:
    writer = GeneratorWriter(str(generator_folder))
    assert writer.address == ""
    one, other = writer.write("abc", 3), writer.write("abc", 3)
    assert len(one) == len(set(one)) == 3
    assert one != other


@pytest.fixture(scope="module")
def generator_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("writer")
    write_tiny_model("llama", path, tie_word_embeddings=True)
    return path


def test_without_a_text_there_is_no_response() -> None:
    assert different([" a ", "a", "", "b", "c"], 2) == ["a", "b"]
    with pytest.raises(UpstreamError, match="no response came"):
        different(["", " "], 3)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--upstream", "http://a/v1", "--generator", "x"], "exclude each other"),
        (["--upstream-model", "x"], "need --upstream"),
        (["--upstream-key", "x"], "need --upstream"),
        (["--upstream", "127.0.0.1:80"], "--upstream must be a URL"),
        (["--upstream", "http://a/v1", "--upstream-key", "/nowhere"], "can't read the upstream's key"),
    ],
)
def test_who_writes_is_checked_before_anything_is_opened(tmp_path: Path, words: list[str], why: str) -> None:
    home = tmp_path / "home"
    done: Any = CliRunner().invoke(device_app, ["open", "--no-browser", "--home", str(home), *words])
    assert done.exit_code == 2
    assert why in done.output
    assert not home.exists()


def test_a_personal_policy_writes_on_the_page(tmp_path: Path) -> None:
    """What it writes is what its owner chose, ranked by the same policy; a new one writes the next time."""
    write_tiny_chat_model(tmp_path / "base", initializer_range=0.4)
    folder = tmp_path / "device"
    folder.mkdir()
    settings = section_table(OfflineConfig())
    settings["model"] |= {"base_model": str(tmp_path / "base"), "objective": "dpo", "max_tokens": 32}
    settings["adapter"] |= {"target_modules": ["q_proj", "v_proj", "down_proj"], "layers": []}
    settings["training"] |= {"lr_personal": 3e-2, "local_epochs": 20}
    (folder / "model.toml").write_text(tomli_w.dumps(settings))
    device = Device(folder)
    writer = PolicyWriter(device)
    with opened(device, motions(3), writer) as owner:
        before = shown(owner.asked(PROMPT))
        assert len(before) == 4
        assert "your personal model writes on this device: nothing leaves it" in owner.get("/ask").text
        device.record(motions(24))
        device.train()
        page = owner.asked(PROMPT)
    ranked = device.rank(PROMPT, shown(page))
    assert [row.response for row in ranked] == shown(page)
    made = " ".join(device.generator().responses(PROMPT, 12, tokens=8)).split()
    first = " ".join(new_policy(tmp_path, settings).generator().responses(PROMPT, 12, tokens=8)).split()
    assert made.count("motion") / len(made) > first.count("motion") / len(first)


def new_policy(tmp_path: Path, settings: dict[str, Any]) -> Device:
    """Of an owner who has chosen nothing yet."""
    folder = tmp_path / "nobody"
    folder.mkdir()
    (folder / "model.toml").write_text(tomli_w.dumps(settings))
    return Device(folder)
