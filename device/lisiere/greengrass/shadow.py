"""The named shadow `lisiere`: what runs on the device, where the nucleus has a shadow manager."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from lisiere.clock import Clock
from lisiere.errors import LisiereError
from lisiere.ipc import Nucleus

log = logging.getLogger(__name__)

NAME = "lisiere"
_MAX_BYTES = 7000  # a shadow holds 8 KB, and nucleus lite's IPC this much once it is base64
_WHY_MAX = 200
_CHANGED_S = 5.0  # at least this long between two reports, when something has changed
_FIGURES_S = 60.0  # the same, when only the spool's figures have
_REFUSED_S = 3600.0  # where there is no shadow manager, this long until it is tried again


class Shadow:
    """Reports documents, at a bounded rate.

    Args:
        nucleus: by which they go.
        clock: for the rate.
    """

    def __init__(self, nucleus: Nucleus, clock: Clock) -> None:
        self._nucleus = nucleus
        self._clock = clock
        self._told: tuple[dict[str, Any], dict[str, int]] | None = None
        self._next = clock.monotonic()
        self._at = clock.monotonic()

    def again(self) -> None:
        """Try again at once, since what was refused may be allowed now."""
        self._next = self._clock.monotonic()

    def report(self, state: dict[str, Any], figures: dict[str, int]) -> None:
        """Report a state, if it is new and the rate allows it; else nothing happens, and it is to be called again.

        Args:
            state: what runs.
            figures: what waits in the spool; a change of these alone is reported more rarely.
        """
        now = self._clock.monotonic()
        if not self._nucleus.environment.thing or now < self._next or self._told == (state, figures):
            return
        if self._told is not None and self._told[0] == state and now < self._at + _FIGURES_S:
            return
        try:
            self._nucleus.update_shadow(NAME, shadow_document(state, figures))
        except LisiereError as error:
            log.info("The shadow %s is not reported, and not tried again for an hour. %s", NAME, error)
            self._next = now + _REFUSED_S
            return
        self._told, self._at, self._next = (state, figures), now, now + _CHANGED_S


def shadow_document(state: dict[str, Any], figures: dict[str, int]) -> bytes:
    """Return the document to merge; sentences are cut, and pipelines left out, so that it fits into a shadow."""
    pipelines = {name: _cut(pipeline) for name, pipeline in state["pipelines"].items()}
    parts = {name: _cut(part) if isinstance(part, dict) else part for name, part in state.items()}
    reported = {**parts, "pipelines": pipelines, "spool": figures}
    while True:
        document = msgspec.json.encode({"state": {"reported": reported}})
        if len(document) <= _MAX_BYTES or not pipelines:
            return document
        pipelines.popitem()
        reported["pipelines_left_out"] = len(state["pipelines"]) - len(pipelines)


def _cut(part: dict[str, Any]) -> dict[str, Any]:
    """Shorten the sentence of a part that has one."""
    why = part.get("why") or ""
    return {**part, "why": why if len(why) <= _WHY_MAX else why[: _WHY_MAX - 1] + "…"}
