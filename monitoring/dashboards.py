"""The one source of the dashboards: `monitoring/build` writes dashboards/*.json from it.

A dashboard is a list of rows, a row a list of panels. Every query names $job and $instance, so that a dashboard shows one deployment, or
one replica of it.
"""

R = '{job=~"$job",instance=~"$instance"}'
BY = "[$__rate_interval]"
TIMED = 'area=~"keys|rooms|send|to_device"'
USED = 'route!~"/live|/metrics|/ready|none"'
FAILED = 'status="5xx"'
GIVEN = 'type="resource_key"'
STORED = 'outcome="stored"'
ASKED = 'type="resource_key_request"'
WITHHELD = 'type="resource_key.withheld"'
REFUSED = 'outcome="refused"'
BROKEN = 'outcome="failed"'
NOT_TAKEN = 'outcome=~"refused|failed"'
PROFILE = 'errcode=~"COM.TRUSTNER.*"'
GIVEN_UP = 'outcome="given_up"'


def of(*more):
    """The label matchers of every query, and more of them."""
    return "{" + ",".join(['job=~"$job"', 'instance=~"$instance"', *more]) + "}"


def rate(metric, *more, by=None):
    labels = f" by ({by})" if by else ""
    return f"sum{labels} (rate({metric}{of(*more)}{BY}))"


def quantile(q, histogram, *more, by=None):
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({histogram}_bucket{of(*more)}{BY})))"


def quantiles(histogram, *more):
    return [(quantile(q, histogram, *more), f"{q * 100:g} %") for q in (0.5, 0.9, 0.99)]


def mean(histogram, by):
    total, count = rate(f"{histogram}_sum", by=by), rate(f"{histogram}_count", by=by)
    return f"{total} / ({count} > 0)"


def failed(metric, bad, good):
    """The share of what is bad in everything; 0 where nothing is."""
    return f"({rate(metric, bad, good)} or vector(0)) / ({rate(metric, good)} > 0) or vector(0)"


def graph(title, unit, queries, about="", width=8, stack=False):
    return {"kind": "timeseries", "title": title, "unit": unit, "queries": queries, "about": about, "width": width, "stack": stack}


def stat(title, unit, query, about="", width=4, red=None):
    return {"kind": "stat", "title": title, "unit": unit, "queries": [(query, "")], "about": about, "width": width, "red": red}


OVERVIEW = [
    ("How it is", [
        stat("Replicas", "short", f"count(keystead_build_info{R}) or vector(0)", "Replicas that answer Prometheus."),
        stat("Requests failed, 30 minutes", "percentunit", 'max(keystead:failed_requests:ratio_rate30m{job=~"$job"})',
             "Share of the requests that failed by fault of the server; the objective is 0.1 %.", red=0.001),
        stat("Requests slower than 0.5 s, 30 minutes", "percentunit", 'max(keystead:slow_requests:ratio_rate30m{job=~"$job"})',
             "Of those that people wait for; the objective is 1 %.", red=0.01),
        stat("Behind the database", "s", f"max(keystead_tail_staleness_seconds{R})",
             "How long ago the replica that is furthest behind had read everything. It looks every 2 s.", red=30),
        stat("Oldest job", "s", f"max(keystead_jobs_oldest_seconds{R})", "How long the oldest job has been waiting.", red=900),
        stat("Syncs that wait", "short", f"sum(keystead_sync_waiters{R})", "About as many clients are there now."),
    ]),
    ("What it does", [
        graph("Requests", "reqps", [(rate("keystead_http_requests_total", USED, by="status"), "{{status}}")], stack=True),
        graph("Events written", "ops", [(rate("keystead_events_total", by="instance"), "{{instance}}")],
              "Events that replicas appended to rooms.", stack=True),
        graph("Messages to devices stored", "ops", [(rate("keystead_to_device_messages_total", 'outcome="stored"'), "messages")],
              "Keys and the like, from one device to another."),
        graph("Duration of requests that people wait for", "s",
              quantiles("keystead_http_request_duration_seconds", TIMED), "Sending, rooms, keys, messages to devices."),
        graph("Work of a sync", "s", [
            (quantile(0.99, "keystead_sync_work_seconds", by="kind"), "99 % {{kind}}"),
        ], "Waiting for news not counted."),
        graph("Share of failed requests", "percentunit",
              [(failed("keystead_http_requests_total", 'status="5xx"', USED), "failed")]),
    ]),
    ("What it takes", [
        graph("Processor", "short", [(rate("process_cpu_seconds_total", by="instance"), "{{instance}}")], "Cores that are busy."),
        graph("Memory", "bytes", [(f"process_resident_memory_bytes{R}", "{{instance}}")]),
        graph("Open files", "percentunit", [
            (f"process_open_fds{R} / process_max_fds{R}", "{{instance}}"),
        ], "Share of the file descriptors that the process may have; each connection takes one."),
        graph("Versions", "short", [(f"count by (version, database) (keystead_build_info{R})", "{{version}} {{database}}")],
              "Two versions at once: a rolling upgrade.", stack=True),
        graph("Age of the processes", "s", [(f"time() - process_start_time_seconds{R}", "{{instance}}")], "A fall to 0 is a restart."),
        graph("Panics", "short", [(f"sum(increase(keystead_http_handler_panics_total{R}{BY}))", "panics")],
              "Each is a defect; the log has its place."),
    ]),
]

