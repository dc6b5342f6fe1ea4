"""Networks as torch.compile runs them, in FP32 and in its own INT8, to be timed beside quantlab's engine.

INT8 is torchao's static quantization for x86 (``X86InductorQuantizer``): activations by tensor, weights by
channel, calibrated on the batch that is timed. It needs torchao, which quantlab does not.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from quantlab.network.checkpoint import read_model
from quantlab.profiling.clocks import Run
from quantlab.profiling.timing import Inputs, Subject

CHANNELS = 64  # of the product that shows whether sums saturate


@dataclass(frozen=True, kw_only=True)
class Compiled(Subject):
    """A checkpoint's network, compiled."""

    folder: Path
    head: str  # one of quantlab.tasks.heads
    int8: bool
    device: str = "cpu"

    def load(self, inputs: Inputs, threads: int, stack: ExitStack) -> Run:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch._inductor.config.patch(freezing=True))
        tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
        network = Logits(read_model(self.folder, self.head)[0].requires_grad_(False).eval(), tuple(tensors))
        given = tuple(tensors.values())
        compiled = torch.compile(quantized(network, given) if self.int8 else network, dynamic=False)
        compiled(*given)

        def run() -> None:
            compiled(*given)

        return run


class Logits(nn.Module):
    """A network that takes its inputs in order and returns a tensor, as torch.export wants it."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]):
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(**dict(zip(self.names, inputs, strict=True))).logits
        return logits


def has_int8() -> bool:
    """Whether torchao is there."""
    return find_spec("torchao") is not None


def saturates() -> bool:
    """Whether torch.compile's INT8 product of the largest bytes is not the sum that its graph stands for."""
    linear = nn.Linear(CHANNELS, CHANNELS, bias=False).requires_grad_(False).eval()
    linear.weight.fill_(1)
    rows = torch.tensor([[0.0], [1.0]]).expand(2, CHANNELS).contiguous()
    network = quantized(linear, (rows,))
    with torch.inference_mode(), torch._inductor.config.patch(freezing=True):
        return not torch.allclose(torch.compile(network)(rows), network(rows))


def quantized(network: nn.Module, given: tuple[Tensor, ...]) -> nn.Module:
    """The network in INT8, for Inductor to fuse."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    with torch.inference_mode(False), torch.no_grad():
        prepared = prepare_pt2e(torch.export.export(network, given).module(), quantizer)
        prepared(*given)
        return convert_pt2e(prepared)
