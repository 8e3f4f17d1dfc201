-- Which event is the child of which.

-- One row an event that relates to another. Whether it was redacted since, and relates to nothing any more, its own row tells.
-- `annotation` is the hash of what an m.annotation says about its parent.
CREATE TABLE event_relations (
    room_id TEXT NOT NULL,
    position BIGINT NOT NULL,
    parent_id TEXT NOT NULL,
    rel_type TEXT NOT NULL,
    event_type TEXT NOT NULL,
    sender TEXT NOT NULL,
    annotation TEXT,
    PRIMARY KEY (room_id, position)
);
CREATE INDEX event_relations_parent ON event_relations (room_id, parent_id, position);
CREATE INDEX event_relations_type ON event_relations (room_id, rel_type, parent_id, position);
CREATE INDEX event_relations_annotation ON event_relations (room_id, parent_id, sender, annotation) WHERE annotation IS NOT NULL;

-- All events of the room up to there that relate to others have their rows. A replica that appends at this very place moves it on; one of
-- an older version, which writes no such rows, leaves it behind, as it is in rooms from before: what lies between
-- this and `position` has to be looked through before the room is asked for relations.
ALTER TABLE rooms ADD COLUMN relations_position BIGINT NOT NULL DEFAULT 0;
