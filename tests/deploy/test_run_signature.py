"""A served run waits for the authority's signature, by files, and asks for nothing beyond what was signed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from support.release_scene import NoNodes

from penchant.common.config import RunConfig
from penchant.common.durations import DAY
from penchant.common.errors import AgreementError, ConfigError, PolicyRefusal, RunDirectoryError, UsageError
from penchant.common.membership.identity import Authority
from penchant.common.membership.manifest import RunManifest, RunRequest, SignedManifest, day_of, sign_run
from penchant.common.storage import write_durably
from penchant.deploy import run_directory
from penchant.deploy.cli import authority as authority_commands
from penchant.deploy.cli.main import main
from penchant.deploy.fleet import run_signature, served_run
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.authority_inbox import PendingDecision, attend
from penchant.deploy.fleet.device_notes import tag_of
from penchant.deploy.fleet.enrolment import EnrolmentRegistry
from penchant.deploy.fleet.run_queue import MARK, mark
from penchant.deploy.fleet.server_directory import ServerDirectory, ServerSettings
from penchant.server.journal import Journal


@dataclass
class Place:
    """A server with one run, and an authority, on one disk."""

    server_directory: ServerDirectory
    authority_store: AuthorityStore
    asked: list[PendingDecision] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.server_directory.run("one")

    def attend(self, *, grant: bool = True) -> list[str]:
        def decide(decision: PendingDecision) -> bool:
            self.asked.append(decision)
            return grant

        return attend(
            self.authority_store, self.server_directory.requests, self.server_directory.answers, decide
        )

    def collect(self) -> None:
        EnrolmentRegistry(self.server_directory).collect(NoNodes())

    def names(self) -> list[str]:
        folders = (self.server_directory.requests, self.server_directory.answers)
        return [path.name for folder in folders for path in sorted(folder.iterdir())]

    def manifest(self) -> RunManifest:
        return run_signature.request_of(self.run).manifest


@pytest.fixture
def place(tiny_model: Callable[[str], Path], tmp_path: Path) -> Place:
    authority_store = AuthorityStore.init(tmp_path / "authority")
    settings = ServerSettings(addresses=("fleet.example",))
    server_directory = ServerDirectory.create(
        tmp_path / "server", settings, authority_store.authority.public_key, authority_store.latest()
    )
    config = RunConfig().changed(
        {"model.base_model": str(tiny_model("bert")), "federation.cohort": 7, "federation.rounds": 3}
    )
    served_run.create(
        server_directory.run("one"), config, server_directory.authority, authority_store.latest()
    )
    return Place(server_directory, authority_store)


def change(directory: Path, **settings: object) -> None:
    config = run_directory.read_config(directory)
    changed = config.changed({key.replace("__", "."): value for key, value in settings.items()})
    (directory / "config.toml").write_text(changed.to_toml(), encoding="utf-8")


def test_a_run_is_signed_by_files_and_then_opens(place: Place) -> None:
    with pytest.raises(RunDirectoryError, match="no manifest signed"):
        served_run.open_served(place.run)
    path = run_signature.ask(place.server_directory, "one", 10)
    run = place.manifest().run.hex()
    assert path == place.server_directory.requests / f"run-{run}.manifest"
    (line,) = place.attend()
    assert line.startswith("run one is signed, until ")
    (decision,) = place.asked
    assert (decision.kind, decision.who, decision.what) == ("run", run, "one")
    assert "at most 4 rounds" in "\n".join(decision.lines)
    assert place.attend() == []  # answered already
    place.collect()
    assert place.names() == []
    assert run_signature.ask(place.server_directory, "one") is None
    opened = served_run.open_served(place.run)
    opened.journal.close()
    manifest = SignedManifest.read(opened.manifest, place.authority_store.authority.public_key)
    assert manifest == place.manifest()
    assert (manifest.run, manifest.rounds, manifest.least_cohort, manifest.least_group) == (
        opened.id,
        4,
        7,
        5,
    )
    assert manifest.last_day - manifest.first_day == 10
    assert manifest.phases == ("main", "close")


def test_a_run_that_is_declined_says_so_and_may_ask_again(place: Place) -> None:
    run_signature.ask(place.server_directory, "one")
    assert place.attend(grant=False) == ["run one is declined"]
    assert place.attend(grant=False) == []
    place.collect()
    assert place.names() == []
    with pytest.raises(RunDirectoryError, match="did not sign this run: the authority declined"):
        run_signature.await_signature(place.run, 60.0, print)
    assert run_signature.ask(place.server_directory, "one") is not None
    place.attend()
    place.collect()
    run_signature.await_signature(place.run, 0.0, print)


@pytest.mark.parametrize("named", [True, False], ids=["names its request", "of an earlier version"])
def test_a_decline_is_about_one_request_for_a_run_and_no_later_one(place: Place, named: bool) -> None:
    """The server can't remove it, and is started anew; the authority has not looked meanwhile."""
    path, server = run_signature.ask(place.server_directory, "one"), place.server_directory
    assert path is not None
    place.attend(grant=False)
    (said,) = server.answers.iterdir()
    kept = said.read_bytes() if named else b"the authority declined"
    said.write_bytes(kept)
    place.collect()
    first = run_signature.request_of(place.run)
    assert not path.exists()
    for _ in range(2):  # asked for again, and once more by a server that was started anew
        run_signature.ask(server, "one")
        said.write_bytes(kept)  # it was never gone
        place.collect()
        assert path.exists()
        with pytest.raises(RunDirectoryError, match="has not signed this run yet"):
            run_signature.await_signature(place.run, 0.0, print)
    second = run_signature.request_of(place.run)
    assert (second.manifest, second.name) == (first.manifest, first.name)
    assert second.nonce != first.nonce == b""
    said.write_bytes(kept)
    (line,) = place.attend()
    assert line.startswith("run one is signed, until ")
    place.collect()
    run_signature.await_signature(place.run, 0.0, print)
    assert (place.run / "manifest").is_file()


