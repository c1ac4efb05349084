-- .chump/state.db as the first implementation and its neighbours left it.
CREATE TABLE gaps (id TEXT PRIMARY KEY, status TEXT NOT NULL);
INSERT INTO gaps VALUES ('INFRA-7', 'open');
CREATE TABLE routing_outcomes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    recorded_at TEXT NOT NULL,
    task_class TEXT NOT NULL,
    priority TEXT NOT NULL,
    effort TEXT NOT NULL,
    backend TEXT NOT NULL,
    model TEXT NOT NULL,
    gap_id TEXT NOT NULL,
    outcome TEXT NOT NULL,
    duration_s INTEGER NOT NULL,
    cost_usd REAL NOT NULL DEFAULT 0.0,
    node TEXT NOT NULL DEFAULT "here",
    created_at TEXT NOT NULL
);
INSERT INTO routing_outcomes
    (recorded_at, task_class, priority, effort, backend, model, gap_id, outcome, duration_s, cost_usd,
     created_at)
VALUES ('2026-04-20T08:00:00Z', 'research', 'P1', 'm', 'claude', 'opus', 'EVAL-7', 'stalled', 3600, 0.6,
        '2026-04-20 08:00:00');
