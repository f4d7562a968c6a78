"""What an operator should look at now, in order of urgency: each with a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from penchant.common.durations import DAY
from penchant.common.wording import counted, duration, percent
from penchant.server.monitoring.fleet import FleetStatus, MemberListStatus, Revocation, Token
from penchant.server.monitoring.labels import left_out, lost
from penchant.server.monitoring.run_history import RunLocation, RunSummary

__all__ = ["Notice", "of_fleet", "of_run"]

MANY_LOST = 0.2  # of those asked: a third ends a round without a result
FALL = 0.03  # of accuracy below the best
SOON = 7 * DAY
RECENT = 14 * DAY  # what failed longer ago is history


@dataclass(frozen=True)
class Notice:
    """kind: "bad" or "warn". href: where it can be seen to."""

    kind: str
    title: str
    text: str
    href: str


def of_run(run: RunSummary, now: float) -> Iterator[Notice]:
    """What is wrong, or may become so, with a run."""
    href, name = f"/runs/{run.location.id}", run.location.name
    if run.state == "damaged":
        yield Notice("bad", f"{name} can't be read", run.why, href)
        return
    if run.state == "failed" and now - run.touched < RECENT:
        why = run.why.rstrip(".") or "It ended without a result"
        yield Notice(
            "bad", f"{name} failed", f"{why}. Finished rounds are kept; resume goes on from there.", href
        )
    if run.state == "running":
        yield from _at_work(run, now, href)


def _at_work(run: RunSummary, now: float, href: str) -> Iterator[Notice]:
    name = run.location.name
    deadline = run.config.federation.deadline_seconds if run.config else 600.0
    quiet = now - run.touched
    if run.open is not None and quiet > 6 * deadline:
        yield Notice("bad", f"{name} does not move", f"Nothing was journaled for {duration(quiet)}.", href)
    recent = [a for a in run.failed if a.round > run.settled - 10]
    if recent:
        text = f"Round {recent[-1].round}, attempt {recent[-1].attempt}: {recent[-1].why}"
        yield Notice("warn", f"{name}: {counted(len(recent), 'attempt')} gave nothing", text, href)
    without = [log for log in run.logs if log.failed and log.round > run.settled - 10]
    if without:
        last = without[-1]
        text = f"Round {last.round} is {'; '.join(left_out(last.failed))}"
        yield Notice("warn", f"{name}: {counted(len(without), 'round')} without a group", text, href)
    part = run.lost_part
    if part is not None and part >= MANY_LOST:
        text = (
            f"Of those asked in the last ten rounds: {lost(run.dropped)}. A third ends a round without a sum."
        )
        yield Notice("warn", f"{name} loses {percent(part, 0)} of its devices", text, href)
    known = [log.val_accuracy for log in run.logs if log.val_accuracy is not None]
    if len(known) > 5 and max(known[-5:]) < max(known) - FALL:
        text = f"The last five rounds stay below {percent(max(known))}, the best so far."
        yield Notice("warn", f"{name} learns no more", text, href)
    if run.config is not None and not run.config.privacy.secagg:
        text = "The server sees every single update. For simulated people only."
        yield Notice(
            "warn", f"{name} runs without secure aggregation", text, f"/privacy?run={run.location.id}"
        )


def of_fleet(
    fleet: RunLocation,
    link: FleetStatus,
    runs: Sequence[RunSummary],
    enrolment: MemberListStatus,
    asked: Sequence[Revocation],
    tokens: Sequence[Token],
    now: float,
) -> Iterator[Notice]:
    """What is wrong, or may become so, with a fleet's server and members; `runs` are the fleet's runs."""
    href = f"/devices?run={fleet.id}"
    if link.state == "silent":
        text = "No device can take part. Bring it up with “penchant server up”, or see its log."
        yield Notice("bad", f"The SuperLink of {fleet.name} is silent", text, href)
    for run in runs:
        if run.state != "running" or run.config is None or not link.fresh(now) or link.online is None:
            continue
        missing = run.config.federation.cohort - link.online
        if missing > 0:
            title = f"{run.location.name} waits for {counted(missing, 'device')}"
            text = f"It asks {run.config.federation.cohort} at a time; {link.online} are online."
            yield Notice("warn", title, text, href)
    pending = [r for r in asked if r.signed is None]
    if pending:
        numbers = ", ".join(str(r.member) for r in pending)
        text = f"Member {numbers}: in force once the authority has signed its next list."
        yield Notice("warn", f"{counted(len(pending), 'revocation')} pending", text, href)
    waiting = [token for token in tokens if token.state == "waiting"]
    if waiting:
        text = "The authority has their requests; compare the fingerprints before it signs."
        yield Notice("warn", f"{counted(len(waiting), 'device')} waiting to be enrolled", text, href)
    left = enrolment.expires - now
    if left < 0:
        text = "Devices refuse to take part until the authority publishes a newer one."
        yield Notice("bad", f"Member list {enrolment.list_number} has expired", text, href)
    elif left < SOON:
        text = "Have the authority publish the next one before devices refuse to take part."
        yield Notice("warn", f"The member list expires in {duration(left)}", text, href)
