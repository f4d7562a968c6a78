"""The command line. It reads flags and files into a configuration, calls one function, prints its result.

Errors are one line; exit 2 for wrong use, 1 for a failure; a traceback only with ``--debug``. Heavy
imports stay inside the commands, so that ``--help`` is quick.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError, PenchantError, RunDirectoryError, UsageError
from penchant.deploy import authority_cli, console_cli, device, rundir, server_cli
from penchant.deploy.recipes import recipe

__all__ = ["main"]

app = typer.Typer(
    name="penchant",
    help="Personal reward models, learned together, without anyone's preferences leaving their device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_DATA = "Data"
_MODEL = "Model and adapter"
_TRAINING = "Training"
_FEDERATION = "Federation"
_RUN = "Run"


def _option(key: str, help: str, panel: str, *names: str, **more: Any) -> Any:
    """A flag that sets the configuration key `key`; unset flags leave the file's or the recipe's value."""
    flag = names or (f"--{key.split('.')[-1].replace('_', '-')}",)
    return typer.Option(*flag, help=help, rich_help_panel=panel, **more)


Dataset = Annotated[
    str | None, _option("data.dataset", "senate, senate-masked, another name, a FILE, or a HUB_ID.", _DATA)
]
Clients = Annotated[int | None, _option("data.clients", "People to take part; 0: all.", _DATA)]
Holdouts = Annotated[
    int | None,
    _option("data.holdout_clients", "People kept out: newcomers, who come when it is trained.", _DATA),
]
Pairs = Annotated[int | None, _option("data.pairs", "Training pairs a person.", _DATA)]
ValidationPairs = Annotated[
    int | None,
    _option("data.validation_pairs", "Validation pairs a person; 0: hold nothing out for them.", _DATA),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Skip bad rows and say so.", rich_help_panel=_DATA)
]
Evaluate = Annotated[str | None, _option("data.evaluate", "Score on test or on validation.", _DATA)]
BaseModel = Annotated[str | None, _option("model.base_model", "Hugging Face id or folder.", _MODEL)]
Pooling = Annotated[
    str | None, _option("model.pooling", "A text's embedding: auto, mean, first or last token.", _MODEL)
]
Normalize = Annotated[
    float | None, _option("model.normalize", "Scale of the L2-normalised embedding; 0: leave it.", _MODEL)
]
MaxTokens = Annotated[int | None, _option("model.max_tokens", "Tokens of a text that are read.", _MODEL)]
Dtype = Annotated[str | None, _option("model.dtype", "auto, float32 or bfloat16.", _MODEL)]
Quantize = Annotated[
    str | None, _option("model.quantize", "Frozen weights: none or 4bit (needs CUDA).", _MODEL)
]
Head = Annotated[str | None, _option("adapter.head", "Score head: auto, shared or personal.", _MODEL)]
Rank = Annotated[int | None, _option("adapter.rank", "Rank r of the factors.", _MODEL)]
Alpha = Annotated[float | None, _option("adapter.alpha", "LoRA's alpha.", _MODEL)]
Modules = Annotated[
    str | None, _option("adapter.target_modules", "Linear modules to adapt, comma-separated.", _MODEL)
]
Layers = Annotated[
    str | None, _option("adapter.layers", "Blocks to adapt, e.g. -1 or 4,5; all for all.", _MODEL)
]
ShareBase = Annotated[
    str | None,
    _option(
        "adapter.share_base",
        "Parts of the base trained and shared too, comma-separated: head, norm, or a module's path with *.",
        _MODEL,
    ),
]
LrShared = Annotated[float | None, _option("training.lr_shared", "Learning rate, shared part.", _TRAINING)]
LrPersonal = Annotated[
    float | None, _option("training.lr_personal", "Learning rate, personal part.", _TRAINING)
]
LrHead = Annotated[float | None, _option("training.lr_head", "Learning rate, score head.", _TRAINING)]
WarmupLr = Annotated[
    float | None,
    _option("training.warmup_lr", "Learning rate in warm-up rounds; 0: the others.", _TRAINING),
]
Optimizer = Annotated[str | None, _option("training.optimizer", "On devices: adamw or sgd.", _TRAINING)]
SharedOptimizer = Annotated[
    str | None,
    _option("training.shared_optimizer", "On devices, of the shared part: same, adamw or sgd.", _TRAINING),
]
LocalEpochs = Annotated[int | None, _option("training.local_epochs", "Epochs a client a round.", _TRAINING)]
BatchSize = Annotated[int | None, _option("training.batch_size", "Pairs a step; 0: all.", _TRAINING)]
Order = Annotated[
    str | None,
    _option(
        "training.order",
        "Parts in a round: joint, personal-first (then joint) or alternating (personal, then shared).",
        _TRAINING,
    ),
]
PersonalEpochs = Annotated[
    int | None,
    _option(
        "training.personal_epochs",
        "Epochs of the personal part alone, unless joint; 0: as many as --local-epochs.",
        _TRAINING,
    ),
]
Pull = Annotated[
    float | None, _option("training.pull", "L2 pull of the personal part to its start.", _TRAINING)
]
RefitEpochs = Annotated[
    int | None, _option("training.refit_epochs", "Personal epochs after the last round.", _TRAINING)
]
RefitLr = Annotated[float | None, _option("training.refit_lr", "Learning rate of that refit.", _TRAINING)]
Rounds = Annotated[int | None, _option("federation.rounds", "Rounds.", _FEDERATION)]
Warmup = Annotated[
    int | None, _option("federation.warmup_rounds", "Rounds of AB before personalising.", _FEDERATION)
]
Cohort = Annotated[int | None, _option("federation.cohort", "Clients a round; 0: a third.", _FEDERATION)]
ServerOptimizer = Annotated[
    str | None, _option("federation.server_optimizer", "fedavg or fedadam.", _FEDERATION)
]
ServerLr = Annotated[float | None, _option("federation.server_lr", "The server's rate.", _FEDERATION)]
SecAgg = Annotated[
    bool | None,
    typer.Option(
        "--secagg/--no-secagg", help="Secure aggregation (on by default).", rich_help_panel=_FEDERATION
    ),
]
MinHonest = Annotated[
    int | None, _option("privacy.min_honest", "Honest people every sum must hold.", _FEDERATION)
]
GridOption = Annotated[str | None, _option("grid", "local (one process) or ray.", _RUN)]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML configuration.", rich_help_panel=_RUN)
]
Out = Annotated[Path | None, typer.Option("--out", help="Run directory to make.", rich_help_panel=_RUN)]
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks for errors.", rich_help_panel=_RUN)]


app.add_typer(device.app, rich_help_panel="Device owner")
app.add_typer(authority_cli.app, rich_help_panel="Operator")
app.add_typer(server_cli.app, rich_help_panel="Operator")
app.add_typer(console_cli.app, rich_help_panel="Operator")


@app.callback(invoke_without_command=True)
def root(show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show_version:
        print(version("penchant"))
        raise typer.Exit()


@app.command(rich_help_panel="Researcher")
def simulate(
    dataset: Dataset = None,
    clients: Clients = None,
    holdout_clients: Holdouts = None,
    pairs: Pairs = None,
    validation_pairs: ValidationPairs = None,
    skip_bad_rows: SkipBad = False,
    evaluate: Evaluate = None,
    base_model: BaseModel = None,
    pooling: Pooling = None,
    normalize: Normalize = None,
    max_tokens: MaxTokens = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    share: Annotated[
        str | None,
        _option("adapter.share", "What is shared: B, A, kernel, svd, AB, none, ffa or lore.", _MODEL),
    ] = None,
    head: Head = None,
    rank: Rank = None,
    alpha: Alpha = None,
    target_modules: Modules = None,
    layers: Layers = None,
    share_base: ShareBase = None,
    lr_shared: LrShared = None,
    lr_personal: LrPersonal = None,
    lr_head: LrHead = None,
    warmup_lr: WarmupLr = None,
    optimizer: Optimizer = None,
    shared_optimizer: SharedOptimizer = None,
    local_epochs: LocalEpochs = None,
    batch_size: BatchSize = None,
    order: Order = None,
    personal_epochs: PersonalEpochs = None,
    pull: Pull = None,
    refit_epochs: RefitEpochs = None,
    refit_lr: RefitLr = None,
    rounds: Rounds = None,
    warmup_rounds: Warmup = None,
    cohort: Cohort = None,
    server_optimizer: ServerOptimizer = None,
    server_lr: ServerLr = None,
    secagg: SecAgg = None,
    min_honest: MinHonest = None,
    grid: GridOption = None,
    seed: Annotated[int | None, _option("seed", "Seed of everything that must repeat.", _RUN)] = None,
    config: ConfigFile = None,
    out: Out = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on in this run directory.", rich_help_panel=_RUN)
    ] = None,
    debug: Debug = False,
) -> None:
    """Simulate a federation on this machine and report how well each person's model does."""
    flags = _changes(
        {
            "data.dataset": dataset,
            "data.clients": clients,
            "data.holdout_clients": holdout_clients,
            "data.pairs": pairs,
            "data.validation_pairs": validation_pairs,
            "data.bad_rows": "skip" if skip_bad_rows else None,
            "data.evaluate": evaluate,
            "model.base_model": base_model,
            "model.pooling": pooling,
            "model.normalize": normalize,
            "model.max_tokens": max_tokens,
            "model.dtype": dtype,
            "model.quantize": quantize,
            "adapter.share": share,
            "adapter.head": head,
            "adapter.rank": rank,
            "adapter.alpha": alpha,
            "adapter.target_modules": _names(target_modules),
            "adapter.layers": _numbers("--layers", layers),
            "adapter.share_base": _names(share_base),
            "training.lr_shared": lr_shared,
            "training.lr_personal": lr_personal,
            "training.lr_head": lr_head,
            "training.warmup_lr": warmup_lr,
            "training.optimizer": optimizer,
            "training.shared_optimizer": shared_optimizer,
            "training.local_epochs": local_epochs,
            "training.batch_size": batch_size,
            "training.order": order,
            "training.personal_epochs": personal_epochs,
            "training.pull": pull,
            "training.refit_epochs": refit_epochs,
            "training.refit_lr": refit_lr,
            "federation.rounds": rounds,
            "federation.warmup_rounds": warmup_rounds,
            "federation.cohort": cohort,
            "federation.server_optimizer": server_optimizer,
            "federation.server_lr": server_lr,
            "privacy.secagg": secagg,
            "privacy.min_honest": min_honest,
            "grid": grid,
            "seed": seed,
        }
    )

    def work() -> None:
        from penchant.deploy.show import run_and_show

        if resume is not None:
            if out is not None:
                raise UsageError("--resume goes on in its own directory; drop --out")
            run_and_show(_resumed(resume, flags, config), resume)
            return
        settled = configure(flags, config)
        directory = out or Path("runs") / _run_name(settled)
        rundir.refuse_used(directory)
        from penchant.deploy.simulate import prepare

        world = prepare(settled)  # refuses what can't work before anything is written
        rundir.create(directory, settled)
        run_and_show(settled, directory, world)

    guarded(work, debug)


