"""The spool: a durable queue on disk between the pipelines and the network."""

from lisiere.spool.reader import Counts, Row, SpoolReader, database_file
from lisiere.spool.store import Spool

__all__ = ["Counts", "Row", "Spool", "SpoolReader", "database_file"]
