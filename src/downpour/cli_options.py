"""What several commands have alike: their errors, and options with what they say."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from downpour.errors import DownpourError, SettingError
from downpour.local_path import READ_ELSEWHERE, local_path
from downpour.tracebacks import is_users, users_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from downpour.engine.cluster import Cluster
    from downpour.parent import Parent
    from downpour.run import Run
    from downpour.security import Security


@contextlib.contextmanager
def clear_errors(*, of_parent: bool = False) -> Iterator[None]:
    """Errors that Downpour raises on purpose are a line, not a traceback; those of the user's code
    have a traceback of that code alone.

    Ctrl-C and SIGTERM end the command with the status that a shell gives for them, 130 and 143.
    of_parent: of a process that a run has started, and ends.
    """
    from downpour.stopping import SIGNALLED, raising

    try:
        with raising(hard=not of_parent):
            yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except KeyboardInterrupt as error:
        click.echo(f"Error: {_line(str(error) or 'stopped by Ctrl-C', error)}", err=True)
        raise SystemExit(SIGNALLED + getattr(error, "number", signal.SIGINT)) from error
    except Exception as error:
        if is_users(error) and not isinstance(error, DownpourError):
            click.echo(users_text(error), err=True)
            raise SystemExit(1) from None
        if not isinstance(error, DownpourError | OSError):
            raise
        raise click.ClickException(_line(str(error), error)) from error


def _line(text: str, error: BaseException) -> str:
    """An error and its notes in one line."""
    return " ".join("; ".join([text, *getattr(error, "__notes__", [])]).split())


class LocalPath(click.Path):
    """A path of this machine, in which `~` is the user's home."""

    def __init__(self, way_out: str = READ_ELSEWHERE, **settings: Any) -> None:
        super().__init__(path_type=Path, **settings)
        self._way_out = way_out

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Make the path; a usage error for an address of elsewhere."""
        try:
            value = local_path(value, param.opts[0] if param else "path", self._way_out)
        except SettingError as error:
            raise click.UsageError(str(error), ctx) from error
        return super().convert(value, param, ctx)


@contextlib.contextmanager
def named_options(options: Mapping[str, str]) -> Iterator[None]:
    """Errors name the options that were typed, not the settings that these stand for.

    options: by the name that a setting has in errors, as `Cluster.servers`.
    """
    try:
        yield
    except SettingError as error:
        text = str(error)
        for setting in sorted(options, key=len, reverse=True):
            text = text.replace(setting, options[setting])
        raise SettingError(text) from error


def secured(command: Any) -> Any:
    """The options of a connection's security, of both its ends."""
    path = LocalPath(dir_okay=False)
    for option in (
        click.option("--tls-authority", type=path, help="Certificates that sign the other end's."),
        click.option("--tls-key", type=path, help="The key of --tls-certificate."),
        click.option("--tls-certificate", type=path, help="This end's own, a PEM file."),
        click.option("--token-file", type=path, help="The file of the token that all must bring."),
    ):
        command = option(command)
    return command


def _timed(silent: str, whom: str) -> tuple[Any, ...]:
    """The options that all have who wait for servers and others; option `silent` is of others."""
    help_ = f"Seconds of silence after which a {whom} is lost."
    return (
        click.option(
            "--split/--no-split",
            default=True,
            show_default=True,
            help="Split parameters over servers, or keep each whole on one.",
        ),
        click.option(
            "--placement",
            type=click.Choice(["round_robin", "hash"]),
            default="round_robin",
            show_default=True,
            help="Of the parts of dense tables on servers.",
        ),
        click.option(
            "--min-section",
            type=int,
            default=8192,
            show_default=True,
            help="Elements below which a parameter is not split over servers.",
        ),
        click.option(
            "--start", type=float, default=180.0, show_default=True, help="Seconds for all to come."
        ),
        click.option(silent, "silence", type=float, default=10.0, show_default=True, help=help_),
        click.option(
            "--deadline", type=float, default=30.0, show_default=True, help="Seconds a request."
        ),
    )


def patient(command: Any) -> Any:
    """The options of how long a run with servers waits, and what for."""
    for option in (
        *_timed("--worker-timeout", "worker"),
        click.option(
            "--on-worker-loss",
            type=click.Choice(["stop", "continue"]),
            default="stop",
            show_default=True,
        ),
    ):
        command = option(command)
    return command


