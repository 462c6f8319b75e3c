-- Jobs, the idempotency keys they were sent with, finished pictures, and the servers that share them.
-- Times are Unix seconds, but for a server's lease, which is the database's own time. `number` is the
-- order of arrival; `media_id` the number of the lease under which `owner` has the job.

CREATE TABLE servers (
    id TEXT PRIMARY KEY,
    life TEXT NOT NULL, -- of the process that has the name now
    places INTEGER NOT NULL, -- jobs that its devices hold at once
    alive_until TIMESTAMPTZ NOT NULL
);

CREATE TABLE place ( -- of bodies and pictures; one row
    mark TEXT NOT NULL -- what its file place-id holds
);

CREATE TABLE jobs (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    key TEXT NOT NULL,
    api TEXT NOT NULL,
    state TEXT NOT NULL,
    submitted_at DOUBLE PRECISION NOT NULL,
    deadline_at DOUBLE PRECISION NOT NULL,
    started_at DOUBLE PRECISION,
    finished_at DOUBLE PRECISION,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    max_sequence_length INTEGER NOT NULL,
    num_steps INTEGER NOT NULL,
    num_outputs INTEGER NOT NULL,
    seed BIGINT,
    tries INTEGER NOT NULL,
    deaths INTEGER NOT NULL,
    media_id TEXT NOT NULL UNIQUE,
    files TEXT NOT NULL, -- JSON
    error TEXT,
    error_code TEXT,
    error_fields TEXT NOT NULL, -- JSON
    similarities TEXT NOT NULL, -- JSON
    owner TEXT -- a server; NULL: nobody's
);

CREATE INDEX unfinished_jobs ON jobs (owner, number) WHERE state IN ('QUEUED', 'PROCESSING');
CREATE INDEX ended_jobs ON jobs (finished_at) WHERE state IN ('COMPLETED', 'FAILED');

CREATE TABLE idempotency (
    key TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    body_digest BYTEA NOT NULL,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    PRIMARY KEY (key, idempotency_key)
);

CREATE INDEX idempotency_by_job ON idempotency (job_id);

CREATE TABLE media (
    media_id TEXT PRIMARY KEY,
    files TEXT NOT NULL, -- JSON
    expires_at DOUBLE PRECISION NOT NULL
);

CREATE INDEX media_by_expiry ON media (expires_at);
