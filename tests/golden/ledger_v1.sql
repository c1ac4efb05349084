-- A ledger of schema 1. Every later version must be able to read it.
CREATE TABLE dispatches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    gap TEXT NOT NULL,
    gap_snapshot TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    route TEXT NOT NULL,
    deadlines TEXT NOT NULL,
    names TEXT NOT NULL,
    created_at TEXT NOT NULL,
    state TEXT NOT NULL,
    active INTEGER AS (state IN ('planned', 'launching', 'running', 'exited')),
    workspace TEXT,
    pid INTEGER,
    launched_at TEXT,
    exit TEXT,
    exited_at TEXT,
    pull TEXT,
    pull_since TEXT,
    pull_since_active_s REAL NOT NULL,
    checks_failed_since TEXT,
    outcome TEXT,
    cause TEXT,
    reason TEXT,
    ended_at TEXT,
    siblings INTEGER,
    cost_usd REAL,
    tokens INTEGER,
    tidied INTEGER NOT NULL,
    progress INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    accepted_since INTEGER NOT NULL DEFAULT 0,
    freed_at TEXT
);
CREATE UNIQUE INDEX one_active_dispatch_per_gap ON dispatches (gap) WHERE active;
CREATE INDEX dispatches_of_a_gap ON dispatches (gap, seq);
CREATE INDEX untidy_dispatches ON dispatches (seq) WHERE tidied = 0;
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    dispatch TEXT NOT NULL UNIQUE,
    reflection TEXT NOT NULL
);
CREATE TABLE parked (
    gap TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    since TEXT NOT NULL,
    until TEXT
);
CREATE TABLE shipped (
    gap TEXT PRIMARY KEY,
    day TEXT NOT NULL,
    confirmed INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE requested (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    gap TEXT NOT NULL UNIQUE,
    at TEXT NOT NULL
);
CREATE TABLE brakes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
PRAGMA user_version = 1;

INSERT INTO dispatches
    (id, gap, gap_snapshot, attempt, route, deadlines, names, created_at, state, workspace, pid,
     launched_at, exit, exited_at, pull_since_active_s, outcome, cause, reason, ended_at, siblings,
     cost_usd, tokens, tidied, progress, failed)
VALUES
    ('infra-1-260427120000-abcdef', 'INFRA-1',
     '{"v":1,"id":"INFRA-1","title":"a title","priority":"P1","effort":"s","status":"open","kind":"user","depends_on":["INFRA-0"],"closed_date":null,"auto_dispatch_ok":false,"deadline_s":5400.0,"paths":[],"description":"","acceptance":[],"declared_domain":"","order":0,"place":{"file":"docs/gaps.yaml","line":3,"column":5}}',
     1, '{"v":1,"backend":"claude","model":"","provider_pfx":"","why":"route 1"}',
     '{"v":1,"soft_s":5400.0,"grace_s":30.0,"silent_s":300.0,"pull_s":86400.0,"ci_grace_s":1800.0,"look_interval_s":30.0}',
     '{"v":1,"branch":"claude/infra-1","folder":"infra-1"}',
     '2026-04-27T12:00:00.000000Z', 'settled',
     '{"v":1,"path":"/srv/repo/.claude/worktrees/infra-1","branch":"claude/infra-1","base":"0123456789012345678901234567890123456789"}',
     4711, '2026-04-27T12:00:01.500000Z',
     '{"v":1,"code":7,"signal":null,"stopped_by":"","spawn_error":"","lost":"","clean":true,"active_s":60.25,"peak_rss_bytes":1048576,"cpu_s":1.5}',
     '2026-04-27T12:01:02.000000Z', 0.0, 'killed', 'exit-code', 'exit code 7',
     '2026-04-27T12:01:03.000000Z', 1, 0.25, 1200, 0, 0, 1),
    -- Written by a later version with the same schema: keys that this one does not know.
    ('cog-2-260427120000-abcdef', 'COG-2',
     '{"v":1,"id":"COG-2","mood":"hopeful"}',
     2, '{"v":1,"backend":"codex","weather":"fine"}', '{"v":1,"soft_s":1200}',
     '{"v":1,"branch":"claude/cog-2-r2","folder":"cog-2-r2"}',
     '2026-04-27T12:05:00.000000Z', 'running', NULL, NULL, NULL, NULL, NULL, 0.0, NULL, NULL, NULL,
     NULL, NULL, NULL, NULL, 0, 0, 0);
INSERT INTO outbox (dispatch, reflection) VALUES
    ('infra-1-260427120000-abcdef',
     '{"v":1,"dispatch":"infra-1-260427120000-abcdef","gap":"INFRA-1","priority":"P1","effort":"s","task_class":"","outcome":"killed","cause":"exit-code","duration_s":61.5,"pull_number":null,"backend":"claude","model":"","provider_pfx":"","siblings":1,"tail":["ERROR: no"],"cost_usd":0.25,"ended_at":"2026-04-27T12:01:03.000000Z"}');
INSERT INTO parked VALUES
    ('INFRA-1', 'killed (exit code 7)', '0f', '2026-04-27T12:01:03.000000Z', '2026-04-27T12:01:13.000000Z');
INSERT INTO shipped VALUES ('INFRA-0', '2026-04-26', 1);
INSERT INTO requested (gap, at) VALUES ('INFRA-5', '2026-04-27T12:00:00.000000Z');
INSERT INTO brakes VALUES
    ('pause', '{"v":1,"by":"an operator","reason":"lunch","since":"2026-04-27T12:00:00.000000Z"}'),
    ('fuse', '{"v":1,"failures":[["auth","2026-04-27T12:00:00.000000Z"]],"cause":"auth","blown_until":"2026-04-27T12:15:00.000000Z","wait_s":900.0,"trial":""}');
INSERT INTO meta VALUES ('epoch', '3');
