"""The commands `backup` and `restore`, for the data that exists only in Redis."""

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from redis.asyncio import Redis

from api.options import Config, fail, print_table, record, settings_of, with_redis
from api.settings import ApiSettings
from api.token_command import audit_of
from worker.store.backup.file import BackupFile, BackupUnusable, Written, new_file, write
from worker.store.backup.restore import AuditLogInUse, Restore
from worker.store.backup.rows import Backup, DataLost

_NAME = "vps-snapshots-*.backup"
_LIFE = ".vps-snapshots-life"  # a file with what `Backup.life` returned for the newest backup, which may be encrypted
LEFT_SECONDS = 86_400.0  # far longer than a backup takes

Identity = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="File with age's secret key, for an encrypted backup.")
]


def backup(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder for the backup file.")],
    *,
    keep: Annotated[int, typer.Option(min=1, help="How many backups to keep in the folder.")] = 14,
    recipient: Annotated[
        str | None, typer.Option(metavar="AGE1...", help="age's public key: encrypts the file (needs the program age).")
    ] = None,
    audit: Annotated[bool, typer.Option("--audit/--no-audit", help="Include the audit log.")] = True,
    config: Config = None,
) -> None:
    """Back up the data that exists only in Redis to a file, and print its path.

    The data are tokens, node credentials, schedules, webhooks, owners of servers, labels, protection and expiry of
    snapshots, paused nodes, and the audit log.
    """
    settings = settings_of(ApiSettings, context, config)

    async def run(redis: Redis) -> tuple[Path, Written, list[str]]:
        store = Backup(redis)
        if any(folder.glob(_NAME)) and await store.has_lost(_life_of_newest(folder)):
            raise DataLost(
                f"Redis has lost the data of the backups in {folder}: restore the newest one. To go on without them,"
                " move them to another folder"
            )
        made_ms = await store.now_ms()
        name = _NAME.replace("*", datetime.fromtimestamp(made_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ"))
        last_id, life, merged = await store.last_id(), await store.life(), await store.merged()
        path = folder / name
        rows = store.all(life=life, audit=audit)
        written = await write(
            path, rows, made_ms=made_ms, last_id=last_id, recipient=recipient, life=life, merged=merged
        )
        failed = _conclude(folder, keep=keep, life=life)
        await store.made(made_ms)
        return path, written, failed

    try:
        path, written, failed = with_redis(settings.redis, run)
    except (DataLost, OSError) as error:
        fail(f"the backup was not written: {error}", code=1)
    typer.echo(f"{written.rows} rows, {written.file_bytes} bytes", err=True)
    typer.echo(path)
    if failed:
        fail(f"the backup was written, but {'; '.join(failed)}", code=1)


def _conclude(folder: Path, *, keep: int, life: str) -> list[str]:
    """Do what follows a backup. Returns what failed."""
    steps: dict[str, Callable[[], None]] = {
        "old ones are left": lambda: _tidy(folder, keep=keep),  # first, because it frees space
        f"{_LIFE} was not, so the next one may not notice that Redis has lost its data": lambda: _set(folder, life),
    }
    failed = []
    for what, step in steps.items():
        try:
            step()
        except OSError as error:
            failed.append(f"{what}: {error}")
    return failed


def _set(folder: Path, life: str) -> None:
    file = folder / _LIFE
    if _life_of_newest(folder) != life:
        file.unlink(missing_ok=True)  # none is better than a wrong one, which would refuse every backup from now on
        with new_file(file) as new:
            new.write(life.encode())


def _life_of_newest(folder: Path) -> str:
    """Empty if it is unknown: a release that did not write it made the newest backup."""
    try:
        return (folder / _LIFE).read_text()
    except FileNotFoundError:
        return ""


def _tidy(folder: Path, *, keep: int) -> None:
    for old in sorted(folder.glob(_NAME))[:-keep]:
        old.unlink(missing_ok=True)
    # files of killed backups, but not one that is being written
    for left in (*folder.glob(f".{_NAME}*.new"), *folder.glob(f".{_LIFE}*.new")):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                left.unlink()


def restore(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    *,
    audit: Annotated[
        bool,
        typer.Option(
            "--audit", help="Restore only the audit log, with the Redis account `audit` (--config audit.toml)."
        ),
    ] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Add missing data to a Redis that already has tokens.")
    ] = False,
    removed: Annotated[
        bool, typer.Option("--removed", help="With --merge: also what was removed since the backup.")
    ] = False,
    identity: Identity = None,
    config: Config = None,
) -> None:
    """Restore a backup into Redis after its data was lost. Existing data is not changed."""
    settings = settings_of(ApiSettings, context, config)
    try:
        found = BackupFile.open(file, identity=identity)
        if audit:
            entries = with_redis(settings.redis, lambda redis: Restore(redis).audit(found))
            typer.echo(f"{entries} entries of the audit log restored", err=True)
            return
        written = with_redis(
            settings.redis, lambda redis: _restore(redis, found, settings, merge=merge, removed=removed)
        )
    except AuditLogInUse:
        fail("the audit log has entries since the loss; only an empty one can be restored", code=1)
    except (BackupUnusable, OSError) as error:
        fail(f"{file}: {error}", code=1)
    print_table(("KIND", "RESTORED"), [(kind, str(number)) for kind, number in sorted(written.items())])


async def _restore(
    redis: Redis, found: BackupFile, settings: ApiSettings, *, merge: bool, removed: bool
) -> dict[str, int]:
    store = Restore(redis)
    if not merge and not found.has_tokens:
        fail(
            f"{found.path}: it has no tokens, because Redis had lost its data when it was made. Restore an older one;"
            " --merge restores this one",
            code=1,
        )
    if not merge and not await store.is_empty():
        fail(
            "Redis has tokens: its data is not lost, or a restore was interrupted. --merge adds the missing data",
            code=1,
        )
    if not removed and await store.has_lost_nothing(found):
        typer.echo(
            "Redis has lost nothing since this backup: missing records were deleted on purpose and are not restored. If"
            " Redis was reset to an earlier state, use --removed to restore them",
            err=True,
        )
    else:
        removed = True
    written = await store.records(found, now_ms=await Backup(redis).now_ms(), removed=removed)
    await record(audit_of(redis, settings), "restore", reason=found.path.name)
    return dict(written)
