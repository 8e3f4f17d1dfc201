-- Fills a database with what a large organisation has: members of one room, many rooms of one account, and their events.
--
-- Variables: big (a room made by the server), template (another), account (its owner), members, rooms, events (in a room).
-- No server may run meanwhile. Ids and JSON have the form and length of real ones; signatures are not valid.

SET synchronous_commit = off;
SET maintenance_work_mem = '1GB';
-- Workers would share that memory, of which a container has little.
SET max_parallel_maintenance_workers = 0;

CREATE FUNCTION pg_temp.long_id(sigil text, seed text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT sigil || rtrim(translate(encode(sha256(convert_to(seed, 'UTF8')), 'base64'), '+/', '-_'), '=')
$$;

-- The shard of a room: FNV-1a, 64 bits, modulo the number of room shards.
CREATE FUNCTION pg_temp.shard_of(room_id text) RETURNS smallint LANGUAGE plpgsql AS $$
DECLARE
  hash numeric := 14695981039346656037;
  shards integer := (SELECT count(*) / 2 FROM stream_shards);
  low bigint;
BEGIN
  FOR i IN 0 .. octet_length(room_id) - 1 LOOP
    low := (hash % 256)::bigint;
    hash := (hash - low + (low # get_byte(convert_to(room_id, 'UTF8'), i))) * 1099511628211 % 18446744073709551616;
  END LOOP;
  RETURN (hash % shards)::smallint;
END $$;

-- An event's JSON, with the parts that every event has.
CREATE FUNCTION pg_temp.event(room text, sender text, type text, state_key text, content text, depth bigint, prev text)
RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT '{"auth_events":["' || pg_temp.long_id('$', 'auth1') || '","' || pg_temp.long_id('$', 'auth2') || '"],"content":' || content
    || ',"depth":' || depth || ',"hashes":{"sha256":"' || substr(pg_temp.long_id('$', prev), 2) || '"},"origin_server_ts":1700000000000,'
    || '"prev_events":["' || prev || '"],"room_id":"' || room || '","sender":"' || sender || '","signatures":{"load.test":{"ed25519:auto":"'
    || repeat('s', 86) || '"}},' || coalesce('"state_key":"' || state_key || '",', '') || '"type":"' || type || '"}'
$$;

DO $$ BEGIN
  -- A check of the function above against the server's own choice.
  IF EXISTS (SELECT FROM rooms WHERE shard <> pg_temp.shard_of(room_id)) THEN RAISE 'the shards differ'; END IF;
END $$;

DROP INDEX events_event_id, events_room_position;
ALTER TABLE events DROP CONSTRAINT events_pkey;

-- The members of the big room.
CREATE TEMP TABLE big AS
  SELECT r.room_id, r.shard, r.depth, s.position FROM rooms r JOIN stream_shards s USING (shard) WHERE room_id = :'big';
CREATE TEMP TABLE member AS
  SELECT n, '@member-' || n || ':load.test' AS user_id, position + n AS position, depth + n AS depth,
    pg_temp.long_id('$', 'member' || n) AS event_id, pg_temp.long_id('$', 'member' || n - 1) AS prev
  FROM big, generate_series(1, :members) n;
INSERT INTO events (shard, position, room_id, event_id, json)
  SELECT shard, m.position, room_id, event_id,
    pg_temp.event(room_id, user_id, 'm.room.member', user_id, '{"displayname":"Member ' || n || '","membership":"join"}', m.depth, prev)
  FROM big, member m ORDER BY m.position;
INSERT INTO room_state (room_id, event_type, state_key, position)
  SELECT b.room_id, 'm.room.member', m.user_id, m.position FROM big b, member m;
INSERT INTO memberships (user_id, room_id, membership, position) SELECT user_id, room_id, 'join', m.position FROM big, member m;
UPDATE rooms SET position = m.position, depth = m.depth, extremities = '["' || m.event_id || '"]'
  FROM member m WHERE m.n = :members AND room_id = :'big';
UPDATE stream_shards SET position = stream_shards.position + :members FROM big WHERE big.shard = stream_shards.shard;

-- Copies of the template, all joined by its owner. `rank` is the room's number within its shard.
CREATE TEMP TABLE copy AS
  SELECT c.*, row_number() OVER (PARTITION BY shard ORDER BY n) - 1 AS rank, count(*) OVER (PARTITION BY shard) AS peers
  FROM (SELECT n, pg_temp.long_id('!', 'room' || n) AS room_id, pg_temp.shard_of(pg_temp.long_id('!', 'room' || n)) AS shard
        FROM generate_series(1, :rooms) n) c;
CREATE TEMP TABLE part AS
  SELECT e.position, e.json, row_number() OVER (ORDER BY e.position) - 1 AS part, count(*) OVER () AS parts FROM events e WHERE room_id = :'template';
CREATE TEMP TABLE copied AS
  SELECT c.*, part.part, part.parts, part.position AS original, s.position + part.part * c.peers + c.rank + 1 AS position,
    pg_temp.long_id('$', c.room_id || part.part) AS event_id, part.json
  FROM copy c JOIN stream_shards s USING (shard) CROSS JOIN part;
INSERT INTO events (shard, position, room_id, event_id, json)
  SELECT shard, position, room_id, event_id, replace(json, :'template', room_id) FROM copied ORDER BY shard, position;
INSERT INTO room_state (room_id, event_type, state_key, position)
  SELECT c.room_id, s.event_type, s.state_key, c.position FROM copied c JOIN room_state s ON s.room_id = :'template' AND s.position = c.original
  WHERE s.replaced_at IS NULL;
INSERT INTO memberships (user_id, room_id, membership, position)
  SELECT :'account', c.room_id, 'join', c.position FROM copied c JOIN room_state s ON s.room_id = :'template' AND s.position = c.original
  WHERE s.event_type = 'm.room.member';
UPDATE stream_shards SET position = stream_shards.position + c.peers * c.parts
  FROM (SELECT DISTINCT shard, peers, parts FROM copied) c WHERE c.shard = stream_shards.shard;

-- Messages, in turn in all these rooms.
INSERT INTO events (shard, position, room_id, event_id, json, device_id, transaction_id)
  SELECT c.shard, s.position + turn * c.peers + c.rank + 1, c.room_id, pg_temp.long_id('$', c.room_id || 'm' || turn),
    pg_temp.event(c.room_id, :'account', 'm.room.message', NULL, '{"body":"' || repeat('x', 200) || '","msgtype":"m.text"}',
      100 + turn, pg_temp.long_id('$', c.room_id || 'm' || turn - 1)), 'ABCDEFGHIJ', 'transaction' || turn
  FROM generate_series(0, :events - 1) turn, copy c JOIN stream_shards s USING (shard);
INSERT INTO rooms (room_id, shard, version, position, depth, extremities)
  SELECT c.room_id, c.shard, t.version, s.position + (:events - 1) * c.peers + c.rank + 1, 100 + :events,
    '["' || pg_temp.long_id('$', c.room_id || 'm' || :events - 1) || '"]'
  FROM copy c JOIN stream_shards s USING (shard), rooms t WHERE t.room_id = :'template';
UPDATE stream_shards SET position = stream_shards.position + c.peers * :events
  FROM (SELECT DISTINCT shard, peers FROM copy) c WHERE c.shard = stream_shards.shard;

-- None of these events relates to another. The server would look through all of them while it is measured.
UPDATE rooms SET relations_position = position;

ALTER TABLE events ADD PRIMARY KEY (shard, position);
CREATE UNIQUE INDEX events_event_id ON events (event_id);
CREATE UNIQUE INDEX events_room_position ON events (room_id, position);
VACUUM ANALYZE;
