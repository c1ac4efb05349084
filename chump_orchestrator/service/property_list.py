"""What is wrong with a LaunchAgent, told on any system: launchd itself ignores what it cannot use.

The keys and their types are those of launchd.plist(5), of which a LaunchAgent may use what is
here.
"""

from __future__ import annotations

import plistlib
import re
from collections.abc import Iterator, Mapping
from xml.parsers.expat import ExpatError

KEYS: Mapping[str, tuple[type, ...]] = {
    "AbandonProcessGroup": (bool,),
    "Disabled": (bool,),
    "EnvironmentVariables": (dict,),
    "ExitTimeOut": (int,),
    "HardResourceLimits": (dict,),
    "KeepAlive": (bool, dict),
    "Label": (str,),
    "LegacyTimers": (bool,),
    "LimitLoadToSessionType": (str, list),
    "LowPriorityBackgroundIO": (bool,),
    "LowPriorityIO": (bool,),
    "Nice": (int,),
    "ProcessType": (str,),
    "Program": (str,),
    "ProgramArguments": (list,),
    "RunAtLoad": (bool,),
    "SoftResourceLimits": (dict,),
    "StandardErrorPath": (str,),
    "StandardInPath": (str,),
    "StandardOutPath": (str,),
    "ThrottleInterval": (int,),
    "Umask": (int,),
    "WorkingDirectory": (str,),
}
KEEP_ALIVE = frozenset(
    {"AfterInitialDemand", "Crashed", "OtherJobEnabled", "PathState", "SuccessfulExit"}
)
LIMITS = frozenset(
    {
        "CPU",
        "Core",
        "Data",
        "FileSize",
        "MemoryLock",
        "NumberOfFiles",
        "NumberOfProcesses",
        "ResidentSetSize",
        "Stack",
    }
)
PROCESS_TYPES = frozenset({"Adaptive", "Background", "Interactive", "Standard"})
PATHS = ("Program", "StandardErrorPath", "StandardInPath", "StandardOutPath", "WorkingDirectory")

LEAST_EXIT_S = 60
"""Seconds for a stop: an agent's grace of 30, and what settles it. launchd's own are 20."""

LEAST_THROTTLE_S = 10
"""Seconds between two starts, at least; fewer is a loop that keeps the machine busy."""

_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY")
_UNEXPANDED = re.compile(r"^~|\$\{?\w")


def objections(text: str) -> tuple[str, ...]:
    """Return what is wrong with a property list, empty when nothing."""
    try:
        document = plistlib.loads(text.encode())
    except (plistlib.InvalidFileException, ExpatError, ValueError) as error:
        return (f"it is no property list: {error}",)
    if not isinstance(document, dict):
        return ("it describes no job: its top level is no dictionary",)
    wrong = tuple(_wrong_types(document))
    return wrong or (*_unexpanded(document), *_contradictions(document))


def _wrong_types(document: Mapping[str, object]) -> Iterator[str]:
    near = {key.lower(): key for key in KEYS}
    for key, value in document.items():
        if key not in KEYS:
            meant = near.get(key.lower())
            yield f"{key}: launchd has no such key" + (f"; write {meant}" if meant else "")
        elif not _is_a(value, *KEYS[key]):
            names = " or ".join(kind.__name__ for kind in KEYS[key])
            yield f"{key}: {type(value).__name__} in the place of {names}"


def _unexpanded(document: Mapping[str, object]) -> Iterator[str]:
    """Tell what launchd would take as it stands: it knows neither `~` nor variables."""
    texts = {key: document[key] for key in PATHS if key in document}
    texts |= {f"EnvironmentVariables.{k}": v for k, v in _table(document, "EnvironmentVariables")}
    arguments = document.get("ProgramArguments")
    for number, one in enumerate(arguments if isinstance(arguments, list) else ()):
        texts[f"ProgramArguments[{number}]"] = one
    for where, text in texts.items():
        if not isinstance(text, str):
            yield f"{where}: {type(text).__name__} in the place of str"
        elif _UNEXPANDED.search(text):
            yield f"{where}: launchd expands nothing in {text!r}"
        elif where in PATHS and not text.startswith("/"):
            yield f"{where}: {text!r} is no path from the root"


def _contradictions(document: Mapping[str, object]) -> Iterator[str]:
    if not document.get("Label"):
        yield "Label: it must have one"
    if not document.get("Program") and not document.get("ProgramArguments"):
        yield "ProgramArguments: there is nothing to start"
    for key, value in _table(document, "KeepAlive"):
        kinds = (dict,) if key in ("OtherJobEnabled", "PathState") else (bool,)
        if key not in KEEP_ALIVE or not _is_a(value, *kinds):
            yield f"KeepAlive.{key}: launchd would ignore it"
    if document.get("KeepAlive") is True:
        yield "KeepAlive: it would start again after a stop; write SuccessfulExit = false"
    for limits in ("HardResourceLimits", "SoftResourceLimits"):
        for key, value in _table(document, limits):
            if key not in LIMITS or not _is_a(value, int):
                yield f"{limits}.{key}: launchd would ignore it"
    if document.get("ProcessType", "Standard") not in PROCESS_TYPES:
        yield f"ProcessType: one of {', '.join(sorted(PROCESS_TYPES))}"
    variables = dict(_table(document, "EnvironmentVariables"))
    if "PATH" not in variables:
        yield "EnvironmentVariables.PATH: without it neither git nor an agent may be found"
    for name in filter(_SECRET.search, variables):
        yield f"EnvironmentVariables.{name}: everybody can read this file; keep secrets elsewhere"
    exit_s, throttle_s = document.get("ExitTimeOut", 20), document.get("ThrottleInterval", 10)
    if not _is_a(exit_s, int) or 0 < int(str(exit_s)) < LEAST_EXIT_S:
        yield f"ExitTimeOut: agents need {LEAST_EXIT_S} s at least to be stopped"
    if not _is_a(throttle_s, int) or int(str(throttle_s)) < LEAST_THROTTLE_S:
        yield f"ThrottleInterval: {LEAST_THROTTLE_S} s at least"


def _table(document: Mapping[str, object], key: str) -> list[tuple[str, object]]:
    value = document.get(key)
    return list(value.items()) if isinstance(value, dict) else []


def _is_a(value: object, *kinds: type) -> bool:
    """Say whether a value is of one of these types; a truth value is no number."""
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds)
