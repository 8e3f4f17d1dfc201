-- Where a room's state changed last, by a state event or by the redaction of one: whoever knows the room up to there may append
-- messages to it, whatever other messages have come since.
ALTER TABLE rooms ADD COLUMN state_position BIGINT NOT NULL DEFAULT 0;
UPDATE rooms SET state_position = position;
