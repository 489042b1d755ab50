"""Transpiled programs as people read them."""

from __future__ import annotations

from downpour.federated.methods import FedAvg, FedAvgM
from downpour.plan.program import Compute, PullSparse, PushSparse, WeighSamples
from downpour.transpile.ops import Listen, LocalStep
from downpour.transpile.programs import DistributedProgram
from tests.transpiled import SERVERS, transpiled

PLAIN = """\
trainer 0 of 2, the chief; sync; servers 127.0.0.1:6174, 127.0.0.1:6175

startup: 5 ops
  initialize  fc.bias      [0:64]        [64]       on 127.0.0.1:6174
  initialize  fc.weight:0  [0:8192]      [128, 64]  on 127.0.0.1:6175
  initialize  fc.weight:1  [8192:16384]  [128, 64]  on 127.0.0.1:6174
  initialize  head.bias    [0:1]         [1]        on 127.0.0.1:6175
  initialize  head.weight  [0:64]        [1, 64]    on 127.0.0.1:6174

recv: 6 ops
  recv           fc.bias      [0:64]        [64]       from 127.0.0.1:6174
  recv           fc.weight:0  [0:8192]      [128, 64]  from 127.0.0.1:6175
  recv           fc.weight:1  [8192:16384]  [128, 64]  from 127.0.0.1:6174
  recv           head.bias    [0:1]         [1]        from 127.0.0.1:6175
  recv           head.weight  [0:64]        [1, 64]    from 127.0.0.1:6174
  fetch_barrier  127.0.0.1:6174, 127.0.0.1:6175

local: 8 ops
  pull_sparse  embedding: user item
  compute      click
  push_sparse  embedding: user item
  pull_sparse  embedding: item
  pull_sparse  embedding: user
  pull_sparse  shop: shop
  compute      buy, no gradient for fc.bias
  push_sparse  embedding: item

send: 6 ops
  send          fc.bias@GRAD      [0:64]        [64]       to 127.0.0.1:6174
  send          fc.weight@GRAD:0  [0:8192]      [128, 64]  to 127.0.0.1:6175
  send          fc.weight@GRAD:1  [8192:16384]  [128, 64]  to 127.0.0.1:6174
  send          head.bias@GRAD    [0:1]         [1]        to 127.0.0.1:6175
  send          head.weight@GRAD  [0:64]        [1, 64]    to 127.0.0.1:6174
  send_barrier  127.0.0.1:6174, 127.0.0.1:6175

split:
  variable """

FEDERATED = """\
recv: 8 ops
  recv           fc.bias      [0:64]        [64]       from 127.0.0.1:6174
  recv           fc.weight:0  [0:8192]      [128, 64]  from 127.0.0.1:6175
  recv           fc.weight:1  [8192:16384]  [128, 64]  from 127.0.0.1:6174
  recv           head.bias    [0:1]         [1]        from 127.0.0.1:6175
  recv           head.weight  [0:64]        [1, 64]    from 127.0.0.1:6174
  pull_sparse    embedding: user item
  pull_sparse    shop: shop
  fetch_barrier  127.0.0.1:6174, 127.0.0.1:6175

local: 4 ops
  compute     click
  local_step  click: fc.bias fc.weight, rows of embedding
  compute     buy, no gradient for fc.bias
  local_step  buy: fc.weight head.bias head.weight, rows of embedding

send: 7 ops
  send          fc.bias@UPDATE      [0:64]        [64]       to 127.0.0.1:6174
  send          fc.weight@UPDATE:0  [0:8192]      [128, 64]  to 127.0.0.1:6175
  send          fc.weight@UPDATE:1  [8192:16384]  [128, 64]  to 127.0.0.1:6174
  send          head.bias@UPDATE    [0:1]         [1]        to 127.0.0.1:6175
  send          head.weight@UPDATE  [0:64]        [1, 64]    to 127.0.0.1:6174
  push_sparse   embedding: user item
  send_barrier  127.0.0.1:6174, 127.0.0.1:6175"""

SERVER = """\
pserver 127.0.0.1:6174: 9 ops
  average       fc.bias@GRAD      [0:64]        [64]       mean of 2 trainers, by samples
  apply         fc.bias           [0:64]        [64]       SGD(lr=0.1)
  average       fc.weight@GRAD:1  [8192:16384]  [128, 64]  mean of 2 trainers, by samples
  apply         fc.weight:1       [8192:16384]  [128, 64]  SGD(lr=0.1)
  average       head.weight@GRAD  [0:64]        [1, 64]    mean of 2 trainers, by samples
  apply         head.weight       [0:64]        [1, 64]    SGD(lr=0.1)
  average_rows  embedding: mean of 2 trainers, by samples
  apply_rows    embedding: Adagrad(lr=0.1)
  listen        127.0.0.1:6174: 2 trainers, in rounds"""

AVERAGING = """\
pserver 127.0.0.1:6175: 7 ops
  average       fc.weight@UPDATE:0  [0:8192]  [128, 64]  mean of 2 trainers, each alike
  apply         fc.weight:0         [0:8192]  [128, 64]  Momentum(lr=1.0)
  average       head.bias@UPDATE    [0:1]     [1]        mean of 2 trainers, each alike
  apply         head.bias           [0:1]     [1]        Momentum(lr=1.0)
  average_rows  embedding: mean of 2 trainers that touched a row, each alike
  apply_rows    embedding: Momentum(lr=1.0)
  listen        127.0.0.1:6175: 2 trainers, in rounds"""


def test_a_trainers_programs_print() -> None:
    assert str(transpiled()).startswith(PLAIN)


def test_a_federations_programs_print() -> None:
    made = transpiled(federation=FedAvg(local_steps=5))
    assert "\n\n".join(map(str, made.trainer_programs)) == FEDERATED
    assert FEDERATED in str(made)


def test_a_servers_program_prints() -> None:
    method = FedAvgM(weighting="equal", rows_over="touched")
    assert str(transpiled().pserver_program(SERVERS[0])) == SERVER
    assert str(transpiled(federation=method).pserver_program(SERVERS[1])) == AVERAGING
    assert str(transpiled().pserver_startup(SERVERS[1])).startswith("startup 127.0.0.1:6175: 2 ops")


def test_rare_ops_print_too() -> None:
    names = tuple(f"feature_{number}" for number in range(300))
    ops = (
        WeighSamples("embedding", "user", 4.0, 2.0),
        Compute("fit", ("out.bias",), ("tower", "gate")),
        PushSparse("embedding", ("user",), times_batch_size=True, counts=("user",)),
        LocalStep("fit", (), ("embedding",)),
        PullSparse("embedding", names),
        Listen("[::1]:6174", 1, False),
    )
    said = str(DistributedProgram("local", ops)).splitlines()
    assert said[:5] == [
        "local: 6 ops",
        "  weigh_samples  embedding: user, shown less than 4 times, ratio 2",
        "  compute        fit, no gradient for out.bias, output detached of tower gate",
        "  push_sparse    embedding: user, * batch size, counts show and click of user",
        "  local_step     fit: rows of embedding",
    ]
    assert said[5].endswith("feature_6 and 293 more")
    assert said[6] == "  listen         [::1]:6174: 1 trainer, each push as it comes"
