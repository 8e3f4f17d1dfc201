-- What users report to the administrators, and the tokens with which they prove to others who they are.

-- A report of an event (room_id, event_id, and its sender as user_id), of a room (room_id) or of a user (user_id).
CREATE TABLE reports (
    report_id TEXT NOT NULL PRIMARY KEY,
    received_ts BIGINT NOT NULL,
    reporter TEXT NOT NULL,
    room_id TEXT,
    event_id TEXT,
    user_id TEXT,
    reason TEXT NOT NULL
);
CREATE INDEX reports_received ON reports (received_ts, report_id);

-- OpenID tokens, as hashes.
CREATE TABLE openid_tokens (
    token_hash TEXT NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    expires_ts BIGINT NOT NULL
);
CREATE INDEX openid_tokens_expires ON openid_tokens (expires_ts);
