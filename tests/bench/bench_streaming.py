"""What a server takes by the size of its cohort: `python tests/bench/bench_streaming.py [DEVICES …]`.

One attempt over so many devices in groups of --group, vectors of --words, a tenth lost before their vectors,
with a journal on the disk; each number in a process of its own. Devices are scripted: entries, shares of
secrets, signatures and unmasking are real, but vectors are made when they are asked for and carry no masks,
which costs the server the same; their sum is not checked here (tests/server/test_secagg_streaming.py does).
Counted: peak memory above what the process began with (devices' secrets among it), the journal's bytes at
their most, seconds of the processor without those of devices, and to complete the same from the journal.
--kept: all vectors are kept until the last has come, as before they were streamed. --json FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.scene import VERIFY, announcement, identity, membership

from penchant.common.crypto.entropy import SeededEntropy
from penchant.common.crypto.keys import AgreementKey
from penchant.common.crypto.shamir import split
from penchant.common.secagg.stages import MASKED
from penchant.common.secagg.transcript import (
    commitment,
    confirmation_text,
    context_digest,
    entry_text,
    masked_text,
    roster_digest,
    threshold,
)
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.messages import (
    Announce,
    Confirmation,
    Entry,
    Masked,
    Roster,
    Shares,
    Survivors,
    Unmasking,
)
from penchant.server.attempt_log import AttemptLog
from penchant.server.journal import Journal
from penchant.server.secagg.aggregation import Take
from penchant.server.secagg.secure import SecureAggregation

MB = 1e6
SEALED = 82  # bytes that one device seals for another
COLUMNS = ("devices", "groups", "words", "peak MB", "journal MB", "server s", "ms a device", "complete s")


class ScriptedDevices:
    """All devices of a cohort, as far as a server can tell."""

    def __init__(self, announce: Announce, lost: set[int]) -> None:
        self.context, self.words, self.lost = context_digest(announce), announce.words, lost
        self.rosters: dict[int, tuple[bytes, Roster]] = {}  # node -> its group's digest and roster
        self.seeds: dict[int, list[bytes]] = {}  # member -> its seed's shares
        self.keys: dict[int, list[bytes]] = {}
        self.lists: dict[int, Survivors] = {}
        self._decoded: tuple[bytes, Any] = (b"", None)

    def answer(self, stage: str, node: int, request: bytes) -> bytes:
        """The reply of one device."""
        return getattr(self, f"_{stage}")(node, request)  # type: ignore[no-any-return]

    def _keys(self, node: int, request: bytes) -> bytes:
        entry = Entry(
            identity(node + 1).certificate,
            self.context,
            AgreementKey(self._secret("mask", node)).public(),
            AgreementKey(self._secret("channel", node)).public(),
            commitment(self._secret("seed", node), self.context, node + 1),
            bytes(64),
        )
        values = {name: getattr(entry, name) for name in entry.__dataclass_fields__}
        return encode(Entry(**values | {"signature": identity(node + 1).sign(entry_text(entry))}))

    def _shares(self, node: int, request: bytes) -> bytes:
        roster = self._read(request, Roster)
        if not self.rosters or self.rosters.get(node - 1, (b"", None))[1] is not roster:
            digest = roster_digest(roster)
        else:
            digest = self.rosters[node - 1][0]
        self.rosters[node] = (digest, roster)
        n = len(roster.entries)
        entropy = SeededEntropy(b"bench", f"shares {node}")
        self.seeds[node + 1] = split(self._secret("seed", node), threshold(n), n, entropy)
        if node in self.lost:
            self.keys[node + 1] = split(self._secret("mask", node), threshold(n), n, entropy)
        return encode(Shares((bytes(SEALED),) * (n - 1)))

    def _masked(self, node: int, request: bytes) -> bytes:
        vector = np.full(self.words, node + 1, "<u4").tobytes()
        text = masked_text(self.context, self.rosters[node][0], vector)
        return encode(Masked(identity(node + 1).sign(text), vector))

    def _confirm(self, node: int, request: bytes) -> bytes:
        lists = self.lists[node] = self._read(request, Survivors)
        text = confirmation_text(self.context, self.rosters[node][0], lists.sharers, lists.survivors)
        return encode(Confirmation(identity(node + 1).sign(text)))

    def _unmask(self, node: int, request: bytes) -> bytes:
        roster, lists = self.rosters[node][1], self.lists[node]
        members = [entry.certificate.member for entry in roster.entries]
        mine, alive = members.index(node + 1), set(lists.survivors)
        seeds = tuple(self.seeds[members[index]][mine] for index in lists.survivors)
        lost = tuple(self.keys[members[index]][mine] for index in lists.sharers if index not in alive)
        return encode(Unmasking(seeds, lost))

    def _read(self, request: bytes, kind: Any) -> Any:
        """A request, read once for all of a group who have the same bytes."""
        if self._decoded[0] is not request:
            self._decoded = (request, decode(request, kind))
        return self._decoded[1]

    def _secret(self, label: str, node: int) -> bytes:
        return SeededEntropy(b"bench", f"{label} {node}").draw(32)


def measured(devices: int, group: int, words: int, kept: bool) -> dict[str, Any]:
    """One attempt in this process, and the same completed from its journal."""
    announce = announcement(group, words=words)
    lost = {node for node in range(devices) if node % 10 == 9}
    fleet = ScriptedDevices(announce, lost)
    server = SecureAggregation(membership(devices), VERIFY)
    outside, journal_bytes = 0.0, 0

    with tempfile.TemporaryDirectory() as name:
        journal = Journal(Path(name))
        log = AttemptLog(journal, 1, journal.begin(1, "main"))

        def exchange(
            stage: str, requests: Mapping[int, bytes], take: Take | None = None, /
        ) -> dict[int, bytes]:
            nonlocal outside, journal_bytes
            log.asked(stage, len(requests))
            replies: dict[int, bytes] = {}
            for node, request in requests.items():
                if stage == MASKED and node in lost:
                    continue
                began = time.process_time()
                reply = fleet.answer(stage, node, request)
                outside += time.process_time() - began
                log.arrived(stage, node, reply)
                if take is None or kept:
                    replies[node] = reply
                else:
                    take(node, reply)
            log.over(stage)
            journal_bytes = max(journal_bytes, sum(path.stat().st_size for path in Path(name).iterdir()))
            if take is not None and kept:
                for node, reply in replies.items():
                    take(node, reply)
                return {}
            return replies

        floor, began = peak(), time.process_time()
        aggregate = server.run(announce, range(devices), exchange, log)
        seconds = time.process_time() - began - outside
        most = peak() - floor
        records = log.records()
        began = time.process_time()
        again = server.complete(records)
        complete = time.process_time() - began
        journal.close()
    if (again.total != aggregate.total).any() or len(aggregate.survivors) != devices - len(lost):
        raise SystemExit("the completed sum is another one")
    return {
        "devices": devices,
        "groups": len(aggregate.groups),
        "words": words,
        "kept": kept,
        "peak MB": most / MB,
        "journal MB": journal_bytes / MB,
        "server s": seconds,
        "ms a device": 1e3 * seconds / devices,
        "complete s": complete,
    }


def peak() -> int:
    """Bytes of memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("devices", nargs="*", type=int, default=[256, 512, 1024])
    parser.add_argument("--group", type=int, default=256)
    parser.add_argument("--words", type=int, default=1_000_000)
    parser.add_argument("--kept", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        asked.one.write_text(json.dumps(measured(asked.devices[0], asked.group, asked.words, asked.kept)))
        return
    rows = []
    print(" ".join(f"{name:>11}" for name in COLUMNS))
    for devices in asked.devices:
        with tempfile.NamedTemporaryFile(suffix=".json") as out:
            command = [sys.executable, __file__, str(devices), "--group", str(asked.group), "--one", out.name]
            command += ["--words", str(asked.words), *(["--kept"] if asked.kept else [])]
            subprocess.run(command, check=True, env=os.environ)
            rows.append(json.loads(Path(out.name).read_text()))
        print(" ".join(f"{rows[-1][name]:11,.1f}" for name in COLUMNS), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
