"""`traind serve`, `service`, `rebuild` and `token`: the daemon itself."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli import options, output

if TYPE_CHECKING:
    from server.settings import Settings

Panel = "Daemon"
# One option for each field of Settings; None leaves it to TRAIND_… and the default.
DataDirOption = Annotated[Path | None, typer.Option(help="Data directory.")]
Host = Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")]
Port = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one [8321].")
]
Auth = Annotated[
    str | None, typer.Option(help="Token required: auto (except on loopback) or always.")
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option("--allow-host", help="Additional host name to accept; repeatable."),
]
AllowRemote = Annotated[
    bool | None,
    typer.Option("--allow-remote/--no-allow-remote", help="Allow an address beyond loopback."),
]
TokenFile = Annotated[Path | None, typer.Option(help="File with the token [data dir/token].")]
TrainerPython = Annotated[
    str | None, typer.Option(help="Python interpreter with torch [this one].")
]
StopTrainers = Annotated[
    bool | None,
    typer.Option(
        "--stop-trainers/--leave-trainers", help="Stop the trainers when the daemon stops."
    ),
]
MaxBody = Annotated[
    int | None, typer.Option(help="Maximum size of a request body.", metavar="BYTES")
]
Tick = Annotated[float | None, typer.Option(help="Interval of the supervisor.", metavar="S")]
PauseDeadline = Annotated[
    float | None,
    typer.Option(help="Time limit of a pause before the trainer is killed.", metavar="S"),
]
Stall = Annotated[
    float | None, typer.Option(help="Minimum silence before a run counts as stalled.", metavar="S")
]
TokenCache = Annotated[
    int | None, typer.Option(help="Maximum total size of the token caches.", metavar="BYTES")
]
KeepJobs = Annotated[
    float | None,
    typer.Option(help="Retention of ended jobs and unused corpora [30].", metavar="DAYS"),
]
LogFormat = Annotated[str | None, typer.Option(help="Log format: text or json.")]
LogLevel = Annotated[str | None, typer.Option(help="Log level: debug, info, warning or error.")]
SlurmPrologue = Annotated[
    Path | None,
    typer.Option(help="Shell file that every Slurm job sources first.", metavar="FILE"),
]
TariffSource = Annotated[
    str | None,
    typer.Option(help="Energy prices over time (JSON).", metavar="FILE|URL"),
]
EnergyPrice = Annotated[
    float | None, typer.Option(help="Price of a kWh, for costs.", metavar="PRICE")
]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=Panel)(serve)
    service = typer.Typer(help="Run as a systemd user service.", no_args_is_help=True)
    for command in (install, uninstall, show):
        service.command()(command)
    app.add_typer(service, name="service", rich_help_panel=Panel)
    app.command(rich_help_panel=Panel)(rebuild)
    token = typer.Typer(help="Show where the token is stored.", no_args_is_help=True)
    token.command("show-path")(token_path)
    token.callback()(lambda: None)
    app.add_typer(token, name="token", rich_help_panel=Panel)


def serve(
    data_dir: DataDirOption = None,
    host: Host = None,
    port: Port = None,
    auth: Auth = None,
    allow_hosts: AllowHost = None,
    allow_remote: AllowRemote = None,
    token_file: TokenFile = None,
    trainer_python: TrainerPython = None,
    stop_trainers: StopTrainers = None,
    max_body_bytes: MaxBody = None,
    tick_seconds: Tick = None,
    pause_deadline_seconds: PauseDeadline = None,
    stall_seconds: Stall = None,
    keep_jobs_days: KeepJobs = None,
    token_cache_bytes: TokenCache = None,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
    energy_price_per_kwh: EnergyPrice = None,
    slurm_prologue: SlurmPrologue = None,
    tariff: TariffSource = None,
) -> None:
    """Run the daemon in the foreground. Every option can also be set as TRAIND_… in the
    environment."""
    settings = read_settings(**locals())
    announce(settings)
    from server.daemon.serve import serve as run_daemon

    raise typer.Exit(run_daemon(settings) or 0)


def install(
    data_dir: DataDirOption = None,
    host: Host = None,
    port: Port = None,
    auth: Auth = None,
    allow_hosts: AllowHost = None,
    allow_remote: AllowRemote = None,
    token_file: TokenFile = None,
    trainer_python: TrainerPython = None,
    stop_trainers: StopTrainers = None,
    energy_price_per_kwh: EnergyPrice = None,
    slurm_prologue: SlurmPrologue = None,
    tariff: TariffSource = None,
) -> None:
    """Install and start the systemd user service, with these options and TRAIND_… as its flags."""
    _serviced("install", _unit(read_settings(**locals())))


def uninstall() -> None:
    """Stop, disable and remove the service. Runs and data are kept."""
    _serviced("uninstall")


def show(data_dir: DataDirOption = None, stop_trainers: StopTrainers = None) -> None:
    """Print the systemd unit that `install` would write with these options."""
    print(_unit(read_settings(**locals())), end="")


def rebuild(
    data_dir: DataDirOption = None, yes: options.Yes = False, json: options.Json = False
) -> None:
    """Rebuild the database from the journals in the runs' directories. The daemon must not be
    running."""
    settings = read_settings(data_dir=data_dir)
    from server.database.migrate import Refused
    from server.maintenance import rebuild as rebuilding

    question = f"Rebuild {settings.paths.database}? The current one is kept next to it."
    if not options.confirmed(question, yes):
        raise typer.Exit(output.FAILED)
    try:
        made = rebuilding.rebuild(settings)
    except Refused as error:
        raise output.CommandRefused(str(error)) from error
    if json:
        return output.emit(made)
    output.say(f"{len(made.runs)} runs from {made.records:,} records: {', '.join(made.runs)}")
    if made.set_aside:
        output.say(f"the old database is kept as {made.set_aside}")
    output.warn(made.problems)
    output.say("not recovered, because no file contains it:")
    for one in made.not_on_disk:
        output.say(f"  {one}")
    return None


def token_path(data_dir: DataDirOption = None, json: options.Json = False) -> None:
    """Print the path of the token file; the token itself is never printed."""
    settings = read_settings(data_dir=data_dir)
    path = settings.token_file or settings.paths.root / "token"
    if json:
        output.emit({"path": str(path), "exists": path.exists()})
    else:
        output.say(str(path))
    if not path.exists():
        output.note("it is created when a daemon that requires it starts")


def read_settings(**given: Any) -> Settings:
    """Settings from the given flags, then TRAIND_…, then defaults."""
    from pydantic import ValidationError

    from server.settings import Settings

    try:
        return Settings(**{key: value for key, value in given.items() if value not in (None, [])})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        output.usage(
            f"{name.replace('_', '-')}: {first['msg']}", f"--help, or TRAIND_{name.upper()}"
        )


def announce(settings: Settings) -> None:
    """Print URL, data directory and, if a token is required, its file."""
    if settings.port:  # a free port is known, and logged, only once it is bound
        url = url_of(settings)
        _tell(f"traind is about to serve {url}/ (dashboard) and {url}/docs (API)")
    _tell(f"data in {settings.paths.root}")
    if not settings.is_loopback or settings.auth == "always":
        token = settings.token_file or settings.paths.root / "token"
        _tell(f"callers need the token in {token}")


def _tell(message: str) -> None:
    """Print to stderr without rich, which would stay in memory; a full disk is ignored."""
    with suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def url_of(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def flags_of(settings: Settings) -> list[str]:
    """The flags of `traind serve` for these settings, independent of the working directory."""
    from server.settings import Settings

    flags: list[str] = ["--data-dir", str(settings.paths.root)]
    names = {"stop_trainers": ("--stop-trainers", "--leave-trainers")}
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if name == "data_dir" or value == field.get_default(call_default_factory=True):
            continue
        flag = "--" + name.replace("_", "-")
        if name == "allow_hosts":
            flags += [part for host in value for part in ("--allow-host", host)]
        elif isinstance(value, bool):
            on, off = names.get(name, (flag, "--no-" + flag[2:]))
            flags.append(on if value else off)
        else:
            path = value.expanduser().absolute() if isinstance(value, Path) else value
            flags += [flag, str(path)]
    return flags


def _unit(settings: Settings) -> str:
    from server.daemon import systemd as service

    try:
        return service.unit(flags_of(settings), stop_trainers=settings.stop_trainers)
    except service.ServiceError as error:
        raise output.CommandRefused(str(error)) from error


def _serviced(verb: str, *arguments: str) -> None:
    from server.daemon import systemd as service

    try:
        outcome = getattr(service, verb)(*arguments)
    except (service.ServiceError, OSError) as error:
        raise output.CommandRefused(str(error)) from error
    for line in outcome.done:
        output.say(line)
    for hint in outcome.hints:
        output.note(f"hint: {hint}", "yellow")
