"""How far T5's tokens are from float32 ones in bfloat16, and with its matrices in int8.

    python bench/text_errors.py                  T5-XXL's sizes, on a CPU, some minutes and 3 GB
    python bench/text_errors.py --scale tiny     every line, in seconds

A block at a time is made, computed in each form, and forgotten: so the whole depth fits anywhere. Weights are
random, as T5 is initialised before its training; the outliers of the trained one are not among them. Relative
L2 after the last norm. Ends with a table and one line of JSON, which it also writes to bench/results/.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path

STARTED = time.monotonic()
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import pulid.torchvision_guard  # noqa: E402, F401

# isort: split
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from bench.device import facts, short_name  # noqa: E402
from bench.measure import relative  # noqa: E402
from bench.random_model import SEED  # noqa: E402
from bench.record import RESULTS, PartFile  # noqa: E402
from pulid.flux.text_int8 import quantise, t5_linears  # noqa: E402
from pulid.parts import Architecture, build_text_models  # noqa: E402

TOKENS = 128
SCALES = {"full": {}, "tiny": {"d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 2, "num_heads": 2}}
EXACT = "float32"
FORMS = {  # of the activations, and whether weights are in int8
    EXACT: (torch.float32, False),
    "bfloat16": (torch.bfloat16, False),
    "int8, float32": (torch.float32, True),
    "int8, bfloat16": (torch.bfloat16, True),
}


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


@torch.inference_mode()
def tokens_of(sizes: dict[str, int]) -> dict[str, Tensor]:
    """T5's tokens (1, TOKENS, d_model) in each form, from the same random embeddings."""
    t5, _ = build_text_models(Architecture(t5=sizes))
    torch.manual_seed(SEED)
    embedded = torch.randn(1, TOKENS, t5.config.d_model)
    hidden = {name: embedded.to(dtype) for name, (dtype, _) in FORMS.items()}
    bias: dict[str, Tensor | None] = dict.fromkeys(FORMS)  # of positions, which the first block makes
    for number, empty in enumerate(t5.encoder.block):
        block = copy.deepcopy(empty).to_empty(device="cpu")
        block.apply(t5._init_weights)
        for name in FORMS:
            given = (hidden[name], None, bias[name], None, None, None)
            hidden[name], bias[name], _ = in_form(block, *FORMS[name])(*given)
        say(f"block {number + 1} of {len(t5.encoder.block)}")
    return {
        name: F.rms_norm(x.float(), x.shape[-1:], eps=t5.config.layer_norm_epsilon)
        for name, x in hidden.items()
    }


def in_form(block: nn.Module, dtype: torch.dtype, int8: bool) -> nn.Module:
    block = copy.deepcopy(block).to(dtype)
    for name, linear in list(t5_linears(block)) if int8 else ():
        quantise(block, name, linear.weight.data)
    return block


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scale", choices=list(SCALES), default="full")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    device = torch.device("cpu")
    got = tokens_of(SCALES[chosen.scale])
    names = [name for name in FORMS if name != EXACT]
    kind = [chosen.scale] * (chosen.scale != "full")
    setting = {"scale": chosen.scale, "rows": names, "tokens": TOKENS}
    file = PartFile(chosen.results, "-".join(["text-errors", *kind, short_name(device)]), setting)
    for name in names:
        file.cases[name] = {"relative_error": round(relative(got[name], got[EXACT]), 5)}
    say(f"wrote {file.write(bench='text-errors', weights='random', **facts(device))}")
    for name in names:
        print(f"{name:<16} {file.cases[name]['relative_error']:.5f}")
    print(json.dumps({"bench": "text-errors", "cases": file.cases}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
