"""Facts about this machine's devices, as torch sees them."""

import torch


def cuda_count() -> int:
    """How many CUDA cards torch sees; 0 where it was not built for CUDA."""
    return torch.cuda.device_count()
