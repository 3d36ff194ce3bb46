"""The spool: a durable queue on disk between the pipelines and the network."""

from lisiere.spool.gaps import GapBody, Reason
from lisiere.spool.reader import Counts, Row, SpoolReader, database_file
from lisiere.spool.store import Spool

__all__ = ["Counts", "GapBody", "Reason", "Row", "Spool", "SpoolReader", "database_file"]
