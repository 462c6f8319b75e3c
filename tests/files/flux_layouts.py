"""Black Forest Labs' layout of a state dict in diffusers' layout, by the recorded key maps."""

import torch

from golden import goldens


def bfl_transformer(state):
    """Fails in the caller if a key is not in the map: nothing is left out."""
    converted, used = {}, set()
    for rule in goldens.shapes("flux_bfl_to_diffusers_map"):
        if any(target not in state for target in rule["diffusers"]):
            continue  # a block deeper than this model has
        parts = [state[target] for target in rule["diffusers"]]
        used.update(rule["diffusers"])
        converted[rule["bfl"]] = OPERATIONS[rule["op"]](parts)
    assert used == set(state)
    return converted


def bfl_autoencoder(state):
    converted, used = {}, set()
    for rule in goldens.shapes("ae_bfl_to_diffusers_map"):
        if rule["diffusers"] not in state:
            continue
        used.add(rule["diffusers"])
        converted[rule["bfl"]] = OPERATIONS[rule["op"]]([state[rule["diffusers"]]])
    assert used == set(state)
    return converted


OPERATIONS = {
    "copy": lambda parts: parts[0],
    "cat": torch.cat,
    "swap": lambda parts: torch.cat(parts[0].chunk(2)[::-1]),
    "linear_to_conv1x1": lambda parts: parts[0][:, :, None, None] if parts[0].ndim == 2 else parts[0],
}
