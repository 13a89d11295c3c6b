"""Who may do what: roles, scopes, workloads, suspension, versions of rows, signing keys and the audit chain."""

from alembic import op

revision = "0002"
down_revision: str | None = "0001"
branch_labels = None
depends_on = None

_COLUMNS = (
    "ALTER TABLE organizations ADD deleted_at timestamptz",
    "ALTER TABLE organizations DROP CONSTRAINT organizations_name_unique",
    "CREATE UNIQUE INDEX organizations_name_unique ON organizations (name) WHERE deleted_at IS NULL",
    """ALTER TABLE tenants
    ADD deleted_at           timestamptz,
    ADD limits               jsonb   NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(limits) = 'array'),
    ADD networks             text[]  NOT NULL DEFAULT '{}',
    ADD certificate_required boolean NOT NULL DEFAULT false,
    ADD routing_policy       jsonb   CHECK (jsonb_typeof(routing_policy) = 'object')""",
    "ALTER TABLE tenants DROP CONSTRAINT tenants_name_unique",
    "CREATE UNIQUE INDEX tenants_name_unique ON tenants (organization_id, name) WHERE deleted_at IS NULL",
    # `previous_hash` opens the door until `previous_expires_at`: the key from before a rotation.
    """ALTER TABLE api_keys
    ADD scopes              text[]  NOT NULL DEFAULT '{}',
    ADD roles               text[]  NOT NULL DEFAULT '{}',
    ADD models              text[]  NOT NULL DEFAULT '{}',
    ADD networks            text[]  NOT NULL DEFAULT '{}',
    ADD limits              jsonb   NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(limits) = 'array'),
    ADD suspended_at        timestamptz,
    ADD rotated_at          timestamptz,
    ADD previous_hash       bytea   CHECK (octet_length(previous_hash) = 32),
    ADD previous_expires_at timestamptz,
    ADD CHECK ((previous_hash IS NULL) = (previous_expires_at IS NULL))""",
    "CREATE INDEX api_keys_tenant ON api_keys (tenant_id, created_at)",
)

_ROLES = """
CREATE TABLE roles (
    name       text        PRIMARY KEY,
    scopes     text[]      NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
)"""

# `certificate_name` is what the certificate says: spiffe://... or dns:...
_WORKLOADS = """
CREATE TABLE workloads (
    id               text        PRIMARY KEY CHECK (id LIKE 'wl\\_%'),
    tenant_id        text        NOT NULL CONSTRAINT workloads_tenant_known REFERENCES tenants (id),
    certificate_name text        NOT NULL CONSTRAINT workloads_name_unique UNIQUE,
    scopes           text[]      NOT NULL DEFAULT '{}',
    roles            text[]      NOT NULL DEFAULT '{}',
    models           text[]      NOT NULL DEFAULT '{}',
    networks         text[]      NOT NULL DEFAULT '{}',
    limits           jsonb       NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(limits) = 'array'),
    suspended_at     timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now()
)"""

# The subjects of JWTs are not stored, but for what an administrator says of them.
_SUBJECTS = """
CREATE TABLE subjects (
    id           text        PRIMARY KEY CHECK (id LIKE 'jwt\\_%'),
    tenant_id    text        NOT NULL CONSTRAINT subjects_tenant_known REFERENCES tenants (id),
    suspended_at timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now()
)"""

# Apart from api_keys: a use is no change of the key, and nobody need be told.
_KEY_USES = """
CREATE TABLE key_uses (
    key_id       text        PRIMARY KEY REFERENCES api_keys (id),
    last_used_at timestamptz NOT NULL
)"""

# `private_key` is encrypted with a key that comes from the pepper. A key is published from `created_at`, signs from
# `active_from` until the next one does, and is published until `retired_at`.
_SIGNING_KEYS = """
CREATE TABLE signing_keys (
    id          text        PRIMARY KEY,
    public_key  text        NOT NULL,
    private_key bytea       NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    active_from timestamptz NOT NULL,
    retired_at  timestamptz
)"""

# `number` has no gaps and `hash` covers the row and the hash before it: what is changed or taken out shows.
_AUDIT = """
CREATE TABLE audit (
    number         bigint      PRIMARY KEY CHECK (number > 0),
    at             timestamptz NOT NULL,
    actor          text        NOT NULL,
    action         text        NOT NULL,
    subject        text        NOT NULL,
    tenant_id      text,
    source         text        NOT NULL,
    request_id     text,
    before         jsonb,
    after          jsonb,
    previous_hash  bytea       NOT NULL CHECK (octet_length(previous_hash) = 32),
    hash           bytea       NOT NULL UNIQUE CHECK (octet_length(hash) = 32)
)"""
_AUDIT_INDEX = "CREATE INDEX audit_subject ON audit (subject, number)"

