"""Between numpy on the host and torch on a model's device: rows go there, gradients come back.

On a GPU both go through pinned memory, on a stream of their own, while the model computes. That
memory is torch's: a buffer that nobody holds is used again once its copies have ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from downpour.errors import SettingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

HOST = torch.device("cpu")
KINDS = ("cpu", "cuda")


def checked_device(name: str, value: object) -> torch.device:
    """The device that a setting names, a GPU with its number. SettingError where it is not there.

    value: "cpu", "cuda", "cuda:N" or such a torch.device; "cuda" is torch's current GPU.
    """
    wanted = f"{name} must be 'cpu', 'cuda', 'cuda:N' or such a torch.device, got {value!r}"
    if not isinstance(value, (str, torch.device)):
        raise SettingError(wanted)
    try:
        device = torch.device(value)
    except RuntimeError as error:
        raise SettingError(wanted) from error
    if device.type not in KINDS:
        raise SettingError(wanted)
    if device.type == "cpu":
        return HOST
    if not torch.cuda.is_available():
        raise SettingError(
            f"{name} is {str(device)!r}, and torch {torch.__version__} finds no GPU; use 'cpu', or "
            "install torch with CUDA and a driver for it"
        )
    number = cast("int | None", device.index)
    if number is None:
        number = torch.cuda.current_device()
    if number >= torch.cuda.device_count():
        raise SettingError(
            f"{name} is {str(device)!r}, and torch finds {torch.cuda.device_count()} GPUs, "
            "numbered from 0"
        )
    return torch.device("cuda", number)


def device_of(model: torch.nn.Module, default: str | torch.device = HOST) -> torch.device:
    """Where a model's parameters are, or its buffers; `default` where it has neither.

    Raises SettingError where they are on several devices.
    """
    for tensors in (model.parameters(), model.buffers()):
        devices = {tensor.device for tensor in tensors}
        if len(devices) > 1:
            raise SettingError(
                f"the model is on {', '.join(sorted(map(str, devices)))}; it must be on one "
                "device, as after model.to(device)"
            )
        if devices:
            return devices.pop()
    return torch.device(default)


def placed(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A tensor of an array on a device, in its turn among what is computed there.

    On the host it shares the array's memory.
    """
    if device.type == "cuda":
        return _pinned(array, device).to(device, non_blocking=True)
    # torch warns of memory that is read-only.
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device, in its turn among what is computed there; itself if it is there."""
    if device.type == "cuda" and tensor.device == HOST:
        with torch.cuda.device(device):
            return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Sent:
    """An array on its way to the device."""

    __slots__ = ("_end", "_tensor")

    def __init__(self, tensor: torch.Tensor, end: torch.cuda.Event | None = None) -> None:
        self._tensor, self._end = tensor, end

    def tensor(self) -> torch.Tensor:
        """It there; what this thread's stream computes from now on waits for it, the host not."""
        if self._end is not None:
            stream = torch.cuda.current_stream(self._tensor.device)
            stream.wait_event(self._end)
            self._tensor.record_stream(stream)  # else its memory is free for the next copy
        return self._tensor


class Fetched:
    """A tensor on its way to the host."""

    __slots__ = ("_end", "_tensor")

    def __init__(self, tensor: torch.Tensor, end: torch.cuda.Event | None = None) -> None:
        self._tensor, self._end = tensor, end

    def array(self) -> NDArray[Any]:
        """Wait for it; the same array each time, and its memory is the caller's."""
        if self._end is not None:
            self._end.synchronize()
            self._end = None
        array: NDArray[Any] = self._tensor.numpy()
        return array


class Transfer:
    """Copies between the host and one device.

    On the host nothing is copied: tensors and arrays share their memory. On a GPU a copy begins
    at once and goes on beside what is computed there; other devices have the plain copies of torch.
    """

    def __init__(self, device: torch.device = HOST) -> None:
        self.device = device
        self.is_host = device.type == "cpu"
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def to_device(self, array: NDArray[Any]) -> torch.Tensor:
        """A tensor of the array on the device."""
        return torch.from_numpy(array) if self.is_host else self.send(array).tensor()

    def to_host(self, tensor: torch.Tensor) -> NDArray[Any]:
        """An array of the tensor's values."""
        return self.fetch(tensor).array()

    def send(self, array: NDArray[Any]) -> Sent:
        """Begin to copy an array to the device; it may change as soon as this returns."""
        if self._stream is None:
            return Sent(placed(array, self.device))
        with torch.cuda.stream(self._stream):
            tensor = placed(array, self.device)
            return Sent(tensor, self._stream.record_event())

    def fetch(self, tensor: torch.Tensor) -> Fetched:
        """Begin to copy a tensor to the host, after what this thread's stream computes already."""
        tensor = tensor.detach()
        if self._stream is None:
            return Fetched(tensor.cpu())
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            array = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            array.copy_(tensor, non_blocking=True)
            tensor.record_stream(self._stream)  # else its memory is free for what comes next
            return Fetched(array, self._stream.record_event())


def _pinned(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy of an array in pinned memory."""
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    with torch.cuda.device(device):  # the GPU whose context pins it
        pinned = torch.empty(array.shape, dtype=dtype, pin_memory=True)
    np.copyto(pinned.numpy(), array)
    return pinned
