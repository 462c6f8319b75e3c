-- Jobs, the idempotency keys they were sent with, and finished pictures, which outlive their job.
-- Times are Unix seconds. `number` is the order of arrival.

CREATE TABLE jobs (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    key TEXT NOT NULL,
    api TEXT NOT NULL,
    state TEXT NOT NULL,
    submitted_at REAL NOT NULL,
    deadline_at REAL NOT NULL,
    started_at REAL,
    finished_at REAL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    max_sequence_length INTEGER NOT NULL,
    num_steps INTEGER NOT NULL,
    num_outputs INTEGER NOT NULL,
    seed INTEGER,
    tries INTEGER NOT NULL,
    deaths INTEGER NOT NULL,
    media_id TEXT NOT NULL UNIQUE,
    files TEXT NOT NULL, -- JSON
    error TEXT,
    error_code TEXT
);

CREATE INDEX jobs_by_state ON jobs (state, finished_at);

CREATE TABLE idempotency (
    key TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    body_digest BLOB NOT NULL,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    PRIMARY KEY (key, idempotency_key)
);

CREATE INDEX idempotency_by_job ON idempotency (job_id);

CREATE TABLE media (
    media_id TEXT PRIMARY KEY NOT NULL,
    files TEXT NOT NULL, -- JSON
    expires_at REAL NOT NULL
);

CREATE INDEX media_by_expiry ON media (expires_at);
