-- Media: what users have uploaded. The bytes are objects outside of the database.

-- A row without an object is an address that was reserved for an upload to come, and lapses at its time.
CREATE TABLE media (
    media_id TEXT NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    created_ts BIGINT NOT NULL,
    expires_ts BIGINT,
    object TEXT,
    content_type TEXT,
    file_name TEXT,
    size BIGINT
);
CREATE INDEX media_reserved_by ON media (user_id, expires_ts) WHERE object IS NULL;
CREATE INDEX media_reserved ON media (expires_ts) WHERE object IS NULL;

-- Small versions of pictures, made when somebody first asked for them.
CREATE TABLE media_thumbnails (
    media_id TEXT NOT NULL,
    method TEXT NOT NULL,
    width BIGINT NOT NULL,
    height BIGINT NOT NULL,
    object TEXT NOT NULL,
    content_type TEXT NOT NULL,
    size BIGINT NOT NULL,
    PRIMARY KEY (media_id, method, width, height)
);
