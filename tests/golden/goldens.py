"""Loader of the recorded reference numbers in `open/`; makes inputs, compares outputs.

The numbers come from the public PuLID reference, run in float32 with deterministically filled
weights (`golden_fill.py`), but for the manifests `people` and `plain`, which are this project's own.
What each case means is in `docs/spec/PULID_SPEC.md` and in `README.md`.
"""

import gzip
import json
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open

from golden import golden_fill

HERE = Path(__file__).parent


@cache
def manifest(part):
    """The cases (or the table) of one `manifest.<part>.json`."""
    return json.loads((HERE / "open" / f"manifest.{part}.json").read_text())


@cache
def table(name):
    """A plain table: `schedules` or `noise_cpu`."""
    return json.loads((HERE / "open" / f"{name}.json").read_text())


def cases(part, kind):
    found = [case for case in manifest(part) if case["kind"] == kind]
    assert found, f"no case of kind {kind!r} in manifest.{part}.json"
    return found


def case_id(case):
    return case["id"]


def case_named(part, name):
    return next(case for case in manifest(part) if case["id"] == name)


def shapes(name):
    """{key: shape} of a real checkpoint, or a key map, from `shapes/<name>.json.gz`."""
    with gzip.open(HERE / "shapes" / f"{name}.json.gz") as file:
        return json.load(file)


def tensor_input(spec):
    return golden_fill.tensor(spec["name"], spec["shape"], spec["seed"], spec.get("scale", 1.0))


def inputs(case):
    return {name: tensor_input(spec) for name, spec in case["inputs"].items()}


def expected(case, output):
    """The recorded tensor of one output of a case."""
    return tensor_of(case["file"], case["outputs"][output]["key"])


def tensor_of(file_name, key):
    with safe_open(HERE / "open" / file_name, "pt") as file:
        return file.get_tensor(key)


def assert_close(got, want, tol, what=""):
    """Relative L2 and largest error over largest value must both stay below `tol`."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    rel_l2, rel_max = golden_fill.compare(got, want)
    assert max(rel_l2, rel_max) < tol, f"{what}: relative L2 {rel_l2:.2e}, max {rel_max:.2e}, bound {tol:.0e}"


def meta_state(layout):
    """A state dict of meta tensors (no memory) with the keys and shapes of a real checkpoint."""
    return {key: torch.empty(shape, device="meta") for key, shape in layout.items()}
