"""Models of a finished simulation for people at a terminal: written as plain files, and judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from penchant.client.device.export import SETTINGS_FILE
from penchant.client.device.exported_model import load_exported
from penchant.common.data.row_files import BadRows
from penchant.common.errors import UsageError
from penchant.common.printable import one_line
from penchant.common.terminal import say, say_json
from penchant.common.wording import counted, decimals, percent
from penchant.deploy.cli.drawing import Drawing, note, working
from penchant.deploy.evaluation import Evaluation, GroupAccuracy, Models, evaluate, write_scores
from penchant.deploy.simulation.models import SHARED, RunModels, export_models, finished
from penchant.deploy.simulation.person_scores import PEOPLE_FILE

__all__ = ["evaluate_and_show", "export_and_say"]

SHOWN = 12
"""Of how many people or kinds a line is shown; of more, those whose pairs are ranked worst."""


def export_and_say(
    models: RunModels, out: Path, people: Sequence[str] | None = None, *, gguf: bool = False
) -> None:
    """Write the models of a run, and say where they are. Errors as `export_models`."""
    with working("writing models"):
        found = export_models(models, out, people or None, gguf=gguf)
    say(f"the shared model and {counted(found.own, 'personal model')} are in {out}; {PEOPLE_FILE} says whose")
    if found.shared:
        people = counted(found.shared, "person", "people")
        say(f"the shared model ranks for {people} whom no round reached: {PEOPLE_FILE} says {SHARED}")


def evaluate_and_show(
    models: Path,
    source: Path,
    *,
    by: str | None,
    columns: Sequence[str],
    bad_rows: BadRows,
    scores: Path | None,
    as_json: bool,
) -> None:
    """Judge the models of a run, or one that was exported, and print what was found.

    Raises UsageError when the scores' file is there already, and errors as `evaluate`.
    """
    if scores is not None and scores.exists():
        raise UsageError(f"{scores} is there already; choose another file for the scores")
    with working("scoring"):
        found = evaluate(source, _models(models), by=by, columns=columns, bad_rows=bad_rows)
    if scores is not None:
        write_scores(found, scores)
    if as_json:
        say_json(found.to_dict())
    else:
        _draw(found, models, one=_is_exported(models))


def _is_exported(directory: Path) -> bool:
    """Whether it is one exported model, and no run."""
    return (directory / SETTINGS_FILE).is_file()


def _models(directory: Path) -> Models:
    """Of a run, or of one exported model."""
    if _is_exported(directory):
        return Models(load_exported(directory))
    finished(directory)
    return RunModels(directory).for_evaluation()


def _draw(found: Evaluation, models: Path, *, one: bool) -> None:
    """one: whether a single model scored everything."""
    console, errors = Drawing(), Drawing(stderr=True)
    for line in found.notes:
        errors.print(note(line))
    table = Table(title=f"{one_line(str(models))} on {one_line(found.source)}", title_justify="left")
    table.add_column("what", style="bold")
    table.add_column("value", justify="right")
    groups = found.groups
    own = sum(pair.own for pair in found.pairs)
    table.add_row("pairs, and people or kinds", f"{len(found.pairs)}, {len(groups)}")
    if one:
        table.add_row("  scored by this one model", f"{len(found.pairs)}")
    else:
        table.add_row("  scored by their person's own model", f"{own}")
    table.add_row("ranked right, of all pairs", percent(found.accuracy))
    table.add_row(
        "ranked right, mean over people or kinds", percent(found.mean_over_groups, error=found.standard_error)
    )
    table.add_row("log loss (.693: knows nothing)", decimals(found.log_loss))
    if found.tied:
        table.add_row("equal scores, counted as wrong", f"{found.tied}")
    console.print(table)
    if len(groups) > 1:
        console.print(_group_table(groups, one=one))


def _group_table(groups: Sequence[GroupAccuracy], *, one: bool) -> Table:
    worst = sorted(groups, key=lambda group: group.accuracy)[:SHOWN]
    few = len(groups) <= SHOWN
    table = Table(title=None if few else f"the {SHOWN} ranked worst", title_justify="left")
    for heading in ("whose, or of what kind", *(() if one else ("model",))):
        table.add_column(heading)
    for heading in ("pairs", "ranked right"):
        table.add_column(heading, justify="right")
    for group in groups if few else worst:
        model = () if one else (_scored_by(group),)
        table.add_row(one_line(group.group), *model, f"{group.pairs}", percent(group.accuracy))
    return table


def _scored_by(group: GroupAccuracy) -> str:
    if group.own:
        return "own"
    return "own and shared" if group.own_pairs else "shared"
