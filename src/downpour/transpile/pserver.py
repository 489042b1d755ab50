"""A server of transpiled programs: its first values, and that it serves."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from downpour.deployment import Deployment
from downpour.parameters import DenseBlock, dense_parameters
from downpour.plan.sections import Layout
from downpour.plan.startup import start
from downpour.serving.flight_server import LOOK_S, FlightServer, serve
from downpour.serving.service import Service
from downpour.transfer import HOST, Transfer, device_of
from downpour.transpile.ops import Initialize

if TYPE_CHECKING:
    import torch

    from downpour.security import Security
    from downpour.transpile.programs import DistributedProgram
    from downpour.transpile.transpiler import Transpiled


class ParameterServers:
    """Runs the startup and the main program of servers, each with the tables of its endpoint.

    A trainer that connects finds these tables, and the plan that they are of.
    """

    def __init__(self, transpiled: Transpiled, security: Security | None) -> None:
        self._transpiled, self._security = transpiled, security
        self._services: dict[str, Service] = {}  # by endpoint
        self._making = threading.Lock()
        self._is_to_stop = threading.Event()

    def stop(self) -> None:
        """Let what serves, on another thread, come to its end; who comes later ends at once."""
        self._is_to_stop.set()

    def start(self, program: DistributedProgram, model: torch.nn.Module) -> None:
        """Give the sections of a server their first values, unless they have some."""
        made = self._transpiled
        start(made.plan, model)
        transfer = Transfer(device_of(model, HOST))
        parameters = dense_parameters(model)
        tables = {op.section.table for op in program.ops_of(Initialize)}
        hosted = self._service(program).hosted
        for spec in made.plan.dense:
            if spec.name not in tables:
                continue
            flat = DenseBlock(spec, parameters, transfer).read()
            layout = Layout(spec, len(made.endpoints), made.config.sections)
            share = next(it for it in layout.shares if it.server == hosted.shard)
            with hosted.locks[spec.name]:
                hosted.server.init_dense(spec.name, share.take(flat))

    def serve(self, program: DistributedProgram) -> None:
        """Serve until `stop` or Ctrl-C, and then until nobody is connected.

        Raises SettingError where it cannot listen at its endpoint.
        """
        host, _, port = str(program.endpoint).rpartition(":")
        server = FlightServer(
            self._service(program), host=host.strip("[]"), port=int(port), security=self._security
        )
        try:
            has_ended = serve(server, self._is_to_stop.is_set)
        except KeyboardInterrupt:
            has_ended = server.end()
        if not has_ended:
            _await_clients(server)

    def _service(self, program: DistributedProgram) -> Service:
        """The tables of a server, made once: its programs are about the same."""
        endpoint, made = str(program.endpoint), self._transpiled
        with self._making:
            if endpoint not in self._services:
                deployment = Deployment(
                    plan=made.plan, num_shards=len(made.endpoints), sections=made.config.sections
                )
                shard = made.endpoints.index(endpoint)
                self._services[endpoint] = Service(deployment, shard)
            return self._services[endpoint]


def _await_clients(server: FlightServer) -> None:
    """Wait for streams that Flight still serves: Python must not end under them.

    They end with the next request of their client, or with its process. Ctrl-C ends the wait.
    """
    waiting = threading.Thread(target=server.wait, name="downpour wait", daemon=True)
    waiting.start()
    while waiting.is_alive():
        waiting.join(LOOK_S)
