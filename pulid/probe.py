"""Facts about this machine's devices, as torch sees them."""

import torch


def cuda_available() -> bool:
    """Whether torch was built for CUDA and sees a card."""
    return torch.cuda.is_available()
