"""Replies over a SuperLink: those that are not whole, or can't be read, hold up nobody else's."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from flwr.app import Message, Metadata
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.run import Run

from penchant.common.wire.flower import pack, unpack
from penchant.deploy.flower.superlink_grid import NonBlockingGrid


def reply_to(asked: str, payload: bytes) -> Message:
    metadata = Metadata(1, "", int(asked), 1, asked, "", time.time(), 60.0, "train.keys")
    message = make_message(metadata=metadata, content=pack(payload))
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


class SuperLink:
    """The part of a SuperLink that a grid pulls replies from; each is given out once."""

    def __init__(self) -> None:
        self.replies: dict[str, Message] = {}
        self.objects: dict[str, bytes] = {}
        self.confirmed: list[str] = []
        self.given: set[str] = set()
        self.down = False

    def begins(self, asked: str, payload: bytes) -> list[tuple[str, bytes]]:
        """A device says that it has a reply; -> its objects, which are not here yet."""
        message = reply_to(asked, payload)
        self.replies[asked] = message
        return [(name, thing.deflate()) for name, thing in get_all_nested_objects(message).items()]

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:  # noqa: N802
        if self.down:
            raise httpx.ConnectError("gone")
        assert not self.given & set(request.message_ids), "asked again for what was given out"
        self.given |= set(request.message_ids) & set(self.replies)
        given = [self.replies.pop(asked) for asked in request.message_ids if asked in self.replies]
        return PullAppMessagesResponse(
            messages_list=[message_to_proto(remove_content_from_message(message)) for message in given],
            message_object_trees=[get_object_tree(message) for message in given],
        )

    def PullObject(self, request: Any) -> PullObjectResponse:  # noqa: N802
        content = self.objects.get(request.object_id)
        return PullObjectResponse(
            object_found=True, object_available=content is not None, object_content=content or b""
        )

    def ConfirmMessageReceived(self, request: Any) -> ConfirmMessageReceivedResponse:  # noqa: N802
        self.confirmed.append(request.message_object_id)
        return ConfirmMessageReceivedResponse()


class Under:
    """What `NonBlockingGrid` uses of Flower's grid."""

    def __init__(self, link: SuperLink) -> None:
        self._runtime_client = link
        self.node = Node(node_id=1)
        self.run = Run.create_empty(1)
        self._retry_invoker = make_simple_http_retry_invoker()


@pytest.fixture
def link() -> SuperLink:
    return SuperLink()


@pytest.fixture
def grid(link: SuperLink) -> NonBlockingGrid:
    return NonBlockingGrid(Under(link))  # type: ignore[arg-type]


def payloads(grid: NonBlockingGrid, asked: list[str]) -> dict[str, bytes]:
    replies = grid.pull_messages(asked)
    return {reply.metadata.reply_to_message_id: unpack(reply.content) for reply in replies}


def test_a_reply_whose_push_broke_off_holds_up_nobody(link: SuperLink, grid: NonBlockingGrid) -> None:
    late = link.begins("1", b"late")
    link.objects |= dict(link.begins("2", b"here"))
    began = time.monotonic()
    assert payloads(grid, ["1", "2", "3"]) == {"2": b"here"}
    assert time.monotonic() - began < 5  # Flower's own grid would wait for two hours
    assert payloads(grid, ["1", "3"]) == {}
    link.objects |= dict(late[:1])
    assert payloads(grid, ["1", "3"]) == {}
    link.objects |= dict(late)  # a slow line, and it is there after all
    assert payloads(grid, ["1", "3"]) == {"1": b"late"}
    assert payloads(grid, ["3"]) == {}
    assert len(link.confirmed) == 2


def test_many_replies_are_looked_for_in_queries_that_a_database_takes(
    link: SuperLink, grid: NonBlockingGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    pull = link.PullMessages

    def counted(request: Any) -> PullAppMessagesResponse:
        asked.append(len(request.message_ids))
        return pull(request)

    monkeypatch.setattr(link, "PullMessages", counted)
    link.objects |= dict(link.begins("3", b"first")) | dict(link.begins("25000", b"last"))
    found = payloads(grid, [str(number) for number in range(1, 25_001)])
    assert found == {"3": b"first", "25000": b"last"}
    assert asked == [10_000, 10_000, 5_000]
    assert max(asked) < 32_766


def test_contents_are_fetched_one_by_one(link: SuperLink, grid: NonBlockingGrid) -> None:
    """However many replies have gathered, one is held; what is not taken now is there at the next look."""
    for asked in ("1", "2", "3"):
        link.objects |= dict(link.begins(asked, b"reply " + asked.encode()))
    replies = grid.pull_messages(["1", "2", "3"])
    assert link.confirmed == []
    for count in (1, 2):
        next(replies)
        assert len(link.confirmed) == count
    assert payloads(grid, ["3"]) == {"3": b"reply 3"}


def test_what_nobody_asks_for_any_more_is_forgotten(link: SuperLink, grid: NonBlockingGrid) -> None:
    late = link.begins("1", b"late")
    assert payloads(grid, ["1"]) == {}
    assert payloads(grid, ["2"]) == {}  # another exchange
    link.objects |= dict(late)
    assert payloads(grid, ["2"]) == {}


def test_a_reply_that_cannot_be_read_is_as_good_as_none(link: SuperLink, grid: NonBlockingGrid) -> None:
    link.objects |= {name: b"\xff" * 40 for name, _ in link.begins("1", b"junk")}
    link.objects |= dict(link.begins("2", b"here"))
    assert payloads(grid, ["1", "2"]) == {"2": b"here"}
    assert payloads(grid, ["3"]) == {}


def test_a_superlink_that_is_gone_is_said_so(link: SuperLink, grid: NonBlockingGrid) -> None:
    link.down = True
    with pytest.raises(httpx.ConnectError):
        grid.pull_messages(["1"])


def says(status: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError("no", request=httpx.Request("POST", "/"), response=httpx.Response(status))


def test_a_superlink_whose_database_is_busy_is_asked_again_for_a_minute(
    link: SuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    under, now = Under(link), [100.0]
    NonBlockingGrid(under)  # type: ignore[arg-type]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    gives_up = under._retry_invoker.should_giveup
    assert gives_up is not None
    assert [gives_up(says(status)) for status in (500, 503, 404)] == [False, False, True]
    now[0] += 50
    assert not gives_up(says(500))
    now[0] += 20
    assert gives_up(says(500))
    now[0] += 1000  # another time
    assert not gives_up(says(500))
