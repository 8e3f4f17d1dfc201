-- Key sets of KeyBoxes that were revoked: they are never taken again, whoever still has their private keys.
CREATE TABLE revoked_key_sets (
    user_id TEXT NOT NULL,
    keybox_id TEXT NOT NULL,
    key_set_id TEXT NOT NULL,
    revoked_ts BIGINT NOT NULL,
    PRIMARY KEY (user_id, keybox_id, key_set_id)
);
