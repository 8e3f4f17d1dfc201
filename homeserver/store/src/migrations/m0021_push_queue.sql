-- What gateways have to be told, pusher by pusher: each notice stands here from when its event was gone through until it was told, or need not be.
-- (pending_room, pending_event and retry_at of m0019 kept the newest one only; no version writes them any more.)

CREATE TABLE push_queue (
    user_id TEXT NOT NULL,
    app_id TEXT NOT NULL,
    pushkey TEXT NOT NULL,
    event_id TEXT NOT NULL,
    -- The order in which they are told: when they came here, by the database's clock, and of those that came at once their positions in the shard.
    queued_ts BIGINT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (user_id, app_id, pushkey, event_id)
);

-- When a pusher with something in its queue is to be told, by the database's clock; while a replica does so (`told_by`), when others may take it over.
ALTER TABLE pushers ADD COLUMN tell_at BIGINT;
ALTER TABLE pushers ADD COLUMN told_by TEXT NOT NULL DEFAULT '';
CREATE INDEX pushers_tell ON pushers (tell_at) WHERE tell_at IS NOT NULL;

-- What was pending is told on.
INSERT INTO push_queue (user_id, app_id, pushkey, event_id, queued_ts, position)
    SELECT user_id, app_id, pushkey, pending_event, 0, 0 FROM pushers WHERE pending_event IS NOT NULL;
UPDATE pushers SET tell_at = 0 WHERE pending_event IS NOT NULL;
