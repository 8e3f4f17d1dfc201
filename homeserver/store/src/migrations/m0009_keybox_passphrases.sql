-- Passphrases of KeyBoxes' private keys, sealed under a master key that is not in this database.

-- previous is there while a client is about to seal its private keys anew: until then the older passphrase may be needed.
CREATE TABLE keybox_passphrases (
    user_id TEXT NOT NULL,
    keybox_id TEXT NOT NULL,
    sealed TEXT NOT NULL,
    previous TEXT,
    stored_ts BIGINT NOT NULL,
    PRIMARY KEY (user_id, keybox_id)
);
