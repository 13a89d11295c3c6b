"""What is remembered from the start: organizations, tenants, plans, API keys and the ledger of requests."""

from alembic import op

revision = "0001"
down_revision: str | None = None
branch_labels = None
depends_on = None

_ORGANIZATIONS = """
CREATE TABLE organizations (
    id           text        PRIMARY KEY CHECK (id LIKE 'org\\_%'),
    name         text        NOT NULL CONSTRAINT organizations_name_unique UNIQUE,
    suspended_at timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now()
)"""

_PLANS = """
CREATE TABLE plans (
    name     text  PRIMARY KEY,
    limits   jsonb NOT NULL CHECK (jsonb_typeof(limits) = 'array'),
    metering text  NOT NULL CHECK (metering IN ('native', 'inline'))
)"""

_TENANTS = """
CREATE TABLE tenants (
    id              text        PRIMARY KEY CHECK (id LIKE 'ten\\_%'),
    organization_id text        NOT NULL REFERENCES organizations (id),
    name            text        NOT NULL,
    plan            text        NOT NULL CONSTRAINT tenants_plan_known REFERENCES plans (name),
    suspended_at    timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT tenants_name_unique UNIQUE (organization_id, name)
)"""

# `id` is the public part of the key; `hash` is keyed, so that the table holds nothing that opens a door.
_API_KEYS = """
CREATE TABLE api_keys (
    id         text        PRIMARY KEY,
    tenant_id  text        NOT NULL CONSTRAINT api_keys_tenant_known REFERENCES tenants (id),
    name       text        NOT NULL,
    tag        text        NOT NULL,
    hash       bytea       NOT NULL UNIQUE CHECK (octet_length(hash) = 32),
    expires_at timestamptz,
    revoked_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
)"""

# No foreign keys: what was used is written down even when its tenant is gone.
_INFERENCE_REQUESTS = """
CREATE TABLE inference_requests (
    request_id      uuid        PRIMARY KEY,
    organization_id text        NOT NULL,
    tenant_id       text        NOT NULL,
    principal_id    text        NOT NULL,
    key_id          text        NOT NULL,
    path            text        NOT NULL,
    model           text        NOT NULL,
    stream          boolean     NOT NULL,
    metering        text        NOT NULL,
    received_at     timestamptz NOT NULL,
    admitted_at     timestamptz NOT NULL,
    first_event_at  timestamptz,
    ended_at        timestamptz NOT NULL,
    state           text        NOT NULL CHECK (state IN ('completed', 'failed', 'cancelled', 'timed_out')),
    cause           text        NOT NULL,
    status          smallint    NOT NULL,
    input_tokens    bigint      NOT NULL CHECK (input_tokens >= 0),
    output_tokens   bigint      NOT NULL CHECK (output_tokens >= 0),
    usage_source    text        NOT NULL CHECK (usage_source IN ('exact', 'estimated')),
    input_estimate  bigint      NOT NULL,
    output_reserved bigint      NOT NULL,
    events          bigint      NOT NULL,
    response_bytes  bigint      NOT NULL,
    settled_at      timestamptz NOT NULL DEFAULT now()
)"""

_USAGE_INDEX = "CREATE INDEX inference_requests_usage ON inference_requests (tenant_id, ended_at)"

_REFUSE_CHANGE = """
CREATE FUNCTION refuse_ledger_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'inference_requests is append-only';
END
$$"""

_APPEND_ONLY = """
CREATE TRIGGER inference_requests_append_only BEFORE UPDATE OR DELETE ON inference_requests
FOR EACH STATEMENT EXECUTE FUNCTION refuse_ledger_change()"""

_ANNOUNCE = """
CREATE FUNCTION announce_identity_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('identity_changed', TG_TABLE_NAME);
    RETURN NULL;
END
$$"""

# Written out as data: later code may rename what it likes, this revision stays what it was.
_SHIPPED_PLANS = """
INSERT INTO plans (name, metering, limits)
SELECT name, 'native', jsonb_build_array(
    jsonb_build_object('name', 'requests_per_minute', 'unit', 'requests', 'window', 'sliding',
                       'ceiling', requests, 'seconds', 60),
    jsonb_build_object('name', 'tokens_per_day', 'unit', 'tokens', 'window', 'calendar_day',
                       'ceiling', tokens, 'seconds', 0),
    jsonb_build_object('name', 'concurrent_requests', 'unit', 'concurrent_requests', 'window', 'lease',
                       'ceiling', concurrent, 'seconds', 0))
FROM (VALUES ('free', 10, 100000, 2), ('pro', 100, 1000000, 10), ('enterprise', 1000, 100000000, 50))
    AS shipped (name, requests, tokens, concurrent)"""

_TABLES = (_ORGANIZATIONS, _PLANS, _TENANTS, _API_KEYS, _INFERENCE_REQUESTS, _USAGE_INDEX)
_ANNOUNCED = ("organizations", "plans", "tenants", "api_keys")


def upgrade() -> None:
    for statement in (*_TABLES, _REFUSE_CHANGE, _APPEND_ONLY, _ANNOUNCE):
        op.execute(statement)
    for table in _ANNOUNCED:
        op.execute(
            f"CREATE TRIGGER {table}_announce AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION announce_identity_change()"
        )
    op.execute(_SHIPPED_PLANS)


def downgrade() -> None:
    for table in ("inference_requests", "api_keys", "tenants", "plans", "organizations"):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP FUNCTION refuse_ledger_change()")
    op.execute("DROP FUNCTION announce_identity_change()")
