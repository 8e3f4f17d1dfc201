-- Whether users are there, one row for each who ever said so. Only servers with presence switched on write here.
CREATE TABLE presence (
    user_id TEXT NOT NULL PRIMARY KEY,
    state TEXT NOT NULL,
    status_msg TEXT,
    last_active_ts BIGINT NOT NULL,
    seen_ts BIGINT NOT NULL
);
