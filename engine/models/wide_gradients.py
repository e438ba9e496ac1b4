"""Accumulates the gradients of 16-bit parameters in fp32.

A tile's gradient is rounded to the parameter's dtype once. A sum of hundreds of them in bf16 would lose most of its
digits. fp32 parameters (LoRA's master weights) accumulate in `.grad` as usual and are not handled here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from engine.models.gradient_home import GradientHome


class WideGradients:
    """Collects the gradients of trainable low-precision parameters, one layer at a time on the device.

    Args:
        parameters: All parameters of the model; fp32 and frozen ones are skipped.
        home: Device that keeps the sums between layers and steps, which is the CPU if the device has no room.
        masters: Parameters at home whose `.grad` takes the sums instead of `sums` (engine.models.master_weights).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        home: torch.device,
        masters: Mapping[nn.Parameter, nn.Parameter] | None = None,
    ) -> None:
        self._home, self._masters = home, masters
        self._arrivals = GradientHome()
        self._present: dict[nn.Parameter, Tensor] = {}
        self.sums: dict[nn.Parameter, Tensor] = {}
        "fp32 gradient of each parameter, on `home`."
        narrow = [p for p in parameters if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)]
        self._hooks = [p.register_post_accumulate_grad_hook(self._take) for p in narrow]

    def _take(self, parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        assert parameter.grad is not None
        if parameter in self._present:
            self._present[parameter] += parameter.grad
        else:
            self._present[parameter] = parameter.grad.float()
        parameter.grad = None

    def flush(self) -> None:
        """Moves the collected gradients to `home`, after a layer's last tile."""
        for parameter, gradient in self._present.items():
            if self._masters is not None:
                self._add_to_master(self._masters[parameter], gradient)
            elif parameter in self.sums:
                self.sums[parameter] += gradient.to(self._home)
            else:
                self.sums[parameter] = gradient.to(self._home)
        self._present.clear()

    def _add_to_master(self, master: nn.Parameter, gradient: Tensor) -> None:
        travels = gradient.device != master.device
        if master.grad is None:
            master.grad = self._arrivals.keep(master, gradient) if travels else gradient
        elif travels:
            self._arrivals.add(master.grad, gradient)
        else:
            master.grad += gradient

    def drop(self) -> None:
        """Drops gradients that have not been moved to `home`, after an abandoned pass."""
        self._present.clear()

    def clear(self) -> None:
        """Drops all gradients, as `optimizer.zero_grad` does for fp32 ones."""
        self._present.clear()
        self.sums.clear()

    def close(self) -> None:
        """Removes the hooks, which ends the collecting."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
