"""`traind backup` and `traind restore`: the database, with or without a running daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli import options, output
from server.cli.offline.daemon import DataDirOption, Panel, read_settings

To = Annotated[
    Path | None, typer.Option(help="Also copy the backup to this directory or new file.")
]
Backup = Annotated[
    Path | None, typer.Argument(help="Backup file to restore [the newest verified one].")
]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=Panel)(backup)
    app.command(rich_help_panel=Panel)(restore)


def backup(data_dir: DataDirOption = None, to: To = None, json: options.Json = False) -> None:
    """Back up the database and verify the copy, with or without a running daemon. Copy the runs'
    directories after this command, not before."""
    settings = read_settings(data_dir=data_dir)
    from server.maintenance import backup as backups

    try:
        made = backups.backup(settings, to)
    except (backups.CannotBackUp, OSError) as error:
        raise output.CommandRefused(f"No backup was made: {error}") from error
    if json:
        return output.emit(made)
    output.say(made.path)
    if made.copy_path:
        output.say(made.copy_path)
    return None


def restore(
    backup: Backup = None,
    data_dir: DataDirOption = None,
    yes: options.Yes = False,
    json: options.Json = False,
) -> None:
    """Restore a backup of the database, and read newer records from the runs' directories. The
    daemon must not be running."""
    settings = read_settings(data_dir=data_dir)
    from server.database.migrate import Refused
    from server.maintenance import restore as restoring

    which = backup or "the newest verified backup"
    question = f"Restore {which} to {settings.paths.database}? The current one is kept next to it."
    if not options.confirmed(question, yes):
        raise typer.Exit(output.FAILED)
    try:
        made = restoring.restore(settings, backup.absolute() if backup else None)
    except Refused as error:
        raise output.CommandRefused(str(error)) from error
    if json:
        return output.emit(made)
    output.say(f"restored {made.backup}")
    output.say(
        f"re-read from the journals: {len(made.runs)} runs, {made.attempts} attempts, "
        f"{made.records:,} records"
    )
    if made.set_aside:
        output.say(f"the old database is kept as {made.set_aside}")
    output.warn(made.problems)
    return None