def patient_rounds(command: Any) -> Any:
    """The options of how long a federation waits, and what for."""
    for option in _timed("--client-timeout", "client"):
        command = option(command)
    return command


def changed(command: Any) -> Any:
    """The options that change a run; a worker must be given those of its chief."""
    for option in (
        click.option(
            "--consistency",
            type=click.Choice(["sync", "async", "half-async", "geo"]),
            help="Instead of the run's own, with its defaults.",
        ),
        click.option("--seed", type=int, help="Instead of the run's own."),
        click.option("--epochs", type=int, help="Instead of the run's own number."),
    ):
        command = option(command)
    return command


def changed_run(target: str, epochs: int | None, seed: int | None, consistency: str | None) -> Run:
    """The run of a target, with what the command line changes in it."""
    from downpour.consistency import BY_NAME
    from downpour.target import load_run

    run = load_run(target)
    given: dict[str, Any] = {"epochs": epochs, "seed": seed}
    if consistency is not None and not isinstance(run.consistency, BY_NAME[consistency]):
        given["consistency"] = BY_NAME[consistency]()
    with named_options({"Run.epochs": "--epochs", "Run.seed": "--seed"}):
        return replace(run, **{k: v for k, v in given.items() if v is not None})


def change_options(epochs: int | None, seed: int | None, consistency: str | None) -> list[str]:
    """The options of `changed_run`, for the command line of a worker."""
    return as_options({"--epochs": epochs, "--seed": seed, "--consistency": consistency})


def as_options(given: Mapping[str, object]) -> list[str]:
    """Options that were given, for another command line."""
    return [str(part) for name, v in given.items() if v is not None for part in (name, v)]


def cluster_of(
    settings: dict[str, Any],
    parent: Parent | None = None,
    *,
    addresses_option: str = "--connect",
    **more: Any,
) -> Cluster:
    """What `patient` or `patient_rounds`, and `secured` options say.

    addresses_option: that which names the servers, for errors.
    """
    from downpour.engine.cluster import Cluster
    from downpour.plan.sections import Sections

    is_of_workers = "on_worker_loss" in settings
    if is_of_workers:
        more["on_worker_loss"] = settings["on_worker_loss"]
    options = {
        "Cluster.servers": "--servers",
        "Cluster.workers": "--workers",
        "Cluster.addresses": addresses_option,
        "Cluster.deadline_s": "--deadline",
        "Cluster.worker_timeout_s": "--worker-timeout" if is_of_workers else "--client-timeout",
        "Cluster.start_s": "--start",
        "Sections.min_size": "--min-section",
    }
    with named_options(options):
        return Cluster(
            deadline_s=settings["deadline"],
            worker_timeout_s=settings["silence"],
            start_s=settings["start"],
            sections=Sections(
                min_size=settings["min_section"],
                placement=settings["placement"],
                split=settings["split"],
            ),
            security=security_of(settings, parent),
            **more,
        )


def security_of(settings: dict[str, Any], parent: Parent | None = None) -> Security:
    """What `secured` options say; a process that a run has started is told the token by that."""
    from downpour.security import Security

    options = {
        "Security.token": "the token of --token-file",
        "Security.certificate": "--tls-certificate",
        "Security.key": "--tls-key",
        "Security.authority": "--tls-authority",
    }
    with named_options(options):
        security = Security.of_files(
            token_file=settings["token_file"],
            certificate=settings["tls_certificate"],
            key=settings["tls_key"],
            authority=settings["tls_authority"],
        )
    return security if parent is None else replace(security, token=parent.token)


def split_addresses(addresses: str | None) -> tuple[str, ...]:
    """HOST:PORT,... one by one."""
    return () if addresses is None else tuple(part.strip() for part in addresses.split(","))


def end_with(stopped_by: int | None, unwritten: Sequence[str] = ()) -> None:
    """End the command: with a status that says what has stopped it, or could not be written."""
    from downpour.stopping import SIGNALLED

    for each in unwritten:
        click.echo(f"Error: {each}", err=True)
    if stopped_by is not None:
        raise SystemExit(SIGNALLED + stopped_by)
    if unwritten:
        raise SystemExit(1)
