-- How far the events of each shard of rooms have been told to the push gateways, and which replica does so.

CREATE TABLE push_cursors (
    shard SMALLINT NOT NULL PRIMARY KEY,
    -- Up to here everything has been told, or is pending at the pushers.
    position BIGINT NOT NULL,
    -- The replica that does it, and until when it is left to it, by the database's clock, in milliseconds since the epoch.
    holder TEXT NOT NULL,
    held_until BIGINT NOT NULL
);

-- The replicas that push, and when each last said so, by the database's clock.
CREATE TABLE push_holders (
    holder TEXT NOT NULL PRIMARY KEY,
    seen_ts BIGINT NOT NULL
);

-- The newest event that a pusher has to be told of and has not been, and when that is tried again.
ALTER TABLE pushers ADD COLUMN pending_room TEXT;
ALTER TABLE pushers ADD COLUMN pending_event TEXT;
ALTER TABLE pushers ADD COLUMN retry_at BIGINT;
ALTER TABLE pushers ADD COLUMN attempts BIGINT NOT NULL DEFAULT 0;
CREATE INDEX pushers_retry ON pushers (retry_at) WHERE retry_at IS NOT NULL;
