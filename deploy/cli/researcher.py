"""`penchant simulate`, `compare`, `tune`, `export`, `evaluate`, `audit`: a researcher on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penchant.common.config import RunConfig
from penchant.common.errors import RunDirectoryError, UsageError
from penchant.deploy import run_directory
from penchant.deploy.cli.errors import command, notice, on_interrupt
from penchant.deploy.cli.options import (
    DATA,
    MODEL,
    RUN,
    Auto,
    BeginWith,
    ConfigFile,
    Flags,
    Out,
    Recipe,
    Resume,
    SaveModels,
    with_settings,
)
from penchant.deploy.configuration import asked_for, configure, has_untuned_settings, names_of, numbers_of
from penchant.deploy.recipes.recipe_file import RecipeFile

if TYPE_CHECKING:
    from penchant.deploy.simulation.models import RunModels

__all__ = ["app"]

app = typer.Typer()


@command(app)
@with_settings()
def simulate(
    flags: Flags,
    config: ConfigFile = None,
    out: Out = None,
    resume: Resume = None,
    begin_with: BeginWith = "",
    save_models: SaveModels = False,
    auto: Auto = None,
    recipe: Recipe = None,
) -> None:
    """Simulate a federation on this machine and report how well each person's model does.

    Defaults and ranges are in docs/settings.md. A data set may have a recipe of settings tuned for it;
    a configuration file comes before a recipe, and a flag before both.
    """
    if resume:
        if begin_with or auto is not None or recipe:
            raise UsageError("--resume goes on where its run stands; drop --from, --auto and --recipe")
        models = _go_on(resume, flags, config, out)
    elif auto:
        if begin_with or recipe:
            raise UsageError("--auto chooses settings and begins anew; drop it, or --from and --recipe")
        models = _race(flags, config, out)
    else:
        models = _begin(flags, config, out, begin_with, recipe, hint=auto is None)
    if save_models:
        from penchant.deploy.cli.show_models import export_and_say

        export_and_say(models, models.directory / "models")


def _begin(
    flags: Flags, file: Path | None, out: Path | None, begin_with: str, recipe: Path | None, *, hint: bool
) -> RunModels:
    """Simulate in a new run directory; -> the models that the run left.

    hint: whether to say of data that nothing was tuned on that a race may choose the settings.
    """
    tuned = RecipeFile.read(recipe) if recipe else None
    config = configure(flags, file, tuned)
    untuned = hint and tuned is None and has_untuned_settings(config, asked_for(flags, file))
    directory = out or Path("runs") / _run_name(config)
    run_directory.refuse_used(directory)
    from penchant.deploy.cli.show_simulation import run_and_show
    from penchant.deploy.simulation.world import prepare

    start = None
    if begin_with:
        from penchant.deploy.earlier_round import begin_from

        start = begin_from(begin_with, Path, config)
    world = prepare(config, start=start)  # refuses what can't work before anything is written
    run_directory.create(directory, config, start.encode() if start else b"")
    if why := world.why_one_by_one():
        notice(f"people are trained one by one, and not {config.batch_people} at a time: {why}")
    if tuned is not None and tuned.tuned is not None:
        notice(tuned.tuned.words())
    elif untuned and not begin_with:
        notice(
            f"nothing was tuned on these data; this runs share {config.adapter.share} with usual rates, and "
            "--auto has a race choose, in about twice the rounds"
        )
    return run_and_show(config, directory, world)


def _race(flags: Flags, file: Path | None, out: Path | None) -> RunModels:
    """Race in a new run directory, and simulate what has won; -> the models that the run left."""
    from penchant.deploy.cli.show_simulation import race_and_show
    from penchant.deploy.simulation.race import RacePlan

    plan = RacePlan.of(asked_for(flags, file))
    directory = out or Path("runs") / _run_name(plan.asked, "auto")
    plan.begin(directory)
    return race_and_show(plan, directory)


def _go_on(directory: Path, flags: Flags, file: Path | None, out: Path | None) -> RunModels:
    """Simulate on in a run directory; -> the models that the run left."""
    from penchant.deploy.cli.show_simulation import race_and_show, run_and_show
    from penchant.deploy.simulation.race import RacePlan, begun_race, is_racing

    if out is not None:
        raise UsageError("--resume goes on in its own directory; drop --out")
    if not is_racing(directory):
        own = run_directory.read_config(directory)
        _refuse_others(directory, own, flags, file)
        return run_and_show(own, directory)
    _refuse_others(directory, begun_race(directory), flags, file)
    return race_and_show(RacePlan.resumed(directory), directory)


@command(app)
@with_settings("adapter.share", "seed", "adapter.head", "data.clients", "data.pairs")
def compare(
    flags: Flags,
    shares: Annotated[
        str, typer.Option(help="Share rules to compare, as a list: A,B,AB,none.")
    ] = "A,B,AB,none",
    seeds: Annotated[str, typer.Option(help="Seeds to repeat each run with, as a list: 1,2,3.")] = "0,1,2",
    heads: Annotated[
        str | None,
        typer.Option(help="Score heads to compare, as a list: auto,shared,personal.", rich_help_panel=MODEL),
    ] = None,
    clients: Annotated[
        str | None,
        typer.Option(help="How many people take part, as a list; 0 stands for all.", rich_help_panel=DATA),
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(help="Training pairs per person, as a list.", rich_help_panel=DATA)
    ] = None,
    config: ConfigFile = None,
    out: Annotated[
        Path, typer.Option("--out", help="Directory to make, or to continue in.", rich_help_panel=RUN)
    ] = Path("runs/compare"),
) -> None:
    """Compare what is shared: same people, choices and seeds; one table with standard errors.

    Each share has the settings tuned for it on the data set, where there are any; what it cost is said
    beside its accuracy. The same command goes on where it was interrupted.
    """
    from penchant.deploy.comparison.cases import combinations

    wanted = combinations(shares=shares, seeds=seeds, heads=heads, pairs=pairs, clients=clients)
    configs = [configure(flags | changes, config) for changes in wanted]
    from penchant.deploy.cli.show_comparison import compare_and_show

    with on_interrupt("the same command goes on"):
        compare_and_show(configs, out)


@command(app)
@with_settings("adapter.share", "seed", "data.dataset", "data.evaluate", "privacy.secagg", "grid")
def tune(
    flags: Flags,
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="As of --dataset: a name, FILE or HUB_ID.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The recipe to write.")],
    shares: Annotated[str, typer.Option(help="Share rules to tune, as a list.")] = "common,lore,AB,A",
    seeds: Annotated[str, typer.Option(help="Seeds that judge each setting, as a list.")] = "0,1,2",
    budget: Annotated[int, typer.Option(help="Most simulated runs, of all shares together.")] = 120,
    config: ConfigFile = None,
) -> None:
    """Search for good settings on your data, judged on validation pairs, and write them as a recipe.

    A setting that is given is not searched. The same command goes on where it was interrupted;
    `penchant simulate --recipe FILE` takes the result.
    """
    from penchant.deploy.cli.show_tuning import tune_and_show

    asked = asked_for(flags, config) | {"data.dataset": dataset}
    with on_interrupt("the same command goes on"):
        tune_and_show(asked, names_of(shares), numbers_of("--seeds", seeds), budget, out)


@command(app)
def export(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a finished run.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="An empty directory for the models.")],
    people: Annotated[
        list[str] | None, typer.Option("--person", help="This person's model; more than once for more.")
    ] = None,
    gguf: Annotated[
        bool,
        typer.Option("--gguf", help="Beside each policy's adapter, one for llama.cpp (penchant[gguf])."),
    ] = False,
) -> None:
    """Write the models of a simulation as plain peft files: the shared one, and everybody's own.

    One folder each; people.csv says which is whose, and how well it did on the run's test pairs.
    """
    from penchant.deploy.cli.show_models import export_and_say
    from penchant.deploy.simulation.models import RunModels

    export_and_say(RunModels(directory), out, people, gguf=gguf)


@command(app)
def evaluate(
    models: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A finished run, or the directory of an exported model.")
    ],
    source: Annotated[Path, typer.Argument(metavar="FILE", help="Choices, in any format of docs/data.md.")],
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Group pairs by this column, and not by person; where nothing else names people, by it.",
        ),
    ] = None,
    columns: Annotated[
        str, typer.Option(metavar="NAME=COLUMN,…", help="Other names of columns, such as prompt=question.")
    ] = "",
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that can't be used, and say how many.")
    ] = False,
    scores: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every pair's scores: JSON lines, or .csv.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Judge models on pairs of your own: all together, and person by person or kind by kind.

    Of a run, everybody's own model ranks the pairs of their own, and the shared model those of anybody else.
    """
    from penchant.common.data.row_files import data_files

    data_files(source)  # a wrong path is told before a model is loaded
    from penchant.deploy.cli.show_models import evaluate_and_show

    evaluate_and_show(
        models,
        source,
        by=by,
        columns=[entry for entry in columns.split(",") if entry],
        bad_rows="skip" if skip_bad_rows else "refuse",
        scores=scores,
        as_json=as_json,
    )


@command(app)
def audit(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """List what left each client in a recorded run: by name, shape, type and bytes."""
    from penchant.deploy.cli.show_audit import show

    show(directory, as_json=as_json)


# --- inner parts ----------------------------------------------------------------------------------


def _refuse_others(directory: Path, own: RunConfig, flags: Flags, file: Path | None) -> None:
    """RunDirectoryError if flags or file ask for another configuration than the directory's own."""
    if own.changed(asked_for(flags, file)) != own:
        raise RunDirectoryError(
            f"{directory} is a run of another configuration; drop the flags or start a new run"
        )


def _run_name(config: RunConfig, share: str = "") -> str:
    dataset = Path(config.data.dataset).name.replace("/", "-")
    return f"{dataset}-{share or config.adapter.share}-seed{config.seed}"
