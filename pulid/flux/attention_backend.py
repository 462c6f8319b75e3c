"""Which of torch's attentions FLUX's blocks run on: cuDNN's where it is the fastest, and which it is.

Torch chooses for each call by the shapes and by an order of preference that the whole process shares.
Knows torch's names for its backends; computes nothing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
# Hopper and the data-centre Blackwell. Elsewhere torch prefers another one, and its order stays: threads
# beside the steps would see the change, and now and then compute a prompt's last bits otherwise.
CUDNN_CAPABILITIES = {(9, 0), (10, 0)}
TOKENS = (384, 4160)  # text and image: the smallest picture, and the default one


def cudnn_first(device: torch.device) -> AbstractContextManager[object]:
    """Around forwards on `device`: torch asks cuDNN first, and the others if it declines."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) in CUDNN_CAPABILITIES:
        return sdpa_kernel(ORDER, set_priority=True)
    return nullcontext()


@torch.inference_mode()
def backend_for(device: torch.device, dtype: torch.dtype, *, heads: int, head_dim: int) -> str:
    """What torch takes for the blocks' queries: "cudnn_attention", say; several if it depends on the size."""
    with cudnn_first(device):
        names = [
            _choice(torch.empty(batch, tokens, heads, head_dim, dtype=dtype, device=device).transpose(1, 2))
            for tokens in TOKENS
            for batch in (1, 2)
        ]
    return ", ".join(dict.fromkeys(names))


def _choice(query: torch.Tensor) -> str:
    """Keys and values look like it."""
    return SDPBackend(torch._fused_sdp_choice(query, query, query)).name.lower()