REQUESTS = [
    ("By route", [
        graph("Requests by route (12 busiest)", "reqps",
              [(f"topk(12, {rate('keystead_http_requests_total', USED, by='route')})", "{{route}}")], width=12),
        graph("Time spent by route (12 greatest)", "short",
              [(f"topk(12, {rate('keystead_http_request_seconds_total', USED, by='route')})", "{{route}}")],
              "Seconds a second: how many requests of a route are worked on at once; of /sync mostly waiting.", width=12),
        graph("Failed by route", "reqps",
              [(f"{rate('keystead_http_requests_total', USED, FAILED, by='route')} or vector(0)", "{{route}}")],
              "Status 5xx.", width=12),
        graph("Errcodes", "reqps", [(f"topk(12, {rate('keystead_http_errors_total', by='errcode')})", "{{errcode}}")],
              "What clients were refused with.", width=12),
    ]),
    ("Duration", [
        graph("99 % by area", "s", [(quantile(0.99, "keystead_http_request_duration_seconds", 'area!="sync"', by="area"), "{{area}}")],
              "Syncs wait for news and are not shown."),
        graph("Median by area", "s", [(quantile(0.5, "keystead_http_request_duration_seconds", 'area!="sync"', by="area"), "{{area}}")]),
        graph("Sending an event", "s", quantiles("keystead_http_request_duration_seconds", 'area="send"')),
    ]),
    ("On the way", [
        graph("In flight", "short", [(f"keystead_http_requests_in_flight{R}", "{{instance}}")],
              "Requests that are worked on now; syncs that wait are not.", stack=True),
        graph("Wait at the fence", "s", quantiles("keystead_fence_wait_seconds"),
              "Until the replica had seen what was committed before the request came."),
        graph("Passwords in the queue", "short", [(f"keystead_bcrypt_queue{R}", "{{instance}}")]),
        graph("Connections", "short", [
            (f"keystead_http_connections{R}", "{{instance}}"),
            (f"max(keystead_http_connections_limit{R})", "limit of a replica"),
        ]),
        graph("Connections that ended with an error", "ops", [(rate("keystead_http_connection_errors_total", by="layer"), "{{layer}}")]),
        graph("TLS certificate ends in", "s", [
            (f"max by (instance) (keystead_tls_certificate_expiry_timestamp_seconds{R} - time()) > 0 or vector(0)", "{{instance}}"),
        ], "0 where the server has none, because a proxy before it does."),
    ]),
    ("Media and previews", [
        graph("Media", "Bps", [(rate("keystead_media_bytes_total", by="direction"), "{{direction}}")]),
        graph("Uploads and thumbnails", "ops", [
            (rate("keystead_media_uploads_total", by="outcome"), "upload {{outcome}}"),
            (rate("keystead_media_thumbnails_total", by="outcome"), "thumbnail {{outcome}}"),
        ]),
        graph("Previews of pages", "ops", [(rate("keystead_url_previews_total", by="outcome"), "{{outcome}}")]),
    ]),
]

