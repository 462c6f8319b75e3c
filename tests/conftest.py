"""Shared fixtures. Imports the torchvision guard before any test module imports diffusers or timm."""

import signal

import pulid.torchvision_guard  # noqa: F401

# A shell ignores Ctrl-C for what it starts in the background, and a process hands that on to its
# children: the servers and commands of these tests would never hear one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
