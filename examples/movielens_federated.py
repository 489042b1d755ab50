"""The model of movielens.py, trained by 20 clients that keep their ratings to themselves.

    downpour federated examples/movielens_federated.py --clients 20

Each client has the users of its own: all that a user rated in the time to train on is at one
client. So clients differ in how many ratings they have, in what their users like, and in which
films they know of.
"""

from functools import partial

import numpy as np
import torch
from movielens import SCHEMA, DeepFM, like
from movielens_data import load, split

import downpour as dp


def ratings_of(client: int, clients: int) -> dp.Frame:
    """The ratings to train on of a client's users."""
    train, _ = split(load(), 0.8, 0.2)
    is_own = train["user"].to_numpy().astype(np.int64) % clients == client
    return dp.Frame(train.filter(is_own), SCHEMA, batch_size=256, shuffle_seed=client)


def federation() -> dp.Federation:
    _, test = split(load(), 0.8, 0.2)
    return dp.Federation(
        model=DeepFM(),
        losses=[like],
        data=ratings_of,
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        clients=20,
        rounds=20,
        method=dp.FedAvg(),
        eval_data=dp.Frame(test, SCHEMA, batch_size=4096),
    )
