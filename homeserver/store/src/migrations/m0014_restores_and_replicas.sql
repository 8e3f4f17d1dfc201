-- What a restore from a backup lost, and what the replicas say about themselves.

-- Positions of a shard that were handed out after the backup was made that the database was restored from: those between the two. Whoever
-- has a sync token that names one of them knows of things that the database does not.
CREATE TABLE lost_positions (
    shard SMALLINT NOT NULL,
    after_position BIGINT NOT NULL,
    before_position BIGINT NOT NULL,
    PRIMARY KEY (shard, after_position)
);

-- Times are by the database's clock; skew_ms is by how much the replica's clock was ahead of it. status is JSON.
CREATE TABLE replicas (
    replica_id TEXT NOT NULL PRIMARY KEY,
    started_ts BIGINT NOT NULL,
    seen_ts BIGINT NOT NULL,
    skew_ms BIGINT NOT NULL,
    status TEXT NOT NULL
);