_REFUSE_CHANGE = """
CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit is append-only';
END
$$"""
_APPEND_ONLY = """
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()"""

# A TRUNCATE passed the trigger for statements that change rows.
_LEDGER_NOT_EMPTIED = """
CREATE TRIGGER inference_requests_not_emptied BEFORE TRUNCATE ON inference_requests
FOR EACH STATEMENT EXECUTE FUNCTION refuse_ledger_change()"""

# A version is never given twice, and a row's versions rise: its lock is held when the trigger draws one.
_VERSION = """
CREATE FUNCTION set_identity_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.version := nextval('identity_version');
    RETURN NEW;
END
$$"""

# Says `table:id:version`; after a TRUNCATE `*`. Whoever holds a copy of an older version drops it.
_ANNOUNCE = """
CREATE OR REPLACE FUNCTION announce_identity_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_LEVEL = 'STATEMENT' THEN
        PERFORM pg_notify('identity_changed', '*');
    ELSIF TG_OP = 'DELETE' THEN
        PERFORM pg_notify('identity_changed',
                          TG_TABLE_NAME || ':' || (to_jsonb(OLD) ->> TG_ARGV[0]) || ':' || nextval('identity_version'));
    ELSE
        PERFORM pg_notify('identity_changed',
                          TG_TABLE_NAME || ':' || (to_jsonb(NEW) ->> TG_ARGV[0]) || ':' || NEW.version);
    END IF;
    RETURN NULL;
END
$$"""

# The column that names a row in an announcement.
_VERSIONED = {
    "organizations": "id",
    "plans": "name",
    "tenants": "id",
    "api_keys": "id",
    "roles": "name",
    "workloads": "certificate_name",
    "subjects": "id",
    "signing_keys": "id",
}

_SHIPPED_ROLES = """
INSERT INTO roles (name, scopes) VALUES
('inference', ARRAY['inference:text', 'inference:image', 'inference:audio', 'inference:embeddings', 'models:read',
                    'requests:read', 'requests:cancel', 'usage:read']),
('viewer', ARRAY['models:read', 'requests:read', 'usage:read']),
('key-manager', ARRAY['keys:read', 'keys:write']),
('operator', ARRAY['cluster:read', 'cluster:write', 'models:read', 'models:write', 'requests:read', 'requests:cancel',
                   'usage:read']),
('admin', ARRAY['admin'])"""
# Until now every key could do what there was to do.
_KEYS_OF_BEFORE = "UPDATE api_keys SET roles = '{inference}'"
# A plan that was edited, or has the limit already, stays as it is.
_HOURLY = """
UPDATE plans SET limits = plans.limits || jsonb_build_array(
    jsonb_build_object('name', 'requests_per_hour', 'unit', 'requests', 'window', 'sliding',
                       'ceiling', shipped.an_hour, 'seconds', 3600))
FROM (VALUES ('free', 10, 100), ('pro', 100, 1000), ('enterprise', 1000, 10000)) AS shipped (name, a_minute, an_hour)
WHERE plans.name = shipped.name
  AND plans.limits @> jsonb_build_array(jsonb_build_object('name', 'requests_per_minute', 'ceiling', shipped.a_minute))
  AND NOT plans.limits @> '[{"name": "requests_per_hour"}]'"""


def upgrade() -> None:
    for statement in (*_COLUMNS, _ROLES, _WORKLOADS, _SUBJECTS, _KEY_USES, _SIGNING_KEYS, _AUDIT, _AUDIT_INDEX):
        op.execute(statement)
    for statement in (
        _REFUSE_CHANGE,
        _APPEND_ONLY,
        _LEDGER_NOT_EMPTIED,
        "CREATE SEQUENCE identity_version",
        _VERSION,
        _ANNOUNCE,
    ):
        op.execute(statement)
    for table, name in _VERSIONED.items():
        op.execute(f"ALTER TABLE {table} ADD version bigint NOT NULL DEFAULT 0")
        op.execute(f"DROP TRIGGER IF EXISTS {table}_announce ON {table}")
        op.execute(
            f"CREATE TRIGGER {table}_version BEFORE INSERT OR UPDATE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION set_identity_version()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_announce AFTER INSERT OR UPDATE OR DELETE ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION announce_identity_change('{name}')"
        )
        op.execute(
            f"CREATE TRIGGER {table}_announce_all AFTER TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION announce_identity_change()"
        )
        op.execute(f"UPDATE {table} SET version = version")  # noqa: S608 - names of our own tables
    for statement in (_SHIPPED_ROLES, _KEYS_OF_BEFORE, _HOURLY):
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("who may do what would be lost; restore a backup instead")
