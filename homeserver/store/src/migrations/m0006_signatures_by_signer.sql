-- What a user signed, which goes when the account is closed.
CREATE INDEX key_signatures_signer ON key_signatures (signer_id);