def test_a_run_waits_and_says_what_is_to_be_done(place: Place) -> None:
    said: list[str] = []
    with pytest.raises(RunDirectoryError, match="has not signed this run yet; once it has"):
        run_signature.await_signature(place.run, 1.5, said.append)
    (line,) = said
    assert "penchant authority attend" in line


def test_a_run_that_outgrows_its_manifest_needs_a_new_one(place: Place) -> None:
    run_signature.ask(place.server_directory, "one")
    place.attend()
    place.collect()
    change(place.run, federation__rounds=9)
    for attempt in (
        lambda: run_signature.ask(place.server_directory, "one"),
        lambda: served_run.open_served(place.run),
    ):
        with pytest.raises(RunDirectoryError, match=r"allows 4 rounds.*asks for 10; start a new run"):
            attempt()
    change(place.run, federation__rounds=3, federation__clip=1.0)
    with pytest.raises(RunDirectoryError, match="no longer what its manifest says"):
        served_run.open_served(place.run)


def test_a_manifest_past_its_days_ends_the_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run_signature.ask(place.server_directory, "one", 2)
    place.attend()
    place.collect()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3 * DAY)
    with pytest.raises(RunDirectoryError, match="start a new run"):
        served_run.open_served(place.run)


def test_a_run_begun_by_an_earlier_version_gets_a_manifest_at_its_next_start(place: Place) -> None:
    run = "ab" * 16
    with closing(Journal(place.run)) as journal:
        journal.note("run", run)
    run_signature.ask(place.server_directory, "one")
    place.attend()
    place.collect()
    opened = served_run.open_served(place.run)
    opened.journal.close()
    assert opened.id.hex() == run == place.manifest().run.hex()


def test_what_another_authority_signed_is_put_aside(place: Place) -> None:
    run_signature.ask(place.server_directory, "one")
    foreign = sign_run(Authority.create(), place.manifest()).encode()
    with pytest.raises(PolicyRefusal):
        run_signature.take(place.run, foreign)
    wider = sign_run(place.authority_store.authority, replace(place.manifest(), least_group=1)).encode()
    with pytest.raises(RunDirectoryError, match="a different manifest than the run asked for"):
        run_signature.take(place.run, wider)
    name = f"run-{place.manifest().run.hex()}.manifest"
    for bad in (foreign, wider, b"", b"junk"):
        (place.server_directory.answers / name).write_bytes(bad)
        place.collect()
        assert f"{name}.refused" in place.names()
    assert not (place.run / "manifest").exists()


def test_the_authority_signs_one_manifest_a_run(place: Place) -> None:
    asked = run_signature.request_of(place.run)
    first = place.authority_store.sign_run(asked)
    assert place.authority_store.sign_run(asked) == first
    other = RunRequest(asked.name, replace(asked.manifest, last_day=asked.manifest.last_day + 1))
    with pytest.raises(AgreementError, match="another manifest of this run"):
        place.authority_store.sign_run(other)
    (place.run / "manifest.request").write_bytes(other.encode())
    run_signature.ask(place.server_directory, "one")
    (line,) = place.attend()
    assert "is refused: another manifest" in line
    place.collect()
    with pytest.raises(RunDirectoryError, match="another manifest of this run"):
        run_signature.await_signature(place.run, 60.0, print)


