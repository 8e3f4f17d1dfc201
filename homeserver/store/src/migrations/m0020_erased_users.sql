-- Users who asked for erasure: those who were not in a room with them are shown their messages empty.

ALTER TABLE users ADD COLUMN erased BOOLEAN NOT NULL DEFAULT FALSE;