@app.command(rich_help_panel="Researcher")
def compare(
    shares: Annotated[str, typer.Option(help="What is shared, a list: A,B,AB,none.")] = "A,B,AB,none",
    seeds: Annotated[str, typer.Option(help="A list.")] = "0,1,2",
    heads: Annotated[
        str | None, typer.Option(help="Score heads, a list: auto,shared,personal.", rich_help_panel=_MODEL)
    ] = None,
    dataset: Dataset = None,
    clients: Annotated[
        str | None, typer.Option(help="People to take part, a list; 0: all.", rich_help_panel=_DATA)
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(help="Training pairs a person, a list.", rich_help_panel=_DATA)
    ] = None,
    holdout_clients: Holdouts = None,
    validation_pairs: ValidationPairs = None,
    skip_bad_rows: SkipBad = False,
    evaluate: Evaluate = None,
    base_model: BaseModel = None,
    max_tokens: MaxTokens = None,
    rounds: Rounds = None,
    cohort: Cohort = None,
    secagg: SecAgg = None,
    config: ConfigFile = None,
    out: Annotated[
        Path, typer.Option("--out", help="Directory to make, or to go on in.", rich_help_panel=_RUN)
    ] = Path("runs/compare"),
    debug: Debug = False,
) -> None:
    """Compare what is shared: same people, choices and seeds; one table with standard errors.

    Each share has the settings tuned for it on the data set, where there are any; what it cost is said
    beside its accuracy. The same command goes on where it was interrupted.
    """
    flags = _changes(
        {
            "data.dataset": dataset,
            "data.holdout_clients": holdout_clients,
            "data.validation_pairs": validation_pairs,
            "data.bad_rows": "skip" if skip_bad_rows else None,
            "data.evaluate": evaluate,
            "model.base_model": base_model,
            "model.max_tokens": max_tokens,
            "federation.rounds": rounds,
            "federation.cohort": cohort,
            "privacy.secagg": secagg,
        }
    )

    def work() -> None:
        from penchant.deploy.cases import combinations

        wanted = combinations(shares=shares, seeds=seeds, heads=heads, pairs=pairs, clients=clients)
        configs = [configure(flags | changes, config) for changes in wanted]
        from penchant.deploy.show_comparison import compare_and_show

        try:
            compare_and_show(configs, out)
        except KeyboardInterrupt:
            print("penchant: interrupted; the same command goes on", file=sys.stderr)
            raise typer.Exit(130) from None

    guarded(work, debug)


