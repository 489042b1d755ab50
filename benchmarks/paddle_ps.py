"""The reference job of `servers` on Paddle's parameter server.

The interpreter that runs it has paddlepaddle==2.6.2, numpy<2, protobuf 3.20 and setuptools, and
nothing of Downpour or torch: PADDLE_PYTHON benchmarks/paddle_ps.py FOLDER, where FOLDER has what
`train_step_job` saves. It starts the servers and trainers, and prints one line of JSON.

It is Paddle's own way of training at scale: asynchronous, `train_from_dataset` over data that is
in memory, Adagrad in a MemorySparseTable whose rows have no condition to fulfil.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN = (256, 128)
INITIAL_G2SUM = 1e-4  # Paddle steps by lr * g * sqrt(initial / (initial + sum of g * g))
TIMEOUT_S = 600.0
TABLE = "embedding"
OPTIONS = ("servers", "trainers", "threads", "warmup")
LOSS = re.compile(r"loss\[\d\]:\[([0-9.e-]+)\]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--trainers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of a trainer, a batch each")
    parser.add_argument("--warmup", type=int, default=20, help="batches of all trainers together")
    asked = parser.parse_args()
    asked.folder = asked.folder.resolve()
    if "TRAINING_ROLE" in os.environ:
        take_part(asked)
        return
    job = json.loads((asked.folder / "job.json").read_text())
    write_batches(asked.folder, job)
    print(json.dumps(run(asked, job)))


# The process that starts the others.


def run(asked: argparse.Namespace, job: dict[str, Any]) -> dict[str, Any]:
    """Start servers and trainers, wait for the trainers, and sum up what they say."""
    ports = free_ports(asked.servers + asked.trainers)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    common = {
        "PADDLE_PSERVERS_IP_PORT_LIST": ",".join(addresses[: asked.servers]),
        "PADDLE_TRAINER_ENDPOINTS": ",".join(addresses[asked.servers :]),
        "PADDLE_TRAINERS_NUM": str(asked.trainers),
        "POD_IP": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    options = [f"--{name}={getattr(asked, name)}" for name in OPTIONS]
    servers: list[tuple[subprocess.Popen[bytes], Path]] = []
    trainers: list[tuple[subprocess.Popen[bytes], Path]] = []
    try:
        for number, port in enumerate(ports):
            rank = number - asked.servers
            role = "PSERVER" if rank < 0 else "TRAINER"
            own = {"TRAINING_ROLE": role, "PADDLE_PORT": str(port)}
            own["PADDLE_TRAINER_ID"] = str(max(rank, 0))
            log = (asked.folder / f"paddle-{role.lower()}-{number}.log").open("w")
            process = subprocess.Popen(
                [sys.executable, Path(__file__).resolve(), asked.folder, *options],
                cwd=asked.folder,  # Paddle leaves files where it runs
                env={**os.environ, **common, **own},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            (servers if rank < 0 else trainers).append((process, Path(log.name)))
        for process, log in trainers:
            if process.wait(TIMEOUT_S):
                last = log.read_text().strip().splitlines()[-1:]
                sys.exit(f"a trainer ended with {process.returncode}: {''.join(last)[:500]}")
    finally:
        for process, _ in [*trainers, *servers]:
            if process.poll() is None:
                process.kill()
            process.wait()
    return summary(asked, job, [log.read_text() for _, log in trainers])


def summary(asked: argparse.Namespace, job: dict[str, Any], logs: list[str]) -> dict[str, Any]:
    """Samples a second of all trainers, each over its own time, and the first's losses."""
    said = [json.loads(log[log.rindex('{"steps"') :].splitlines()[0]) for log in logs]
    losses = [float(loss) for loss in LOSS.findall(logs[0])]
    return {
        "samples_per_s": sum(job["batch_size"] * it["steps"] / it["seconds"] for it in said),
        "steps": sum(it["steps"] for it in said),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "versions": said[0]["versions"],
        **{name: getattr(asked, name) for name in OPTIONS},
    }


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [it.getsockname()[1] for it in sockets]
    for it in sockets:
        it.close()
    return ports


def write_batches(folder: Path, job: dict[str, Any]) -> None:
    """Each batch as a text file as Paddle's data feed reads it: number and values of each slot."""
    ids, dense, labels = (np.load(folder / f"{it}.npy") for it in ("ids", "dense", "labels"))
    for number in range(job["num_batches"]):
        path = batch_file(folder, number)
        if path.exists():
            continue
        lines = [
            " ".join(f"1 {one}" for one in sample)
            + f" {len(columns)} "
            + " ".join(f"{one:.5f}" for one in columns)
            + f" 1 {label:.0f}"
            for sample, columns, label in zip(
                ids[number].tolist(), dense[number].tolist(), labels[number].tolist(), strict=True
            )
        ]
        path.write_text("\n".join(lines) + "\n")


