"""All checks, for `flux-pulid doctor`; and the quick ones, for every start of the server."""

from __future__ import annotations

from pulid.errors import SetupError, WeightsMissing
from server.app import choice_of
from server.checks.files import files
from server.checks.finding import Finding
from server.checks.libraries import check_onnx_packages, libraries
from server.checks.machine import machine
from server.checks.service import service
from server.checks.shared import shared
from server.engines import profile_or_exact, profile_with, require_fitting
from server.settings import Settings


def thorough(settings: Settings) -> list[Finding]:
    """Takes seconds: torch and what stands on it are loaded. Nothing on the machine is changed.

    Raises SettingsError for settings that do not fit each other.
    """
    profile = profile_with(settings.profile, t5_int8=settings.t5_int8)
    require_fitting(profile, settings.devices, settings.loras)
    return [
        *machine(profile, settings.devices),
        *libraries(profile),
        *files(profile, settings.weights_dir, choice_of(settings), settings.loras),
        *service(settings),
        *shared(settings),
    ]


def quick(settings: Settings) -> list[Finding]:
    """Takes milliseconds and loads no library. Raises SettingsError as `thorough` does."""
    profile = profile_or_exact(settings.profile)
    require_fitting(profile, settings.devices, settings.loras)
    return [
        check_onnx_packages(),
        *files(profile, settings.weights_dir, choice_of(settings), settings.loras),
        *service(settings),
    ]


def warnings_at_start(settings: Settings) -> list[str]:
    """What the log should say once. Raises SetupError where the start would fail, with every reason."""
    findings = quick(settings)
    if faults := [finding for finding in findings if finding.state == "fault"]:
        kind = WeightsMissing if any(one.check in ("weights", "lora") for one in faults) else SetupError
        raise kind("\n".join(one.text for one in faults))
    return [finding.text for finding in findings if finding.state == "warning"]
