"""A run that is played can't be started once more, nor another beside it; one that nobody plays can."""

from __future__ import annotations

import re
import threading
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from support.console_scene import make_run

from penchant.common.errors import JournalError, RoundFailed, UsageError
from penchant.deploy import run_directory
from penchant.deploy.fleet import follow, run_activity
from penchant.deploy.flower.superlink import Control, SuperLinkAddress, free_port

FLOWER = "17"


class SiteOf:
    """The runs of a server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def runs(self) -> list[str]:
        return [path.name for path in sorted(self._folder.iterdir())]

    def run(self, name: str) -> Path:
        return self._folder / name


class Link:
    """A SuperLink's word on its runs."""

    going = True

    def __init__(self, door: SuperLinkAddress) -> None:
        pass

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def nodes(self) -> dict[int, object]:
        return {}

    def is_going(self, run: str) -> bool:
        assert run == FLOWER
        return self.going


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two of nine rounds stand; Flower run 17 was started last."""
    monkeypatch.setattr(follow, "Control", Link)
    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.01)
    make_run(tmp_path / "runs" / "spring", 2)
    run = tmp_path / "runs" / "spring"
    (run / run_activity.FLOWER_RUN).write_text(FLOWER)
    return run


def begun(run: Path) -> None:
    (run / run_activity.LOG).write_text(f"2026-01-01T00:00:00+0000 Flower run {FLOWER} begins\n")


def second(run: Path, said: list[str] | None = None) -> None:
    say = (lambda text: None) if said is None else said.append
    follow.refuse_second(SiteOf(run.parent), SuperLinkAddress("127.0.0.1:1"), say)  # type: ignore[arg-type]


def test_a_run_that_was_never_started_is_not_played(run: Path) -> None:
    (run / run_activity.FLOWER_RUN).unlink()
    second(run)


def test_a_run_whose_server_app_is_yet_to_come_is_played(run: Path) -> None:
    with pytest.raises(UsageError, match="run spring is still running"):
        second(run)


def test_a_run_with_a_server_app_at_work_is_played(run: Path) -> None:
    begun(run)
    with run_directory.claim(run), pytest.raises(UsageError, match="Flower run 17"):
        second(run)


def test_a_run_whose_server_app_was_killed_is_not_whatever_the_superlink_still_thinks(run: Path) -> None:
    begun(run)
    second(run)


def test_the_server_app_of_a_run_that_was_stopped_has_time_to_end(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(run)
    monkeypatch.setattr(Link, "going", False)
    with ExitStack() as claim:
        claim.enter_context(run_directory.claim(run))
        ending = threading.Timer(0.2, claim.close)
        ending.start()
        said: list[str] = []
        second(run, said)
        assert said == ["the process of spring that a stopped server left is ending; it is waited for"]
        ending.join()
    monkeypatch.setattr(follow, "ENDING_SECONDS", 0.0)
    with run_directory.claim(run), pytest.raises(UsageError, match="is still running"):
        second(run)


def test_a_finished_run_is_not_asked_for(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_activity, "is_done", lambda directory: True)
    second(run)


def test_a_silent_superlink_is_said_first(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (run / run_activity.FLOWER_RUN).unlink()
    with pytest.raises(JournalError, match="is it up"):
        follow.refuse_second(
            SiteOf(run.parent),
            SuperLinkAddress(f"127.0.0.1:{free_port()}"),  # type: ignore[arg-type]
        )


class Refusing:
    """Flower's client of a SuperLink that answers with an HTTP status."""

    def __init__(self, code: int) -> None:
        self._code = code

    def ListRuns(self, request: object) -> object:  # noqa: N802
        asked = httpx.Request("POST", "http://127.0.0.1")
        raise httpx.HTTPStatusError("", request=asked, response=httpx.Response(self._code, request=asked))


def test_a_run_that_the_superlink_does_not_know_is_not_going(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a restore without Flower's own database: Flower answers 404."""
    control = Control(SuperLinkAddress("127.0.0.1:9", None))
    monkeypatch.setattr(control, "_client", Refusing(404))
    assert not control.is_going(FLOWER)
    monkeypatch.setattr(control, "_client", Refusing(500))
    with pytest.raises(JournalError, match="HTTP 500"):
        control.is_going(FLOWER)


def test_whoever_watches_is_told_while_the_process_of_a_run_is_yet_to_begin(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill it takes a minute or two: with a word, not in silence."""
    monkeypatch.setattr(follow, "how_it_ended", lambda door, flower: "failed")
    said: list[str] = []
    with pytest.raises(RoundFailed, match="before the last round"):
        follow.watch(run, SuperLinkAddress("127.0.0.1:1"), FLOWER, said.append)
    assert said[0].startswith("Flower has the run; its process loads people and model")
    begun(run)
    with pytest.raises(RoundFailed):
        follow.watch(run, SuperLinkAddress("127.0.0.1:1"), FLOWER, said.append)
    assert len(said) == 1


def test_every_line_of_a_run_s_log_begins_with_its_time(run: Path) -> None:
    for text in ("Flower run 17 begins", "round 1 waits\nfor devices", "Flower run 17 is done"):
        run_activity.say(run, text)
    lines = (run / run_activity.LOG).read_text(encoding="utf-8").splitlines()
    times = [re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}) .+", line) for line in lines]
    assert len(lines) == 3
    assert all(times)
