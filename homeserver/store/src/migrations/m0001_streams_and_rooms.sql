-- Streams, rooms and their events, and what a sync delivers besides events.

-- The position that each shard's stream has reached. Its row lock makes commit order and position order one.
CREATE TABLE stream_shards (
    shard SMALLINT NOT NULL PRIMARY KEY,
    position BIGINT NOT NULL
);

-- What belongs to the whole server, such as its name and its signing keys.
CREATE TABLE server_settings (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE rooms (
    room_id TEXT NOT NULL PRIMARY KEY,
    shard SMALLINT NOT NULL,
    version TEXT NOT NULL,
    position BIGINT NOT NULL,
    depth BIGINT NOT NULL,
    extremities TEXT NOT NULL
);

-- An event, and how its client sent it: the sending device is shown the transaction id again.
CREATE TABLE events (
    shard SMALLINT NOT NULL,
    position BIGINT NOT NULL,
    room_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    json TEXT NOT NULL,
    redacted_by TEXT,
    device_id TEXT,
    transaction_id TEXT,
    PRIMARY KEY (shard, position)
);
CREATE UNIQUE INDEX events_event_id ON events (event_id);
CREATE UNIQUE INDEX events_room_position ON events (room_id, position);

-- State as what changed at which position: the state at p is position <= p and (replaced_at is null or > p).
CREATE TABLE room_state (
    room_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    state_key TEXT NOT NULL,
    position BIGINT NOT NULL,
    replaced_at BIGINT,
    PRIMARY KEY (room_id, event_type, state_key, position)
);
CREATE INDEX room_state_position ON room_state (room_id, position);

-- Each user's newest membership of each room.
CREATE TABLE memberships (
    user_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    membership TEXT NOT NULL,
    position BIGINT NOT NULL,
    forgotten BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY (user_id, room_id)
);
CREATE INDEX memberships_room ON memberships (room_id, membership);

-- What a client's transaction id has already done: unique within a device and a kind of request.
CREATE TABLE client_transactions (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    transaction_id TEXT NOT NULL,
    result TEXT NOT NULL,
    created_ts BIGINT NOT NULL,
    PRIMARY KEY (user_id, device_id, kind, transaction_id)
);
CREATE INDEX client_transactions_created ON client_transactions (created_ts);

CREATE TABLE to_device (
    shard SMALLINT NOT NULL,
    position BIGINT NOT NULL,
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    sender TEXT NOT NULL,
    message_type TEXT NOT NULL,
    content TEXT NOT NULL,
    PRIMARY KEY (shard, position)
);
CREATE INDEX to_device_device ON to_device (user_id, device_id, position);

-- The newest read receipt of each kind; the private ones lie in the reader's own shard.
CREATE TABLE receipts (
    room_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    receipt_type TEXT NOT NULL,
    thread_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    ts BIGINT NOT NULL,
    shard SMALLINT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (room_id, user_id, receipt_type, thread_id)
);
CREATE UNIQUE INDEX receipts_position ON receipts (shard, position);

-- Account data; the empty room id is the account's own.
CREATE TABLE account_data (
    user_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    data_type TEXT NOT NULL,
    content TEXT NOT NULL,
    shard SMALLINT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_id, data_type)
);
CREATE UNIQUE INDEX account_data_position ON account_data (shard, position);

-- Where something about a user last changed, one row a shard, user and kind: device lists (in every room shard
-- where the user has a room, and in its own), sessions and one-time keys (in its own).
CREATE TABLE user_changes (
    shard SMALLINT NOT NULL,
    user_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (shard, user_id, kind)
);
CREATE UNIQUE INDEX user_changes_position ON user_changes (shard, position);

-- Follow-up work that must happen, written in the transaction that makes it necessary.
CREATE TABLE jobs (
    job_id TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    payload TEXT NOT NULL,
    created_ts BIGINT NOT NULL,
    run_at BIGINT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX jobs_run_at ON jobs (run_at);
