from __future__ import annotations

from collections.abc import Iterator

import pytest

from lisiere_sim.broker import Address, EmbeddedBroker


@pytest.fixture
def broker() -> Iterator[Address]:
    embedded = EmbeddedBroker()
    yield embedded.start()
    embedded.stop()