STREAMS = [
    ("Behind", [
        graph("How long ago everything was read", "s", [(f"keystead_tail_staleness_seconds{R}", "{{instance}}")],
              "Every replica looks every 2 s; more than a few seconds: it does not reach the database, or cannot keep up."),
        graph("Positions behind", "short", [(f"keystead_tail_lag_positions{R}", "{{instance}}")], "In the shard where it is most."),
        graph("Hints between replicas", "short", [(f"min by (instance) (keystead_wake_bus_connected{R})", "{{instance}}")],
              "1: connected. 0: news of other replicas come up to 2 s late."),
        graph("Wait at the fence", "s", quantiles("keystead_fence_wait_seconds")),
        graph("Requests at the fence", "reqps", [(rate("keystead_fence_wait_seconds_count", by="instance"), "{{instance}}")]),
    ]),
    ("Syncs", [
        graph("Syncs that wait", "short", [(f"keystead_sync_waiters{R}", "{{instance}}")], stack=True),
        graph("Syncs", "ops", [(rate("keystead_sync_work_seconds_count", by="kind"), "{{kind}}")], stack=True),
        graph("Work of an incremental sync", "s", quantiles("keystead_sync_work_seconds", 'kind="incremental"')),
        graph("Work of an initial sync", "s", quantiles("keystead_sync_work_seconds", 'kind="initial"')),
    ]),
    ("Group commit", [
        graph("Events", "ops", [(rate("keystead_events_total", by="instance"), "{{instance}}")], stack=True),
        graph("Work in one transaction (mean)", "short", [(mean("keystead_group_commit_writes", "queue"), "{{queue}}")],
              "More than 1: there was a queue while the last one committed."),
        graph("Transactions of the queues", "ops", [(rate("keystead_group_commit_writes_count", by="queue"), "{{queue}}")]),
        graph("Work that waits", "short", [(f"max by (queue) (keystead_group_commit_waiting{R})", "{{queue}}")],
              "In the replica where it is most; from 2,048 on work is refused with status 429."),
    ]),
    ("Messages to devices", [
        graph("Stored, dropped, acknowledged, expired", "ops", [
            (rate("keystead_to_device_messages_total", by="outcome"), "{{outcome}}"),
            (rate("keystead_to_device_removed_total", by="reason"), "{{reason}}"),
        ], "Dropped: too many wait for the device already."),
        graph("Waiting for their devices", "short", [(f"max(keystead_to_device_pending{R})", "messages")],
              "In the database, counted once a minute up to a million."),
    ]),
]

