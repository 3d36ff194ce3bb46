"""Transports: how messages leave the device, behind one seam.

A transport carries one connection: it is opened, used and closed, and a new one is made for the next try. It keeps
nothing across connections, because the spool does.
"""

from lisiere.sync.transports.base import (
    JSON,
    MESSAGE_MAX_BYTES,
    Acked,
    Bell,
    Denied,
    Event,
    Listener,
    Lost,
    Received,
    Refused,
    Transport,
    Will,
)

__all__ = [
    "JSON",
    "MESSAGE_MAX_BYTES",
    "Acked",
    "Bell",
    "Denied",
    "Event",
    "Listener",
    "Lost",
    "Received",
    "Refused",
    "Transport",
    "Will",
]
