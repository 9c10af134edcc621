"""What runs the calls of a device's tensors: the processor, or an NVIDIA GPU."""

import torch

from . import library as c

_library = None


def loaded():
    """The library, loaded when it is first needed."""
    global _library
    if _library is None:
        _library = c.Library()
    return _library


class Cpu:
    """Calls are done when they return."""

    dlpack = (c.CPU, 0)
    row_bytes = 1
    """Rows of Q, K, V, prefix and dO begin at multiples of this."""

    def forward(self, attention, outputs):
        loaded().forward(attention, outputs)

    def backward(self, attention, gradients):
        loaded().backward(attention, gradients)


class Cuda:
    """Calls are enqueued on torch's current stream, as torch's own are: its allocator then keeps memory for as long as it must."""

    row_bytes = 16

    def __init__(self, device):
        self.device, self.dlpack = device, (c.CUDA, device.index)

    def stream(self):
        """Its address."""
        return torch.cuda.current_stream(self.device).cuda_stream

    def is_capturing(self):
        """Into a CUDA graph."""
        return torch.cuda.is_current_stream_capturing()

    def forward(self, attention, outputs):
        loaded().cuda_forward(attention, outputs, self.stream())

    def backward(self, attention, gradients):
        size = loaded().cuda_backward_workspace(attention)
        workspace = torch.empty(size, dtype=torch.uint8, device=self.device)
        loaded().cuda_backward(attention, gradients, workspace.data_ptr(), size, self.stream())


def load(device=None):
    """Loads the kernels of a GPU (torch's current one if none is named), which its first call does otherwise: to know at once whether
    they can be used, or before a CUDA graph is captured."""
    device = torch.device("cuda" if device is None else device)
    loaded().cuda_load(torch.cuda.current_device() if device.index is None else device.index)


def backend(device):
    """An error for other devices."""
    if device.type == "cpu":
        return Cpu()
    if device.type == "cuda" and torch.version.hip is None:
        return Cuda(device)
    raise c.Error(f"q: on {device}, expected the CPU or a CUDA device")
