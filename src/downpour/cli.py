"""The command line: each command opens something, calls the library, and prints what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from downpour.cli_federated import client, federated
from downpour.cli_options import (
    LocalPath,
    change_options,
    changed,
    changed_run,
    clear_errors,
    cluster_of,
    end_with,
    named_options,
    patient,
    secured,
    security_of,
    split_addresses,
)
from downpour.errors import SettingError
from downpour.local_path import WRITE_ELSEWHERE
from downpour.parent import follow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from downpour.plan.plan import Plan
    from downpour.run import Run
    from downpour.saved import SavedRun

BATCH_SIZE = 8192
AT_LEAST_1 = click.IntRange(min=1)
PORT = click.IntRange(0, 65535)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="downpour-ps", prog_name="downpour")
def main() -> None:
    """Train, evaluate and use PyTorch models whose embedding tables are keyed by raw ids.

    TARGET is a file or module with a function that returns a downpour.Run, `run` unless it says
    another: examples/movielens.py, my.package.model:small_run.
    """


main.add_command(federated)
main.add_command(client)


@main.command()
@click.argument("target")
@click.option(
    "--format",
    "form",
    type=click.Choice(["tree", "json", "prototxt", "downpour"]),
    default="tree",
    show_default=True,
    help="For people, for programs, as the description of Paddle's servers that Paddle itself "
    "reads, or as that description with all that Downpour adds.",
)
def plan(target: str, form: str) -> None:
    """Print the tables and programs of TARGET, without training.

    Bytes are of a step, estimated from the first batch.

    Example: downpour plan examples/movielens.py --format json
    """
    with clear_errors():
        import json

        from downpour.plan.text import as_dict, lines
        from downpour.plan.traffic import traffic_of
        from downpour.run_plan import first_batch, plan_with

        run = _load(target)
        example = first_batch(run)
        made = plan_with(run, example)
        if form == "prototxt":
            click.echo(_paddle_text(made), nl=False)
            return
        if form == "downpour":
            click.echo(str(made.fleet_desc()), nl=False)
            return
        traffic = traffic_of(made, example)
        if form == "json":
            click.echo(json.dumps(as_dict(made, traffic), indent=2))
        else:
            click.echo("\n".join(lines(made, traffic)))


@main.command()
@click.argument("target")
@click.option("--out", type=LocalPath(WRITE_ELSEWHERE), help="The run's folder [runs/NAME].")
@click.option("--quiet", is_flag=True, help="Print nothing but the last line.")
@click.option("--servers", type=int, help="Train on so many server processes.")
@click.option("--workers", type=int, help="And with so many worker processes [1].")
@click.option(
    "--connect", "addresses", help="HOST:PORT,... of servers that run, in place of --servers."
)
@click.option("--metrics-port", type=PORT, help="Where Prometheus finds the run's metrics.")
@changed
@patient
@secured
def train(
    target: str,
    out: Path | None,
    quiet: bool,
    servers: int | None,
    workers: int | None,
    addresses: str | None,
    metrics_port: int | None,
    epochs: int | None,
    seed: int | None,
    consistency: str | None,
    **settings: Any,
) -> None:
    """Train TARGET and write the run's folder, which the last line names.

    Without --servers and --connect the tables are in this process. With --connect the workers are
    started elsewhere, by `downpour worker`. Ctrl-C or SIGTERM stop after the step under way, keep
    what was trained, and exit with status 130 or 143. A second one stops at once, without saving.

    Example: downpour train examples/movielens.py --servers 2 --workers 2
    """
    with clear_errors():
        from downpour.folder import default_folder
        from downpour.train import Trainer
        from downpour.warm import is_compiled

        if servers is not None and addresses is not None:
            raise click.UsageError("--servers starts servers, --connect names some; give one")
        run = changed_run(target, epochs, seed, consistency)
        folder = out or default_folder(target)
        if not (quiet or is_compiled()):
            click.echo("planning; the first run on a machine compiles its kernels, about 20 s")
        if servers is None and addresses is None:
            if workers is not None or metrics_port is not None:
                raise click.UsageError("--workers and --metrics-port need --servers or --connect")
            trainer = Trainer(run, folder, quiet=quiet)
        else:
            from downpour.engine.chief import Chief

            trainer = Chief(
                target,
                run,
                folder,
                cluster=cluster_of(
                    settings,
                    servers=1 if servers is None else servers,
                    workers=1 if workers is None else workers,
                    addresses=split_addresses(addresses),
                    starts_workers=addresses is None,
                ),
                worker_options=change_options(epochs, seed, consistency),
                metrics_port=metrics_port,
                quiet=quiet,
            )
        with named_options({"MetricsServer": "--metrics-port"}):
            metrics = trainer.train()
        if not quiet:
            click.echo(_summary(metrics))
        click.echo(f"{folder}/ (report.html, metrics.json, plan.txt, events/, model/)")
        end_with(trainer.stopped_by, trainer.unwritten)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=PORT, default=0, show_default=True, help="0: any that is free.")
@click.option(
    "--max-message-mb",
    type=AT_LEAST_1,
    default=256,
    show_default=True,
    help="Limit of keys and values in one request.",
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="NAME=VALUE",
    help="Another limit, such as new_rows=1000000 or held_bytes=4GiB; may be repeated. "
    "docs/servers.md has them all.",
)
@click.option(
    "--save-root",
    type=LocalPath(WRITE_ELSEWHERE, file_okay=False),
    help="Where it writes its shard when a client asks.",
)
@click.option("--of-parent", is_flag=True, hidden=True)
@secured
def server(
    host: str,
    port: int,
    max_message_mb: int,
    limits: tuple[str, ...],
    save_root: Path | None,
    of_parent: bool,
    **settings: Any,
) -> None:
    """Serve a shard of the tables of the first client that connects.

    The first line says the address. Ctrl-C or SIGTERM end it, and its tables with it. Without a
    token it listens on this machine alone. With --tls-authority clients need certificates of their
    own.

    Example: downpour server --port 4600
    """
    with clear_errors(of_parent=of_parent):
        from downpour.limits import Limits
        from downpour.serving.process import run_server

        parent = follow() if of_parent else None
        run_server(
            host=host,
            port=port,
            security=security_of(settings, parent),
            limits=Limits.of_texts(limits, message_bytes=max_message_mb << 20),
            save_root=save_root,
            parent=parent,
        )


@main.command()
@click.argument("target")
@click.option("--servers", required=True, help="HOST:PORT,... of all servers, in their order.")
@click.option("--rank", type=int, required=True, help="Which worker this is, from 0.")
@click.option("--workers", type=int, required=True, help="How many workers the run has.")
@click.option("--run", "name", default="run", show_default=True, help="The run's name.")
@click.option("--chief", is_flag=True, help="`downpour train --connect` watches over the run.")
@click.option("--of-parent", is_flag=True, hidden=True)
@changed
@patient
@secured
def worker(
    target: str,
    servers: str,
    rank: int,
    workers: int,
    name: str,
    chief: bool,
    of_parent: bool,
    epochs: int | None,
    seed: int | None,
    consistency: str | None,
    **settings: Any,
) -> None:
    """Train TARGET as one of its workers, on servers that run.

    With --chief another process, `downpour train TARGET --connect HOST:PORT,... --workers N`,
    evaluates, shows and saves; without, the servers have what was trained, and nobody saves it.

    Example: downpour worker model.py --servers a:4600,b:4600 --rank 0 --workers 2
    """
    with clear_errors(of_parent=of_parent):
        from downpour.engine.worker_process import run_worker

        parent = follow() if of_parent else None
        cluster = cluster_of(
            settings,
            parent,
            addresses_option="--servers",
            workers=workers,
            addresses=split_addresses(servers),
        )
        if not 0 <= rank < workers:
            raise SettingError(
                f"--rank must be from 0 to {workers - 1}, as there are {workers} --workers, got "
                f"{rank}"
            )
        stopped_by = run_worker(
            changed_run(target, epochs, seed, consistency),
            cluster,
            rank=rank,
            name=name,
            with_chief=chief,
            parent=parent,
        )
        end_with(None if of_parent else stopped_by)


@main.command()
@click.argument("run_dir", type=LocalPath())
def report(run_dir: Path) -> None:
    """Write RUN_DIR/report.html anew from its metrics.json.

    Example: downpour report runs/movielens
    """
    with clear_errors():
        from downpour.disk import naming
        from downpour.report import write_report

        with naming(run_dir / "report.html"):
            click.echo(str(write_report(run_dir)))


@main.command()
@click.argument("run_dir", type=LocalPath())
@click.argument("file", nargs=-1, required=True)
@click.option(
    "--out",
    type=LocalPath(WRITE_ELSEWHERE),
    required=True,
    help="A file: .parquet, .csv, .tsv, .arrow ...",
)
@click.option("--batch-size", type=AT_LEAST_1, default=BATCH_SIZE, show_default=True)
def predict(run_dir: Path, file: tuple[str, ...], out: Path, batch_size: int) -> None:
    """Score each row of FILE with the model of RUN_DIR, in their order, in column `score`.

    FILE is read as the training data was (CSV, TSV, Parquet or Arrow), without its labels. The
    suffix of --out says the format that is written.

    Example: downpour predict runs/movielens new.parquet --out scores.parquet
    """
    with clear_errors():
        from downpour.scores import require_scores_file, write_scores

        require_scores_file(out, map(Path, file))
        saved, batches = _open(run_dir, file, batch_size, labels=False)
        rows = write_scores(out, saved.predict_all(batches))
        click.echo(f"{out}: {rows:,} scores")


@main.command("eval")
@click.argument("run_dir", type=LocalPath())
@click.argument("file", nargs=-1, required=True)
@click.option("--batch-size", type=AT_LEAST_1, default=BATCH_SIZE, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(run_dir: Path, file: tuple[str, ...], batch_size: int, as_json: bool) -> None:
    """Measure the model of RUN_DIR on FILE, which has labels: AUC, logloss, COPC.

    Where labels are other numbers than 0 and 1, RMSE and MAE as well. What is not defined for the
    labels is left out, and standard error says why; in JSON it is null, and `undefined` says why.

    Example: downpour eval runs/movielens test.parquet --json
    """
    with clear_errors():
        import json

        saved, batches = _open(run_dir, file, batch_size, labels=True)
        evaluation = saved.evaluate(batches)
        results = {**evaluation.results, "samples": evaluation.samples}
        if as_json:
            why = {"undefined": evaluation.undefined} if evaluation.undefined else {}
            click.echo(json.dumps(results | why))
            return
        for note in evaluation.notes:
            click.echo(note, err=True)
        click.echo(_results_text(results))


def _paddle_text(plan: Plan) -> str:
    """The description that Paddle reads, after comments on what it cannot hold."""
    lines = plan.extensions
    note = "Paddle's description has no field for these; --format downpour has them all:"
    said = [f"# {line}\n" for line in (note, *lines)] if lines else []
    return "".join([*said, str(plan.fleet_desc(extensions=False))])


def _load(target: str) -> Run:
    from downpour.target import load_run

    return load_run(target)


def _open(
    run_dir: Path, files: tuple[str, ...], batch_size: int, *, labels: bool
) -> tuple[SavedRun, Iterator[Any]]:
    import warnings

    from downpour.saved import load

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        saved = load(run_dir)
    for warning in told:
        click.echo(f"Warning: {warning.message}", err=True)
    return saved, saved.files(files, batch_size=batch_size, labels=labels).batches()


def _summary(metrics: dict[str, Any]) -> str:
    """One line on how the run ended."""
    words = {"finished": "finished", "early_stop": "stopped early", "interrupted": "interrupted"}
    parts = [words[metrics["stopped"]]]
    if metrics["samples_per_s"]:
        parts.append(f"{metrics['samples_per_s']:,.0f} samples/s")
    final = {k: v for k, v in metrics["final"].items() if k not in ("auc_bucketed", "seconds")}
    return "  ".join([*parts, _results_text(final)]).rstrip()


def _results_text(results: dict[str, Any]) -> str:
    return "  ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4f}"
        for name, value in results.items()
        if value is not None
    )
