"""The spool: a durable queue on disk between the pipelines and the network."""

from lisiere.spool.store import Counts, Row, Spool, SpoolReader

__all__ = ["Counts", "Row", "Spool", "SpoolReader"]