KEYBOX = [
    ("Exchange", [
        stat("Keys given, 1 h", "short", f"sum(increase(keystead_keybox_messages_total{of(GIVEN, STORED)}[1h]))"),
        stat("Keys asked for, 1 h", "short",
             f"sum(increase(keystead_keybox_messages_total{of(ASKED, STORED)}[1h]))"),
        stat("Refused by KeyBoxes, 1 h", "short",
             f"sum(increase(keystead_keybox_messages_total{of(WITHHELD, STORED)}[1h]))",
             "A KeyBox was asked for a key and did not give it."),
        stat("Refused by the server, 1 h", "short",
             f"sum(increase(keystead_keybox_messages_total{of(REFUSED)}[1h]))", "See the errcodes below."),
        stat("Failed, 1 h", "short", f"sum(increase(keystead_keybox_messages_total{of(BROKEN)}[1h]))",
             "The server could not do it.", red=1),
        stat("Share not taken, 30 minutes", "percentunit",
             f"sum(rate(keystead_keybox_messages_total{of(NOT_TAKEN)}[30m]))"
             f" / (sum(rate(keystead_keybox_messages_total{of()}[30m])) > 0) or vector(0)", red=0.2),
        graph("Key messages stored", "ops", [(rate("keystead_keybox_messages_total", 'outcome="stored"', by="type"), "{{type}}")],
              "resource_key: a key is given; .ack: it has arrived; _request: it is asked for; .withheld: it is refused by a KeyBox."),
        graph("Key messages not stored", "ops",
              [(rate("keystead_keybox_messages_total", 'outcome!="stored"', by="type, outcome"), "{{type}} {{outcome}}")]),
        graph("Errcodes of the profile", "reqps",
              [(f"{rate('keystead_http_errors_total', PROFILE, by='errcode')} or vector(0)", "{{errcode}}")],
              "NOT_A_MEMBER, ROOM_CLOSED, TOO_MANY_PENDING: SPEC.md, section 7."),
    ]),
    ("Transport", [
        graph("Duration of sending to devices", "s", quantiles("keystead_http_request_duration_seconds", 'area="to_device"')),
        graph("Duration of calls about keys", "s", quantiles("keystead_http_request_duration_seconds", 'area="keys"')),
        graph("Requests to the profile's own endpoints", "reqps",
              [(rate("keystead_http_requests_total", 'route=~".*com.trustner.keybox.*"', by="route"), "{{route}}")],
              "Registry, audit log, passphrases."),
        graph("Messages dropped, devices full", "ops", [(rate("keystead_to_device_messages_total", 'outcome="dropped"'), "dropped")]),
        graph("One-time keys claimed, keys uploaded: transactions", "ops",
              [(rate("keystead_group_commit_writes_count", 'queue=~"key_.*"', by="queue"), "{{queue}}")]),
    ]),
]

EXPORTER = '{job=~"$exporter"}'
POSTGRESQL = [
    ("As the server sees it", [
        graph("Transactions", "ops", [(rate("keystead_transaction_duration_seconds_count", by="kind"), "{{kind}}")], stack=True),
        graph("Duration of writing", "s", quantiles("keystead_transaction_duration_seconds", 'kind="write"')),
        graph("Duration of reading", "s", quantiles("keystead_transaction_duration_seconds", 'kind="read"')),
        graph("Time by transaction (12 greatest)", "short",
              [(f"topk(12, {rate('keystead_transaction_seconds_total', by='name')})", "{{name}}")],
              "Seconds a second: how many are under way at once."),
        graph("Mean duration by transaction (12 greatest)", "s",
              [(f"topk(12, {rate('keystead_transaction_seconds_total', by='name')}"
                f" / ({rate('keystead_transactions_total', by='name')} > 0))", "{{name}}")]),
        graph("Round trips", "ops", [(rate("keystead_database_statements_total", by="kind"), "{{kind}}")], stack=True),
        graph("Share that failed", "percentunit", [
            (f"({rate('keystead_transactions_total', BROKEN)} or vector(0)) / ({rate('keystead_transactions_total')} > 0)", "failed"),
        ], "Failed: by the database. Refused: its caller changed its mind, for what it had read."),
        graph("Tried again", "ops", [(f"topk(12, {rate('keystead_transaction_retries_total', by='name')})", "{{name}}")],
              "Another transaction was in the way."),
        graph("Wait for a connection", "s", quantiles("keystead_database_pool_wait_seconds"), "BEGIN included."),
        graph("Connections", "short", [
            (f"sum by (instance, kind, state) (keystead_database_connections{R})", "{{instance}} {{kind}} {{state}}"),
            (f"max by (kind) (keystead_database_connections_limit{R})", "limit of a replica, {{kind}}"),
        ], width=16),
    ]),
    ("As PostgreSQL sees it (needs postgres_exporter)", [
        stat("Answers", "short", f"min(pg_up{EXPORTER})", "1: postgres_exporter reaches PostgreSQL."),
        stat("Connections used", "percentunit", f"sum(pg_stat_activity_count{EXPORTER}) / max(pg_settings_max_connections{EXPORTER})",
             "Of max_connections: all replicas' limits together must be less.", red=0.9),
        stat("Found in memory", "percentunit",
             f"sum(rate(pg_stat_database_blks_hit{EXPORTER}{BY})) / (sum(rate(pg_stat_database_blks_hit{EXPORTER}{BY}))"
             f" + sum(rate(pg_stat_database_blks_read{EXPORTER}{BY})) > 0) or vector(1)", "Pages that were in shared_buffers."),
        stat("Size", "bytes", f"max(pg_database_size_bytes{EXPORTER})", "Of the greatest database."),
        stat("Longest transaction", "s", f"max(pg_stat_activity_max_tx_duration{EXPORTER})",
             "A long one keeps dead rows from being cleared away.", red=300),
        stat("Deadlocks, 1 h", "short", f"sum(increase(pg_stat_database_deadlocks{EXPORTER}[1h]))"),
        graph("Commits and rollbacks", "ops", [
            (f"sum by (datname) (rate(pg_stat_database_xact_commit{EXPORTER}{BY}))", "{{datname}} commits"),
            (f"sum by (datname) (rate(pg_stat_database_xact_rollback{EXPORTER}{BY}))", "{{datname}} rollbacks"),
        ]),
        graph("Connections by state", "short", [(f"sum by (state) (pg_stat_activity_count{EXPORTER})", "{{state}}")], stack=True),
        graph("Locks", "short", [(f"sum by (mode) (pg_locks_count{EXPORTER})", "{{mode}}")]),
        graph("Rows written", "ops", [
            (f"sum by (datname) (rate(pg_stat_database_tup_inserted{EXPORTER}{BY}))", "{{datname}} inserted"),
            (f"sum by (datname) (rate(pg_stat_database_tup_updated{EXPORTER}{BY}))", "{{datname}} updated"),
            (f"sum by (datname) (rate(pg_stat_database_tup_deleted{EXPORTER}{BY}))", "{{datname}} deleted"),
        ]),
        graph("Size", "bytes", [(f"pg_database_size_bytes{EXPORTER}", "{{datname}}")]),
        graph("Temporary files", "Bps", [(f"sum by (datname) (rate(pg_stat_database_temp_bytes{EXPORTER}{BY}))", "{{datname}}")],
              "What did not fit into work_mem."),
    ]),
]