@pytest.mark.parametrize(
    ("epsilon", "told"),
    [
        (0.0, "no epsilon bounds what they tell of one person"),
        (
            8.0,
            "Differential privacy: epsilon 8, delta 1e-05 for each person; the noise on a round's mean",
        ),
    ],
)
def test_whoever_begins_a_run_is_told_in_one_line_what_its_noise_amounts_to(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    epsilon: float,
    told: str,
) -> None:
    config = run_directory.read_config(place.run).changed({"privacy.dp_epsilon": epsilon})
    (tmp_path / "run.toml").write_text(config.to_toml())
    for name in ("follow.refuse_second", "processes.door", "run_checks.refuse_unfit"):
        monkeypatch.setattr(f"penchant.deploy.fleet.{name}", lambda *_: None)
    for name in ("_begin", "_follow"):
        monkeypatch.setattr(f"penchant.deploy.cli.server.{name}", lambda *_: None)
    words = ["server", "run", place.server_directory.path, "--config", tmp_path / "run.toml", "--name", "two"]
    monkeypatch.setattr("sys.argv", ["penchant", *map(str, words)])
    with pytest.raises(SystemExit) as leave:
        main()
    assert (leave.value.code or 0) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if told in line)
    assert line.startswith("note: ")


class Killed(BaseException):
    """The process is gone."""


def test_a_run_that_was_killed_while_it_was_made_is_none_or_whole(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each file that is written: no run at all, or one that asks whom it should, for as long as
    it should."""
    config, written = run_directory.read_config(place.run), 0

    def write(path: Path, data: bytes) -> None:
        nonlocal written
        written += 1
        if written == last:
            path.with_name(f".{path.name}.tmp").write_bytes(data[:3])
            raise Killed
        write_durably(path, data)

    def make(name: str, tag: str, days: int, queued: int) -> None:
        members = place.server_directory.membership().encoded
        authority = place.server_directory.authority
        served_run.create(
            place.server_directory.run(name), config, authority, members, None, tag, days, queued
        )

    monkeypatch.setattr(run_directory, "write_durably", write)
    for last in range(1, 20):
        written, name = 0, f"run-{last}"
        try:
            make(name, "pilot", 9, 4)
        except Killed:
            assert name not in place.server_directory.runs()
            written = 20
            make(name, "", 11, 0)  # and nothing is left of the one that was killed
            assert tag_of(place.server_directory.run(name)) == ""
            assert not (place.server_directory.run(name) / MARK).exists()
            days = 11
        else:
            assert tag_of(place.server_directory.run(name)) == "pilot"
            assert (place.server_directory.run(name) / MARK).read_bytes() == mark(4)
            days = 9
        run_signature.ask(place.server_directory, name)  # as `resume` does
        manifest = run_signature.request_of(place.server_directory.run(name)).manifest
        assert manifest.last_day - manifest.first_day == days
        if days == 9:
            break
    assert last == 8  # seven files: the tag, the days, the configuration among them


def test_what_makes_no_sense_is_refused_before_there_is_a_run(place: Place) -> None:
    config, server = run_directory.read_config(place.run), place.server_directory
    given = (server.run("two"), config, server.authority, server.membership().encoded, None)
    with pytest.raises(ConfigError, match="between 1 and 366"):
        served_run.create(*given, days=0)
    with pytest.raises(UsageError, match="is no tag"):
        served_run.create(*given, tag="../x")
    assert not server.run("two").exists()


def test_damaged_days_are_an_error_in_one_line(place: Place) -> None:
    for damaged in (b"", b"\xff", b"-3", b"soon"):
        (place.run / "days").write_bytes(damaged)
        with pytest.raises(RunDirectoryError, match="holds no number"):
            run_signature.ask(place.server_directory, "one")


@pytest.mark.parametrize("content", [b"", b"junk", bytes(1000)])
def test_a_request_that_is_none_is_refused(place: Place, content: bytes) -> None:
    (place.server_directory.requests / f"run-{'00' * 16}.manifest").write_bytes(content)
    (line,) = place.attend()
    assert "is refused: this does not ask for a run's signature" in line
    assert place.asked == []


def test_a_run_takes_no_longer_than_a_year(place: Place) -> None:
    for days in (0, 367, -1):
        with pytest.raises(ConfigError, match="between 1 and 366"):
            run_signature.ask(place.server_directory, "one", days)
    assert place.names() == []
    manifest = run_signature.request_of(place.run, 366).manifest
    assert manifest.last_day - manifest.first_day == 366
    assert day_of(time.time()) - manifest.first_day in (0, 1)


def test_the_authority_sees_what_it_signs_whole(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long setting neither cuts off nor hides those after it."""
    change(place.run, adapter__target_modules=["m" * 100] * 10, training__lr_personal=0.9)
    run_signature.ask(place.server_directory, "one", 10)
    place.attend()
    (matter,) = place.asked
    monkeypatch.setattr("typer.confirm", lambda question: False)
    assert not authority_commands._granted(matter)
    said = capsys.readouterr().out.splitlines()
    settings = [line for line in said if line.startswith("  settings of ")]
    assert [line.strip() for line in settings] == list(matter.lines[-2:])
    assert all(len(line) > 1000 and "training.lr_personal = 0.9" in line for line in settings)
