-- Who came to or went from a room since a position: what a sync asks for its device lists.
CREATE INDEX memberships_room_position ON memberships (room_id, position);
