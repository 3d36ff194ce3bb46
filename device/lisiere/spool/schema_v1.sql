-- The spool, version 1. One writer; readers see a snapshot (WAL).

-- What this file is: epoch, device.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- What has been accepted and not yet acknowledged by the broker.
-- AUTOINCREMENT keeps the highest seq ever given, so that a drained spool does not start again at 1.
CREATE TABLE queue (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    kind        TEXT NOT NULL,   -- result | gap
    pipeline    TEXT NOT NULL,   -- '' for what belongs to none
    accepted_ts REAL NOT NULL,   -- seconds since the epoch
    body        BLOB NOT NULL    -- the envelope without its identity and its stamp of publication
);

-- Where every result went, kept across restarts: accepted = acknowledged + evicted + still in the queue.
CREATE TABLE counts (
    pipeline     TEXT PRIMARY KEY,
    accepted     INTEGER NOT NULL DEFAULT 0,
    acknowledged INTEGER NOT NULL DEFAULT 0,
    evicted      INTEGER NOT NULL DEFAULT 0
);