@app.command(rich_help_panel="Operator")
def quickstart(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An empty directory for all of it.")],
    devices: Annotated[int, typer.Option("--devices", help="Devices, each with one senator's votes.")] = 7,
    rounds: Annotated[int, typer.Option("--rounds", help="Rounds.")] = 5,
    debug: Debug = False,
) -> None:
    """A whole fleet on this machine: authority, server behind its gateway, devices; it learns, and ends."""

    def work() -> None:
        from penchant.deploy.quickstart import Quickstart
        from penchant.deploy.quickstart import quickstart as begin

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left behind
        server = begin(Quickstart(directory, devices, rounds), lambda line: print(line, flush=True))
        print(f"look at it: penchant server status {server}")

    guarded(work, debug)


@app.command(rich_help_panel="Researcher")
def audit(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    debug: Debug = False,
) -> None:
    """List what left each client in a recorded run: by name, shape, type and bytes."""

    def work() -> None:
        from penchant.deploy.audit import show

        show(directory, as_json=as_json)

    guarded(work, debug)


# --- from flags to a configuration ----------------------------------------------------------------


def configure(flags: dict[str, Any], file: Path | None) -> RunConfig:
    """Defaults, then the recipe of (data set, share), then the file, then the flags."""
    explicit = _file_changes(file) | flags
    base = RunConfig()
    dataset = explicit.get("data.dataset", base.data.dataset)
    share = explicit.get("adapter.share", base.adapter.share)
    tuned = recipe(str(dataset), str(share))
    if explicit.get("data.clients"):  # the recipe's cohort was tuned for everybody
        tuned.pop("federation.cohort", None)
    if "federation.rounds" in explicit and tuned.get("federation.warmup_rounds"):  # in proportion
        rounds = tuned.get("federation.rounds", base.federation.rounds)
        warmup = tuned["federation.warmup_rounds"] * int(explicit["federation.rounds"]) // rounds
        tuned["federation.warmup_rounds"] = warmup
    return base.changed(tuned | explicit)


