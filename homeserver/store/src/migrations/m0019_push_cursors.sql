-- How far the events of each shard of rooms have been told to the push gateways, and which replica does so.

CREATE TABLE push_cursors (
    shard SMALLINT NOT NULL PRIMARY KEY,
    -- Up to here everything has been told, or stands among the jobs.
    position BIGINT NOT NULL,
    -- The replica that does it, and until when it is left to it, by the database's clock, in milliseconds since the epoch.
    holder TEXT NOT NULL,
    held_until BIGINT NOT NULL
);
