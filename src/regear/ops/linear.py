"""Matrix products on a CPU: in float32 through oneDNN, which BLAS does at half its rate on processors not Intel's.

Torch hands float32 products to MKL, whose kernels for other makers' processors leave AVX-512 unused: 90 against 200
GFLOP/s on one core of an AMD EPYC. Weights that are read again and again for a few rows, as in decoding, are laid out
once more for compiled code (`native/product.hpp`), which reads them and multiplies at the same time; there a row's
product does not depend on what is multiplied beside it, to the last bit. Everything else goes to torch's own functions.
"""

from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

# Inductor's operator, which also takes weights that `pack` has laid out for it; it has no gradient of its own.
_apply: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_reorder: Any = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)

native: Any = None  # where it is not built, oneDNN's layout does the same, more slowly
with suppress(ImportError):
    from regear import _native as native


def usable(*tensors: torch.Tensor | None) -> bool:
    """Whether oneDNN takes the product of these: plain float32 tensors on a CPU that hold something."""
    if _apply is None or not torch.backends.mkldnn.enabled or torch.is_autocast_enabled("cpu"):
        return False
    return all(
        x is None
        or (
            x.device.type == "cpu"
            and x.dtype == torch.float32
            and type(x) in (torch.Tensor, nn.Parameter)
            and x.numel()
        )
        for x in tensors
    )


def linear(x: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """x Wᵀ + b for x [..., I], differentiable once in all three; `torch.nn.functional.linear` in other words."""
    if not usable(x, weight_OI, bias_O):
        return nn.functional.linear(x, weight_OI, bias_O)
    found: torch.Tensor = _Linear.apply(x, weight_OI, bias_O)
    return found


def product(left_NK: torch.Tensor, right_KM: torch.Tensor) -> torch.Tensor:
    """The product of two matrices, [N, M]; no gradient."""
    if not usable(left_NK, right_KM):
        return left_NK @ right_KM
    return _plain(left_NK, right_KM.T, None)


def _plain(x: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    found: torch.Tensor = _apply(x, weight_OI, bias_O, "none", [], "")
    return found


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight_OI)
        return _plain(x, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight_OI = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = upstream.reshape(-1, upstream.shape[-1])
        to_x = product(rows, weight_OI).view_as(x) if wants_x else None
        to_weight = product(rows.T, x.reshape(-1, x.shape[-1])) if wants_weight else None
        return to_x, to_weight, rows.sum(0) if wants_bias else None


class Packed:
    """A copy of a weight [O, I] in the layout that is read fastest for few rows: float32 or float64, on a CPU."""

    def __init__(self, weight_OI: torch.Tensor) -> None:
        self.shape, self.dtype = weight_OI.shape, weight_OI.dtype
        plain = weight_OI.detach().contiguous()
        kind = native.Weight32 if plain.dtype == torch.float32 else native.Weight64
        self.laid = kind(plain.data_ptr(), *plain.shape)

    @staticmethod
    def takes(tensor: torch.Tensor) -> bool:
        """Whether a tensor is of the kind that can be laid out, or multiplied with what was."""
        plain = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.device.type == "cpu" and tensor.numel() > 0
        return native is not None and plain and tensor.dtype in (torch.float32, torch.float64)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x Wᵀ for x [..., I] of the weight's type; no gradient.

        Raises:
            TypeError: x is of another type or width.
        """
        outputs, inputs = self.shape
        if not self.takes(x) or x.dtype != self.dtype or x.shape[-1] != inputs:
            raise TypeError(f"found {x.dtype} {tuple(x.shape)} on {x.device}; wanted {self.dtype} [..., {inputs}]")
        rows = x.contiguous()
        found = rows.new_empty(*rows.shape[:-1], outputs)
        self.laid.multiply(rows.data_ptr(), found.data_ptr(), rows.numel() // inputs, torch.get_num_threads())
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> "Packed":
        return self  # it never changes


class Linear(nn.Linear):
    """A linear map whose products go through `linear`; or, without gradients, through the layout that `pack` made."""

    packed: tuple[Any, int] | None = None  # the layout, and the weight's version that it is of

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.packed is None or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return linear(input, self.weight, self.bias)
        if self.packed[1] != self.weight._version:  # trained or loaded anew since
            self.pack()
        layout = self.packed[0] if self.packed else None
        if isinstance(layout, Packed) and Packed.takes(input) and input.dtype == layout.dtype:
            found = layout(input)
            return found if self.bias is None else found.add_(self.bias)
        if isinstance(layout, torch.Tensor) and usable(input, self.bias):
            return _plain(input, layout, self.bias)
        return linear(input, self.weight, self.bias)

    def pack(self) -> None:
        """Keep the weight once more, in a layout that is read faster, where there is one for it."""
        self.packed = None
        if Packed.takes(self.weight):
            self.packed = Packed(self.weight), self.weight._version
        elif _reorder is not None and usable(self.weight):
            self.packed = _reorder(self.weight.detach(), None), self.weight._version


def adopt(model: nn.Module) -> None:
    """Make every plain linear map of a model a `Linear`, in place: names, parameters and values stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


def pack(model: nn.Module) -> None:
    """Pack every `Linear` of a model: decoding twice as fast, and its weights in memory twice."""
    for module in model.modules():
        if isinstance(module, Linear) and module.packed is None:
            module.pack()
