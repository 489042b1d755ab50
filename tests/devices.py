"""The devices that tests of a GPU run on: a GPU where there is one, and everywhere another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from tests.pretend_device import pretend_device

if TYPE_CHECKING:
    from collections.abc import Iterator

GPU = torch.device("cuda", 0)
has_gpu = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not has_gpu, reason="needs a GPU")


@pytest.fixture(params=["pretend", pytest.param("cuda", marks=needs_gpu)])
def any_device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """A device that is not the CPU."""
    if request.param == "cuda":
        yield torch.device("cuda", torch.cuda.current_device())
        return
    with pretend_device() as pretended:
        yield pretended
