-- Media are counted and listed by owner, cleared away by age, and may be withheld.
ALTER TABLE media ADD COLUMN quarantined_ts BIGINT;
CREATE INDEX media_sizes ON media (user_id, size) WHERE object IS NOT NULL;
CREATE INDEX media_of_user ON media (user_id, created_ts, media_id);
CREATE INDEX media_by_age ON media (created_ts, media_id);

-- What pages said about themselves when they were last fetched; nothing for one that could not be. The newest row of a page counts.
CREATE TABLE url_previews (
    url_hash TEXT NOT NULL,
    fetched_ts BIGINT NOT NULL,
    preview TEXT,
    media_id TEXT,
    PRIMARY KEY (url_hash, fetched_ts)
);
CREATE INDEX url_previews_by_age ON url_previews (fetched_ts);
