-- Filters, profiles, pushers, room aliases and the room directory.

-- Filters that clients uploaded; a row never changes, equal filters of a user share one.
CREATE TABLE filters (
    user_id TEXT NOT NULL,
    filter_id BIGINT NOT NULL,
    definition TEXT NOT NULL,
    PRIMARY KEY (user_id, filter_id)
);

-- The global profile: one row a field; search_text is the display name in lower case.
CREATE TABLE profile_fields (
    user_id TEXT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    search_text TEXT,
    PRIMARY KEY (user_id, name)
);

CREATE TABLE pushers (
    app_id TEXT NOT NULL,
    pushkey TEXT NOT NULL,
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    pusher TEXT NOT NULL,
    PRIMARY KEY (app_id, pushkey, user_id)
);
CREATE INDEX pushers_user ON pushers (user_id, device_id);

CREATE TABLE room_aliases (
    alias TEXT NOT NULL PRIMARY KEY,
    room_id TEXT NOT NULL,
    creator TEXT NOT NULL
);
CREATE INDEX room_aliases_room ON room_aliases (room_id);

-- The rooms that the server lists to strangers.
CREATE TABLE room_directory (
    room_id TEXT NOT NULL PRIMARY KEY
);
