"""Facts about this machine: its devices, packages and versions."""

import torch


def find_device(name: str) -> torch.device:
    """Returns a device on which tensors can be made."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition('\n')[0].partition('. ')[0]  # pages of backends may follow
        raise ValueError(f'--device {name} cannot be used ({reason}): give another, such as cpu') from error
