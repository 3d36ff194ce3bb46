-- The spool, from version 1 to version 2: classes, expiry, checksums, and where everything went by reason.

-- -1 gap record (never evicted), 0 alarm, 1 result, 2 sample, 3 metric: the highest is evicted first.
ALTER TABLE queue ADD COLUMN class INTEGER NOT NULL DEFAULT 1;
-- Wall time after which nobody wants it; NULL: wanted for ever.
ALTER TABLE queue ADD COLUMN expires_ts REAL;
-- CRC-32 of seq, pipeline and body, so that a bit that flips in a body is seen.
ALTER TABLE queue ADD COLUMN crc INTEGER;

-- An index ends in the rowid, so the oldest row of a class is found at once however many wait. Most rows are results:
-- the oldest of them are at the beginning of the table itself, and an index would only slow them down.
CREATE INDEX queue_by_class ON queue (class) WHERE class <> 1;
CREATE INDEX queue_by_expiry ON queue (expires_ts) WHERE expires_ts IS NOT NULL;

-- accepted = acknowledged + evicted + expired + set_aside + damaged + still in the queue.
-- '' stands for the gap records; those that went into a merged one count as evicted.
-- Version 1 counted what was set aside as evicted.
ALTER TABLE counts ADD COLUMN expired   INTEGER NOT NULL DEFAULT 0;
ALTER TABLE counts ADD COLUMN set_aside INTEGER NOT NULL DEFAULT 0;  -- too large, or refused by the other end
ALTER TABLE counts ADD COLUMN damaged   INTEGER NOT NULL DEFAULT 0;  -- lost with a file that was damaged
-- Results handed to a transport, each as often as it was; after a kill as many too few as were under way.
ALTER TABLE counts ADD COLUMN sent      INTEGER NOT NULL DEFAULT 0;
ALTER TABLE counts ADD COLUMN bytes     INTEGER NOT NULL DEFAULT 0;  -- of the bodies that are in the queue

UPDATE queue SET class = -1 WHERE kind = 'gap';
-- A gap record of version 1 says nothing of what was in the results.
UPDATE queue SET body = CAST(
    substr(CAST(body AS TEXT), 1, length(CAST(body AS TEXT)) - 1) || ',"exact":true,"summary":{}}' AS BLOB)
    WHERE kind = 'gap';
INSERT INTO counts (pipeline, accepted)
    SELECT '', gaps FROM (SELECT COUNT(*) AS gaps FROM queue WHERE kind = 'gap') WHERE gaps > 0;
UPDATE queue SET crc = checksum(seq, pipeline, body);
UPDATE counts SET bytes = (SELECT COALESCE(SUM(LENGTH(body)), 0) FROM queue WHERE queue.pipeline = counts.pipeline);

-- A version that is told twice cannot be mistaken by one flipped bit.
INSERT INTO meta VALUES ('schema', '2');
