-- The log of each user's KeyBoxes: append-only, every entry carries the hash of the one before.

-- entry is the canonical JSON that the hashes are made of; the other columns repeat what it is looked up by.
CREATE TABLE keybox_log (
    user_id TEXT NOT NULL,
    seq BIGINT NOT NULL,
    ts BIGINT NOT NULL,
    keybox_id TEXT NOT NULL,
    peer_keybox_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    entry TEXT NOT NULL,
    PRIMARY KEY (user_id, seq)
);

-- How far each log reaches.
CREATE TABLE keybox_log_heads (
    user_id TEXT NOT NULL PRIMARY KEY,
    seq BIGINT NOT NULL,
    hash TEXT NOT NULL,
    ts BIGINT NOT NULL
);
