"""Sync: from the spool to the subscriber, over a transport."""
