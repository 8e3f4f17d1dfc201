-- What was in force at a time of the past, out of what has been replaced since, in a room whose state is large.
CREATE INDEX room_state_replaced ON room_state (room_id, replaced_at) WHERE replaced_at IS NOT NULL;