def _file_changes(file: Path | None) -> dict[str, Any]:
    """The keys that a file sets, dotted; the whole file is validated first."""
    if file is None:
        return {}
    import tomllib

    RunConfig.read(file)
    changes: dict[str, Any] = {}
    for key, value in tomllib.loads(file.read_text(encoding="utf-8")).items():
        if isinstance(value, dict):
            changes.update({f"{key}.{inner}": v for inner, v in value.items()})
        else:
            changes[key] = value
    return changes


def _resumed(directory: Path, flags: dict[str, Any], file: Path | None) -> RunConfig:
    """The directory's own configuration; RunDirectoryError if flags or file ask for another one."""
    own = rundir.read_config(directory)
    if own.changed(_file_changes(file) | flags) != own:
        raise RunDirectoryError(
            f"{directory} is a run of another configuration; drop the flags or start anew"
        )
    return own


def _run_name(config: RunConfig) -> str:
    dataset = Path(config.data.dataset).name.replace("/", "-")
    return f"{dataset}-{config.adapter.share}-seed{config.seed}"


def _changes(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(flag: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if text.strip() == "all":
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{flag} is {text!r}; it must be whole numbers, separated by commas") from None


# --- errors as one line ---------------------------------------------------------------------------


def guarded(work: Callable[[], None], debug: bool) -> None:
    try:
        work()
    except (PenchantError, OSError) as error:  # OSError: a full disk, say
        if debug:
            raise
        raise typer.Exit(_said(error)) from None
    except KeyboardInterrupt:
        print("penchant: interrupted; go on with --resume DIR", file=sys.stderr)
        raise typer.Exit(130) from None


def _said(error: PenchantError | OSError) -> int:
    """Print the error in one line; -> the exit code."""
    if isinstance(error, PenchantError):
        text, code = str(error), error.exit_code
    else:
        text, code = ": ".join(str(part) for part in (error.strerror, error.filename) if part), 1
    print(f"penchant: {' '.join((text or type(error).__name__).split())}", file=sys.stderr)
    return code


def main() -> None:
    """Entry point of the ``penchant`` command."""
    try:
        code = app(standalone_mode=False)
    except PenchantError as error:  # from reading the flags themselves, or after --debug
        if "--debug" in sys.argv:
            raise
        code = _said(error)
    except click.exceptions.Exit as leave:
        code = leave.exit_code
    except click.exceptions.Abort:
        print("penchant: interrupted", file=sys.stderr)
        code = 130
    except click.ClickException as error:
        code = 2
        if error.format_message():  # without any argument the help was shown instead
            print(f"penchant: {error.format_message()} (see --help)", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
