-- Appends messages to rooms, as append_messages (m0018) does and for the reasons told there, but for how it looks for used transaction ids and for ended sessions:
-- message by message, where joins were planned as a pass through the whole table if that was small when PostgreSQL last looked at it.
--
-- Replicas of an older version call append_messages, which stays until a later version.
CREATE OR REPLACE FUNCTION append_messages_by_index(
    wanted_shards SMALLINT[], wanted_counts BIGINT[],
    head_shards SMALLINT[], head_rooms TEXT[], head_known BIGINT[], head_last BIGINT[], head_depths BIGINT[],
    head_consumed TEXT[], head_tips TEXT[],
    relation_rooms TEXT[], relation_after BIGINT[], relation_parents TEXT[], relation_types TEXT[],
    relation_event_types TEXT[], relation_senders TEXT[], relation_annotations TEXT[],
    message_shards SMALLINT[], message_after BIGINT[], message_rooms TEXT[], message_events TEXT[], message_json TEXT[],
    message_users TEXT[], message_devices TEXT[], message_kinds TEXT[], message_transactions TEXT[],
    message_homes SMALLINT[], message_good_up_to BIGINT[],
    now_ts BIGINT
) RETURNS TABLE (shard SMALLINT, before BIGINT, room_id TEXT, appended BOOLEAN)
LANGUAGE plpgsql AS $function$
#variable_conflict use_column
BEGIN
    -- Whoever appends to a shard holds its row until the commit, and all take the rows in this order.
    PERFORM FROM stream_shards s WHERE s.shard = ANY (wanted_shards) ORDER BY s.shard FOR UPDATE;

    RETURN QUERY
    WITH heads AS MATERIALIZED (
        SELECT * FROM UNNEST(head_shards, head_rooms, head_known, head_last, head_depths, head_consumed, head_tips)
            AS given (shard, room_id, known, last, depth, consumed, tips)
    ), message AS MATERIALIZED (
        SELECT * FROM UNNEST(message_shards, message_after, message_rooms, message_events, message_json,
                message_users, message_devices, message_kinds, message_transactions, message_homes, message_good_up_to)
            AS given (shard, after, room_id, event_id, json, user_id, device_id, kind, transaction_id, home, good_up_to)
    ), refused AS MATERIALIZED (
        SELECT m.room_id FROM message m WHERE
            (SELECT TRUE FROM client_transactions t WHERE t.user_id = m.user_id AND t.device_id = m.device_id
                AND t.kind = m.kind AND t.transaction_id = m.transaction_id)
            OR (SELECT c.position > m.good_up_to FROM user_changes c
                WHERE c.shard = m.home AND c.user_id = m.user_id AND c.kind = 'sessions')
    ), moved AS (
        UPDATE stream_shards s SET position = s.position + wanted.added
            FROM UNNEST(wanted_shards, wanted_counts) AS wanted (shard, added)
            WHERE s.shard = wanted.shard
            RETURNING s.shard, s.position - wanted.added AS before
    ), room AS (
        UPDATE rooms SET position = moved.before + heads.last, depth = GREATEST(rooms.depth, heads.depth),
                relations_position = CASE WHEN rooms.relations_position = rooms.position
                    THEN moved.before + heads.last ELSE rooms.relations_position END,
                extremities = (COALESCE((
                        SELECT jsonb_agg(tip) FROM jsonb_array_elements_text(rooms.extremities::jsonb) AS now (tip)
                        WHERE NOT jsonb_exists(heads.consumed::jsonb, tip)), '[]') || heads.tips::jsonb)::text
            FROM heads JOIN moved ON moved.shard = heads.shard
            WHERE rooms.room_id = heads.room_id AND rooms.state_position <= heads.known
            AND NOT EXISTS (SELECT FROM refused WHERE refused.room_id = heads.room_id)
            RETURNING rooms.room_id, moved.before
    ), event AS (
        INSERT INTO events (shard, position, room_id, event_id, json, device_id, transaction_id)
            SELECT m.shard, room.before + m.after, m.room_id, m.event_id, m.json, m.device_id, m.transaction_id
            FROM message m JOIN room ON room.room_id = m.room_id
    ), relation AS (
        INSERT INTO event_relations (room_id, position, parent_id, rel_type, event_type, sender, annotation)
            SELECT r.room_id, room.before + r.after, r.parent_id, r.rel_type, r.event_type, r.sender, NULLIF(r.annotation, '')
            FROM UNNEST(relation_rooms, relation_after, relation_parents, relation_types, relation_event_types,
                    relation_senders, relation_annotations)
                AS r (room_id, after, parent_id, rel_type, event_type, sender, annotation)
            JOIN room ON room.room_id = r.room_id
    ), noted AS (
        INSERT INTO client_transactions (user_id, device_id, kind, transaction_id, result, created_ts)
            SELECT m.user_id, m.device_id, m.kind, m.transaction_id, m.event_id, now_ts
            FROM message m JOIN room ON room.room_id = m.room_id
    )
    SELECT moved.shard, moved.before, heads.room_id, room.room_id IS NOT NULL
        FROM moved JOIN heads ON heads.shard = moved.shard LEFT JOIN room ON room.room_id = heads.room_id;
END
$function$;