JOBS = [
    ("Jobs", [
        stat("Waiting", "short", f"max(keystead_jobs_waiting{R})", "Necessary and not done."),
        stat("Oldest", "s", f"max(keystead_jobs_oldest_seconds{R})", red=900),
        stat("Given up, 24 h", "short", f"sum(increase(keystead_jobs_total{of(GIVEN_UP)}[24h]))", red=1),
        graph("Waiting", "short", [(f"max(keystead_jobs_waiting{R})", "jobs")], "The same in all replicas: they share them.", width=12),
        graph("Attempts", "ops", [(rate("keystead_jobs_total", by="kind, outcome"), "{{kind}} {{outcome}}")],
              "failed: tried again after a minute, thirty times."),
        graph("Age of the oldest", "s", [(f"max(keystead_jobs_oldest_seconds{R})", "oldest")]),
        graph("Time spent", "short", [(rate("keystead_job_seconds_total", by="kind"), "{{kind}}")], "Seconds a second."),
    ]),
    ("Housekeeping", [
        graph("Messages expired", "ops", [(rate("keystead_to_device_removed_total", 'reason="expired"'), "messages")],
              "Their devices have not been seen for 90 days."),
        graph("Transactions of jobs and housekeeping", "ops", [
            (rate("keystead_transactions_total", 'name=~"lease_jobs|delete_job|forget_.*|expire_messages|count_to_device"', by="name"), "{{name}}"),
        ], width=16),
    ]),
]

DASHBOARDS = {
    "overview": ("Keystead: overview", OVERVIEW),
    "requests": ("Keystead: request path", REQUESTS),
    "streams": ("Keystead: streams", STREAMS),
    "keybox": ("Keystead: KeyBox exchange", KEYBOX),
    "postgresql": ("Keystead: PostgreSQL", POSTGRESQL),
    "jobs": ("Keystead: jobs", JOBS),
}
