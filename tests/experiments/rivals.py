"""Rivals in one table: `python tests/experiments/rivals.py --out DIR --json FILE --page FILE [--people N]`.

Every row is a run of `penchant simulate` (`penchant compare` makes it): the same round, agents, people and
pairs, sums in the open. They are judged on the past of the Senate: the earlier three quarters of roll calls,
of which the last quarter is unseen; nobody's test part is read. What has a recipe runs with it, and that was
tuned on pasts of the Senate too; what has none takes that of its next of kin, with changes that were set
beforehand and not tuned: so rows without a recipe may have more in them than they show.

The same command goes on where it stopped. --rows names some of the rows, with ; for a comma in a name, and
--seeds the seeds; --only-show runs nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import marked_page

from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.deploy.comparison.runner import compare
from penchant.deploy.recipes import recipe

PAST = 0.75
Changes = dict[str, Any]


@dataclass(frozen=True)
class Rival:
    """A row: the share, whose recipe it runs with, what is different then, and what it is after."""

    share: str
    kin: str
    after: str
    changes: Changes = field(default_factory=dict)

    def config(self, seed: int, people: int) -> RunConfig:
        """Its configuration on the past; people: so many are drawn, 0 for all."""
        common = {
            "seed": seed,
            "data.dataset": "senate",
            "data.time_cutoff": PAST,
            "data.clients": people,
            "privacy.secagg": False,
            "adapter.share": self.share,
        }
        if people:
            common["federation.cohort"] = 0  # a third of them
        return RunConfig().changed({**recipe("senate", self.kin), **common, **self.changes})


RIVALS = {
    "one for all": Rival("AB", "AB", "federated averaging of LoRA"),
    "one for all, then fine-tuned": Rival(
        "finetune",
        "AB",
        "FedAvg and local fine-tuning; the baseline of FedGD",
        {"training.final_fit_epochs": 10, "training.final_fit_lr": 3e-3},
    ),
    "shared LoRA, personal head": Rival("AB", "AB", "the shape of FedPDPO", {"adapter.head": "personal"}),
    "LoRe": Rival("lore", "lore", "Bose et al. 2025"),
    "meta-learned weights": Rival(
        "meta",
        "lore",
        "the shape of MRM, by first-order MAML",
        {
            "training.lr_personal": 0.1,
            "training.update_order": "alternating",
            "training.personal_epochs": 10,
            "training.final_fit_epochs": 10,
            "training.final_fit_lr": 0.1,
        },
    ),
    "per-rater shrinkage": Rival(
        "shrinkage", "lore", "a hierarchical model of raters", {"training.lr_personal": 3e-3}
    ),
    "common head and basis": Rival("common", "lore", "mixed effects on LoRe's basis; ours"),
    "A shared, B personal": Rival("A", "A", "FedSA-LoRA; the default here"),
    "everyone alone": Rival("none", "none", "nothing is shared"),
}


def played(names: Sequence[str], seeds: Sequence[int], people: int, out: Path, file: Path) -> None:
    """Run the rows and keep them in the file, one after the other."""
    models = ModelCache()
    for name in names:
        configs = [RIVALS[name].config(seed, people) for seed in seeds]
        (row,) = compare(configs, out / _folder(name), model_cache=models).rows
        found = json.loads(file.read_text()) if file.exists() else {}
        found[name] = {
            "share": row.share,
            "head": row.head,
            "people": row.clients,
            "seeds": list(row.seeds),
            "accuracies": list(row.accuracies),
            "mean": row.accuracy_mean,
            "se": row.accuracy_se,
            "bytes_up": row.cost.bytes_up if row.cost else None,
        }
        file.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: {row.accuracy_mean:.4f}", flush=True)


def _folder(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def lines(found: Mapping[str, Any]) -> list[str]:
    """The table, the best row first."""
    made = ["| row | share | after | accuracy | people, seeds | sent a run |", "|---|---|---|---|---|---|"]
    for name, row in sorted(found.items(), key=lambda item: -item[1]["mean"]):
        error = "" if row["se"] is None else f" ± {row['se']:.3f}"
        head = ", personal head" if row["head"] == "personal" and row["share"] == "AB" else ""
        sent = f"{row['bytes_up'] / 1e6:.1f} MB"
        made.append(
            f"| {name} | `{row['share']}`{head} | {RIVALS[name].after} | {row['mean']:.3f}{error} "
            f"| {row['people']}, {len(row['seeds'])} | {sent} |"
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--people", type=int, default=0)
    parser.add_argument("--rows", default=",".join(name.replace(",", ";") for name in RIVALS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only-show", action="store_true")
    asked = parser.parse_args()
    names = [name.strip().replace(";", ",") for name in asked.rows.split(",")]
    if not asked.only_show:
        played(names, [int(seed) for seed in asked.seeds.split(",")], asked.people, asked.out, asked.json)
    table = lines(json.loads(asked.json.read_text()))
    print("\n".join(table))
    if asked.page:
        marked_page.write(asked.page, "rivals", table)


if __name__ == "__main__":
    main()