def batch_file(folder: Path, number: int) -> Path:
    return folder / f"paddle-batch-{number}.txt"


# A server or a trainer.


def take_part(asked: argparse.Namespace) -> None:
    """Be the server or the trainer that the environment says."""
    paddle: Any = importlib.import_module("paddle")  # only this interpreter has it
    fleet: Any = importlib.import_module("paddle.distributed.fleet")
    paddle.enable_static()
    # Printing one needs a part of protobuf that Python 3.11 has no wheel of.
    fleet.DistributedStrategy.__repr__ = object.__repr__
    job = json.loads((asked.folder / "job.json").read_text())
    fleet.init(is_collective=False)
    inputs, loss = network(paddle, job)
    adam = paddle.optimizer.Adam(job["dense_lr"])
    fleet.distributed_optimizer(adam, strategy(fleet, job)).minimize(loss)
    if fleet.is_server():
        fleet.init_server()
        fleet.run_server()
        return
    executor = paddle.static.Executor(paddle.CPUPlace())
    executor.run(paddle.static.default_startup_program())
    fleet.init_worker()
    share = range(fleet.worker_index(), job["num_batches"], asked.trainers)
    warmup = asked.warmup // asked.trainers
    seconds = []
    for numbers in (share[:warmup], share[warmup:]):
        data = dataset(paddle, asked, job, inputs, numbers)
        fleet.barrier_worker()
        start = time.monotonic()
        executor.train_from_dataset(
            loss.block.program, data, paddle.static.global_scope(), asked.threads,
            fetch_list=[loss], fetch_info=["loss"], print_period=10,
        )  # fmt: skip
        seconds.append(time.monotonic() - start)
    fleet.barrier_worker()
    versions = {"paddlepaddle": paddle.__version__}
    said = {"steps": len(share[warmup:]), "seconds": seconds[1], "versions": versions}
    print(json.dumps(said), flush=True)
    fleet.stop_worker()


def network(paddle: Any, job: dict[str, Any]) -> tuple[list[Any], Any]:
    """The inputs, ids, dense columns and label, and the mean loss of the reference network."""
    static, bound = paddle.static, job["init_bound"]
    ids = [static.data(f"c{place}", [None, 1], "int64") for place in range(job["num_features"])]
    dense = static.data("dense", [None, job["num_dense"]], "float32")
    label = static.data("label", [None, 1], "float32")
    rows = []
    for column in ids:
        initial = paddle.nn.initializer.Uniform(-bound, bound)
        row = static.nn.sparse_embedding(
            column,
            size=[job["num_ids"], job["dim"]],
            param_attr=paddle.ParamAttr(name=TABLE, initializer=initial),
        )
        rows.append(paddle.reshape(row, [-1, job["dim"]]))
    hidden = paddle.concat([*rows, dense], axis=1)
    for width in HIDDEN:
        hidden = static.nn.fc(hidden, width, activation="relu")
    logits = static.nn.fc(hidden, 1)
    losses = paddle.nn.functional.binary_cross_entropy_with_logits(logits, label)
    return [*ids, dense, label], paddle.mean(losses)


def strategy(fleet: Any, job: dict[str, Any]) -> Any:
    """Asynchronous, with Adagrad in the sparse table; a row is one weight and its other ones."""
    rule = {
        "sparse_optimizer": "std_adagrad",
        "sparse_learning_rate": job["embedding_lr"] / INITIAL_G2SUM**0.5,
        "sparse_initial_g2sum": INITIAL_G2SUM,
        "sparse_initial_range": job["init_bound"],
    }
    table = {
        "sparse_table_class": "DownpourSparseTable",
        "sparse_accessor_class": "DownpourSparseValueAccessor",
        "sparse_embedx_dim": job["dim"] - 1,
        "sparse_embedx_threshold": 0,
        **{f"{part}_{name}": value for part in ("embed", "embedx") for name, value in rule.items()},
    }
    made = fleet.DistributedStrategy()
    made.a_sync = True
    made.fleet_desc_configs = {"use_cvm": False, TABLE: table}
    return made


def dataset(
    paddle: Any, asked: argparse.Namespace, job: dict[str, Any], inputs: list[Any], numbers: range
) -> Any:
    """The batches of these numbers, read before anything is timed."""
    data = paddle.distributed.InMemoryDataset()
    data.init(
        batch_size=job["batch_size"],
        thread_num=asked.threads,
        use_var=inputs,
        pipe_command="cat",
    )
    data.set_filelist([str(batch_file(asked.folder, number)) for number in numbers])
    data.load_into_memory()
    return data


if __name__ == "__main__":
    main()
