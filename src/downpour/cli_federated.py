"""The commands of federated training: its coordinator, and a client."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from downpour.cli_options import (
    LocalPath,
    as_options,
    clear_errors,
    cluster_of,
    end_with,
    named_options,
    patient_rounds,
    secured,
    split_addresses,
)
from downpour.errors import SettingError
from downpour.local_path import WRITE_ELSEWHERE
from downpour.parent import follow

if TYPE_CHECKING:
    from pathlib import Path

    from downpour.federated.federation import Federation


@click.command()
@click.argument("target")
@click.option("--clients", type=int, help="How many clients there are, in place of its own number.")
@click.option("--rounds", type=int, help="How many rounds, in place of its own number.")
@click.option("--seed", type=int, help="In place of its own.")
@click.option("--servers", type=int, help="Average on so many server processes [1].")
@click.option(
    "--connect",
    "addresses",
    help="HOST:PORT,... of servers that run, in place of --servers; clients come from elsewhere.",
)
@click.option("--out", type=LocalPath(WRITE_ELSEWHERE), help="The run's folder [runs/NAME].")
@click.option("--quiet", is_flag=True, help="Print nothing but the last line.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with each round.")
@patient_rounds
@secured
def federated(
    target: str,
    clients: int | None,
    rounds: int | None,
    seed: int | None,
    servers: int | None,
    addresses: str | None,
    out: Path | None,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Run the federation of TARGET, whose function `federation` returns a downpour.Federation.

    On this machine each client and server is a process. With --connect the clients are started
    elsewhere, by `downpour client`. Ctrl-C or SIGTERM close the round under way, keep what was
    trained, and exit with status 130 or 143. A second one stops at once, without saving.

    Example: downpour federated examples/movielens_federated.py --clients 20
    """
    with clear_errors():
        import json

        from downpour.engine.coordinator import Coordinator
        from downpour.folder import default_folder
        from downpour.warm import is_compiled

        if servers is not None and addresses is not None:
            raise click.UsageError("--servers starts servers, --connect names some; give one")
        federation = _changed(target, clients, rounds, seed)
        folder = out or default_folder(target)
        if not (quiet or as_json or is_compiled()):
            click.echo("planning; the first run on a machine compiles its kernels, about 20 s")
        coordinator = Coordinator(
            target,
            federation,
            folder,
            cluster=cluster_of(
                settings,
                servers=1 if servers is None else servers,
                addresses=split_addresses(addresses),
                starts_workers=addresses is None,
            ),
            changes=as_options({"--rounds": rounds, "--seed": seed}),
            quiet=quiet or as_json,
        )
        metrics = coordinator.train()
        if as_json:
            told = ("stopped", "final", "samples_per_s", "rounds")
            click.echo(json.dumps({"folder": str(folder), **{it: metrics[it] for it in told}}))
        else:
            click.echo(f"{folder}/ (report.html, metrics.json, plan.txt, events/, model/)")
        end_with(coordinator.stopped_by, coordinator.unwritten)


@click.command()
@click.argument("target")
@click.option("--servers", required=True, help="HOST:PORT,... of all servers, in their order.")
@click.option("--client", "number", type=int, required=True, help="Which client this is, from 0.")
@click.option("--clients", type=int, help="How many there are, in place of the target's number.")
@click.option("--rounds", type=int, hidden=True)
@click.option("--seed", type=int, help="In place of its own.")
@click.option("--of-parent", is_flag=True, hidden=True)
@patient_rounds
@secured
def client(
    target: str,
    servers: str,
    number: int,
    clients: int | None,
    rounds: int | None,
    seed: int | None,
    of_parent: bool,
    **settings: Any,
) -> None:
    """Take part in the federation of TARGET as one of its clients, until it is over.

    It asks TARGET for the data of this client alone. One that was stopped may be started again,
    in the middle of a federation as well.

    Example: downpour client model.py --servers a:4600,b:4600 --client 3
    """
    with clear_errors(of_parent=of_parent):
        import logging

        from downpour.engine.client_process import run_client

        parent = follow() if of_parent else None
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s"
        )
        federation = _changed(target, clients, rounds, seed)
        if not 0 <= number < federation.clients:
            raise SettingError(
                f"--client must be from 0 to {federation.clients - 1}, as a federation of "
                f"{federation.clients} clients has them, got {number}"
            )
        cluster = cluster_of(
            settings, parent, addresses_option="--servers", addresses=split_addresses(servers)
        )
        stopped_by = run_client(federation, cluster, client=number, parent=parent)
        end_with(None if of_parent else stopped_by)


def _changed(target: str, clients: int | None, rounds: int | None, seed: int | None) -> Federation:
    """The federation of a target, with what the command line changes in it."""
    from downpour.federated.federation import Federation
    from downpour.target import load

    federation = load(target, "federation", Federation)
    given: dict[str, Any] = {"clients": clients, "rounds": rounds, "seed": seed}
    changes = {k: v for k, v in given.items() if v is not None}
    with named_options({f"Federation.{name}": f"--{name}" for name in changes}):
        return replace(federation, **changes)
