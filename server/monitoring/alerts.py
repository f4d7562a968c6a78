"""What an operator should look at now, in order of urgency: each with a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from penchant.common.durations import DAY
from penchant.common.wording import counted, duration, percent
from penchant.server.monitoring.fleet import (
    Expiry,
    FleetStatus,
    MemberListStatus,
    QueuedRun,
    Revocation,
    Token,
)
from penchant.server.monitoring.labels import left_out, lost
from penchant.server.monitoring.run_history import RunLocation, RunSummary

__all__ = ["Notice", "ending", "of_fleet", "of_queue", "of_run"]

MANY_LOST = 0.2  # of those asked: a third ends a round without a result
FALL = 0.03  # of accuracy below the best
TOKEN_SOON = DAY
RECENT = 14 * DAY  # what failed longer ago is history


@dataclass(frozen=True)
class Notice:
    """Something to look at.

    Attributes:
        kind: "bad" or "warn".
        title: what it is.
        text: more of it, and what to do.
        href: the console's page where it can be seen to.
        topic: what it is about, the same as long as it lasts, whatever figures its title holds.
        nameless: what is said in place of `text` beyond this machine, where that holds people's names.
        run: the id of the run that it is about; empty where it is about none.
        key: what happened, to the run of this id, another one each time it happens; empty for what lasts
            until it is mended. With a key it can be put away.
    """

    kind: str
    title: str
    text: str
    href: str
    topic: str = ""
    nameless: str = ""
    run: str = ""
    key: str = ""

    @property
    def outward(self) -> str:
        """The text for whoever is told beyond this machine."""
        return self.nameless or self.text


def of_run(run: RunSummary, now: float) -> Iterator[Notice]:
    """What is wrong, or may become so, with a run."""
    href, name = f"/runs/{run.location.id}", run.location.name
    if run.state == "damaged":
        yield Notice("bad", f"{name} can't be read", run.why, href, f"run {name} damaged")
        return
    if run.state == "failed" and now - run.touched < RECENT:
        why = run.why.rstrip(".") or "It ended without a result"
        cure = (
            "Finished rounds are kept; resume goes on from there" if run.settled else "No round is finished"
        )
        yield Notice(
            "bad",
            f"{name} failed",
            f"{why}. {cure}.",
            href,
            f"run {name} failed",
            run=run.location.id,
            key=f"run {run.location.id} failed {run.touched:.0f}",
        )
    if run.state == "running":
        yield from _at_work(run, now, href)


def _at_work(run: RunSummary, now: float, href: str) -> Iterator[Notice]:
    name, id = run.location.name, run.location.id
    deadline = run.config.federation.deadline_seconds if run.config else 600.0
    quiet = now - run.touched
    if run.open is not None and quiet > 6 * deadline:
        text = f"Nothing was journaled for {duration(quiet)}."
        yield Notice("bad", f"{name} does not move", text, href, f"run {name} still")
    recent = [a for a in run.recent if a.state in ("failed", "skipped") and a.round > run.settled - 10]
    if recent:
        text = f"Round {recent[-1].round}, attempt {recent[-1].attempt}: {recent[-1].why}"
        title = f"{name}: {counted(len(recent), 'attempt')} gave nothing"
        last_try = f"{recent[-1].round}.{recent[-1].attempt}"
        topic, key = f"run {name} attempts", f"run {id} attempts {last_try}"
        yield Notice("warn", title, text, href, topic, run=id, key=key)
    without = [log for log in run.glance.logs if log.failed and log.round > run.settled - 10]
    if without:
        last = without[-1]
        text = f"Round {last.round} is {'; '.join(left_out(last.failed))}"
        title = f"{name}: {counted(len(without), 'round')} without a group"
        topic, key = f"run {name} groups", f"run {id} groups {last.round}"
        yield Notice("warn", title, text, href, topic, run=id, key=key)
    part = run.lost_part
    if part is not None and part >= MANY_LOST:
        text = (
            f"Of those asked in the last ten rounds: {lost(run.dropped)}. A third ends a round without a sum."
        )
        title = f"{name} loses {percent(part, 0)} of its devices"
        yield Notice("warn", title, text, href, f"run {name} lost")
    known = [log.val_accuracy for log in run.logs if log.val_accuracy is not None]
    if len(known) > 5 and max(known[-5:]) < max(known) - FALL:
        text = f"The last five rounds stay below {percent(max(known))}, the best so far."
        topic, key = f"run {name} learns", f"run {id} learns {max(known):.6f}"
        yield Notice("warn", f"{name} learns no more", text, href, topic, run=id, key=key)
    if run.config is not None and not run.config.privacy.secagg:
        text = "The server sees every single update. For simulated people only."
        title, page = f"{name} runs without secure aggregation", f"/privacy?run={run.location.id}"
        yield Notice("warn", title, text, page, f"run {name} plain", run=id, key=f"run {id} plain")


def of_fleet(
    fleet: RunLocation,
    link: FleetStatus,
    runs: Sequence[RunSummary],
    enrolment: MemberListStatus,
    asked: Sequence[Revocation],
    tokens: Sequence[Token],
    expiries: Sequence[Expiry],
    now: float,
) -> Iterator[Notice]:
    """What is wrong, or may become so, with a fleet's server and members; `runs` are the fleet's runs,
    `expiries` what ends one day."""
    href = f"/devices?run={fleet.id}"
    if link.state == "silent":
        text = "No device can take part. Bring it up with “penchant server up”, or see its log."
        yield Notice("bad", f"The SuperLink of {fleet.name} is silent", text, href, "superlink")
    for title, text in link.wrong:
        yield Notice("bad", title, f"{fleet.name}: {text}", href, f"part {title}")
    for run in runs:
        waiting = run.waiting
        if waiting is not None:
            missing = max(waiting.needed - len(waiting.ready), 0)
            title = f"{run.location.name} waits for {counted(missing, 'device')}"
            since, left = now - waiting.since, max(waiting.until - now, 0.0)
            text = (
                f"{len(waiting.ready)} of {waiting.needed} are ready, since {duration(since)}; it "
                f"gives up in {duration(left)}. Its page says who is missing and why."
            )
            page = f"/runs/{run.location.id}"
            yield Notice("warn", title, text, page, f"run {run.location.name} waits")
    pending = [r for r in asked if r.signed is None]
    if pending:
        numbers = ", ".join(str(r.member) for r in pending)
        text = f"Member {numbers}: in force once the authority has signed its next list."
        yield Notice("warn", f"{counted(len(pending), 'revocation')} pending", text, href, "revocations")
    joining = [token for token in tokens if token.state == "waiting"]
    if joining:
        text = "The authority has their requests; compare the fingerprints before it signs."
        title = f"{counted(len(joining), 'device')} waiting to be enrolled"
        yield Notice("warn", title, text, href, "requests")
    unused = [token for token in tokens if token.state == "open" and token.expires - now < TOKEN_SOON]
    if unused:
        names = ", ".join(token.label or token.id for token in unused)
        text = f"Nobody has used them: {names}. Hand out others if they are still wanted."
        nameless = "Nobody has used them. Hand out others if they are still wanted."
        title = f"{counted(len(unused), 'invitation')} end within a day"
        yield Notice("warn", title, text, href, "invitations", nameless)
    yield from ending(expiries, now, href)


def of_queue(runs: Sequence[QueuedRun], href: str = "") -> Iterator[Notice]:
    """Runs that wait for their turn and were refused."""
    for one in runs:
        if one.why:
            title = f"{one.called} of the queue was refused"
            cure = "It is tried again at its next time." if one.every else "Remove it, or try it again."
            yield Notice("warn", title, f"{one.why.rstrip('.')}. {cure}", href, f"queued {one.number}")


def ending(expiries: Sequence[Expiry], now: float, href: str = "") -> Iterator[Notice]:
    """What has ended, and what will soon, with what to do about it."""
    for one in sorted(expiries, key=lambda one: one.at):
        left = one.at - now
        if left < 0:
            yield Notice("bad", f"{one.what} has expired", one.cure, href, one.name)
        elif left < one.soon:
            title = f"{one.what} expires in {duration(left)}"
            yield Notice("warn", title, one.cure, href, one.name)
