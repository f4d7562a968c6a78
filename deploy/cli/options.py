"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

DATA = "Data"
MODEL = "Model and adapter"
_TRAINING = "Training"
_FEDERATION = "Federation"
RUN = "Run"


def option(key: str, help: str, panel: str, *names: str, **more: Any) -> Any:
    """A flag that sets the configuration key `key`; unset flags leave the file's or the recipe's value."""
    flag = names or (f"--{key.split('.')[-1].replace('_', '-')}",)
    return typer.Option(*flag, help=help, rich_help_panel=panel, **more)


Dataset = Annotated[
    str | None, option("data.dataset", "senate, senate-masked, another name, a FILE, or a HUB_ID.", DATA)
]
Clients = Annotated[int | None, option("data.clients", "People to take part; 0: all.", DATA)]
Holdouts = Annotated[
    int | None,
    option("data.holdout_clients", "People kept out: newcomers, who come when it is trained.", DATA),
]
Pairs = Annotated[int | None, option("data.pairs", "Training pairs a person.", DATA)]
ValidationPairs = Annotated[
    int | None,
    option("data.validation_pairs", "Validation pairs a person; 0: hold nothing out for them.", DATA),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Skip bad rows and say so.", rich_help_panel=DATA)
]
Evaluate = Annotated[str | None, option("data.evaluate", "Score on test or on validation.", DATA)]
BaseModel = Annotated[str | None, option("model.base_model", "Hugging Face id or folder.", MODEL)]
Pooling = Annotated[
    str | None, option("model.pooling", "A text's embedding: auto, mean, first or last token.", MODEL)
]
Normalize = Annotated[
    float | None, option("model.normalize", "Scale of the L2-normalised embedding; 0: leave it.", MODEL)
]
MaxTokens = Annotated[int | None, option("model.max_tokens", "Tokens of a text that are read.", MODEL)]
Dtype = Annotated[str | None, option("model.dtype", "auto, float32 or bfloat16.", MODEL)]
Quantize = Annotated[
    str | None, option("model.quantize", "Frozen weights: none or 4bit (needs CUDA).", MODEL)
]
Head = Annotated[str | None, option("adapter.head", "Score head: auto, shared or personal.", MODEL)]
Rank = Annotated[int | None, option("adapter.rank", "Rank r of the factors.", MODEL)]
Alpha = Annotated[float | None, option("adapter.alpha", "LoRA's alpha.", MODEL)]
Modules = Annotated[
    str | None, option("adapter.target_modules", "Linear modules to adapt, comma-separated.", MODEL)
]
Layers = Annotated[
    str | None, option("adapter.layers", "Blocks to adapt, e.g. -1 or 4,5; all for all.", MODEL)
]
ShareBase = Annotated[
    str | None,
    option(
        "adapter.share_base",
        "Parts of the base trained and shared too, comma-separated: head, norm, or a module's path with *.",
        MODEL,
    ),
]
LrShared = Annotated[float | None, option("training.lr_shared", "Learning rate, shared part.", _TRAINING)]
LrPersonal = Annotated[
    float | None, option("training.lr_personal", "Learning rate, personal part.", _TRAINING)
]
LrHead = Annotated[float | None, option("training.lr_head", "Learning rate, score head.", _TRAINING)]
WarmupLr = Annotated[
    float | None,
    option("training.warmup_lr", "Learning rate in warm-up rounds; 0: the others.", _TRAINING),
]
Optimizer = Annotated[str | None, option("training.optimizer", "On devices: adamw or sgd.", _TRAINING)]
SharedOptimizer = Annotated[
    str | None,
    option("training.shared_optimizer", "On devices, of the shared part: same, adamw or sgd.", _TRAINING),
]
LocalEpochs = Annotated[int | None, option("training.local_epochs", "Epochs a client a round.", _TRAINING)]
BatchSize = Annotated[int | None, option("training.batch_size", "Pairs a step; 0: all.", _TRAINING)]
Order = Annotated[
    str | None,
    option(
        "training.order",
        "Parts in a round: joint, personal-first (then joint) or alternating (personal, then shared).",
        _TRAINING,
    ),
]
PersonalEpochs = Annotated[
    int | None,
    option(
        "training.personal_epochs",
        "Epochs of the personal part alone, unless joint; 0: as many as --local-epochs.",
        _TRAINING,
    ),
]
Pull = Annotated[
    float | None, option("training.pull", "L2 pull of the personal part to its start.", _TRAINING)
]
RefitEpochs = Annotated[
    int | None, option("training.refit_epochs", "Personal epochs after the last round.", _TRAINING)
]
RefitLr = Annotated[float | None, option("training.refit_lr", "Learning rate of that refit.", _TRAINING)]
Rounds = Annotated[int | None, option("federation.rounds", "Rounds.", _FEDERATION)]
Warmup = Annotated[
    int | None, option("federation.warmup_rounds", "Rounds of AB before personalising.", _FEDERATION)
]
Cohort = Annotated[int | None, option("federation.cohort", "Clients a round; 0: a third.", _FEDERATION)]
ServerOptimizer = Annotated[
    str | None, option("federation.server_optimizer", "fedavg or fedadam.", _FEDERATION)
]
ServerLr = Annotated[float | None, option("federation.server_lr", "The server's rate.", _FEDERATION)]
SecAgg = Annotated[
    bool | None,
    typer.Option(
        "--secagg/--no-secagg", help="Secure aggregation (on by default).", rich_help_panel=_FEDERATION
    ),
]
MinHonest = Annotated[
    int | None, option("privacy.min_honest", "Honest people every sum must hold.", _FEDERATION)
]
GridOption = Annotated[str | None, option("grid", "local (one process) or ray.", RUN)]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML configuration.", rich_help_panel=RUN)]
Out = Annotated[Path | None, typer.Option("--out", help="Run directory to make.", rich_help_panel=RUN)]
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks for errors.", rich_help_panel=RUN)]
