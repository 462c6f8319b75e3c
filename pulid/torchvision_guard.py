"""Make `import torchvision` work where its compiled extension cannot load.

The package index serves torchvision built for CUDA. Beside a CPU-only torch its operators do not
load, and with it the imports of diffusers, transformers, timm and facexlib fail. Importing this
module first defines the two missing operators and gives `nms` a real CPU implementation.
Where torchvision loads, as on any GPU host, nothing is changed.
"""

import importlib.util
import sys

import numpy as np
import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[torch.library.Library] = []  # an operator lives as long as its library object


def _nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """torchvision's non-maximum suppression on (n, 4) boxes; returns kept indices, best first.

    In NumPy: ten times faster than a loop over torch tensors on the thousands of boxes of RetinaFace.
    """
    boxes = dets.detach().cpu().float().numpy()
    order = scores.detach().cpu().float().numpy().argsort(kind="stable")[::-1]
    x1, y1, x2, y2 = boxes.T
    area = (x2 - x1) * (y2 - y1)
    keep = []
    while order.size:
        best, rest = order[0], order[1:]
        keep.append(int(best))
        width = (np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest])).clip(0)
        height = (np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest])).clip(0)
        overlap = width * height
        order = rest[overlap <= iou_threshold * (area[best] + area[rest] - overlap)]
    return torch.as_tensor(keep, dtype=torch.int64, device=dets.device)


def is_mended() -> bool:
    """Are the operators of torchvision in this process the ones defined here?"""
    return bool(_libraries)


def ensure_torchvision() -> None:
    """Import torchvision, filling in its operators if they are missing."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision

        return
    except RuntimeError as exc:
        if "torchvision::" not in str(exc):
            raise
    for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    library.impl("nms", _nms, "CPU")
    _libraries.append(library)
    import torchvision.extension

    torchvision.extension._has_ops = lambda: True  # its own check, read by ops.nms


ensure_torchvision()
