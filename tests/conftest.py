"""Shared fixtures. Imports the torchvision guard before any test module imports diffusers or timm."""

import pulid.torchvision_guard  # noqa: F401
