-- Accounts, their devices and sessions, and what guards the way in.

-- The row of a deactivated account stays, so that its name is never given to anybody else.
CREATE TABLE users (
    user_id TEXT NOT NULL PRIMARY KEY,
    password_hash TEXT,
    is_admin BOOLEAN NOT NULL,
    deactivated BOOLEAN NOT NULL,
    created_ts BIGINT NOT NULL
);

CREATE TABLE devices (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    display_name TEXT,
    created_ts BIGINT NOT NULL,
    last_seen_ts BIGINT NOT NULL,
    last_seen_ip TEXT NOT NULL,
    PRIMARY KEY (user_id, device_id)
);

-- Tokens are kept as hashes. A token that came from a refresh names the refresh token that it replaces until it is
-- first used, because its answer may be lost on the way.
CREATE TABLE access_tokens (
    token_hash TEXT NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    expires_ts BIGINT,
    replaces TEXT
);
CREATE INDEX access_tokens_device ON access_tokens (user_id, device_id);

CREATE TABLE refresh_tokens (
    token_hash TEXT NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    access_hash TEXT NOT NULL,
    replaces TEXT
);
CREATE INDEX refresh_tokens_device ON refresh_tokens (user_id, device_id);
CREATE INDEX refresh_tokens_replaces ON refresh_tokens (replaces);

-- Failed logins in a row, of an account or from an address.
CREATE TABLE login_failures (
    subject TEXT NOT NULL PRIMARY KEY,
    failures BIGINT NOT NULL,
    last_failure_ts BIGINT NOT NULL,
    blocked_until_ts BIGINT NOT NULL
);
CREATE INDEX login_failures_age ON login_failures (last_failure_ts);

CREATE TABLE registration_tokens (
    token TEXT NOT NULL PRIMARY KEY,
    uses_allowed BIGINT,
    uses BIGINT NOT NULL,
    expires_ts BIGINT,
    created_ts BIGINT NOT NULL
);

-- Numbers used once by registrations with the shared secret.
CREATE TABLE registration_nonces (
    nonce TEXT NOT NULL PRIMARY KEY,
    expires_ts BIGINT NOT NULL
);

-- User-interactive authentication between its stages, which may go to different replicas.
CREATE TABLE interactive_auth (
    session_id TEXT NOT NULL PRIMARY KEY,
    user_id TEXT,
    operation TEXT NOT NULL,
    completed TEXT NOT NULL,
    registration_token TEXT,
    expires_ts BIGINT NOT NULL
);
CREATE INDEX interactive_auth_age ON interactive_auth (expires_ts);
