"""How does the ledger stay quick and end? A partition a month of receipt, made ahead and dropped as a whole.

The rows that there are move over in the migration's transaction. A ledger writer of an older release cannot write
meanwhile, nor afterwards: its events wait in Redis for one of this release.
"""

from alembic import op
from sqlalchemy import text

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Indexes and the primary key have their names back once the rows have moved.
_OLD = (
    "ALTER TABLE inference_requests RENAME TO inference_requests_unparted",
    "ALTER TABLE inference_requests_unparted DROP CONSTRAINT inference_requests_pkey",
    "DROP INDEX inference_requests_usage",
    "DROP INDEX inference_requests_admitted",
)
_NEW = (
    """CREATE TABLE inference_requests (
        LIKE inference_requests_unparted INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING COMMENTS
    ) PARTITION BY RANGE (received_at)""",
    # What no month holds: a write never fails for want of a partition.
    "CREATE TABLE inference_requests_default PARTITION OF inference_requests DEFAULT",
)
# The primary key of a partitioned table has its partition's column; that of a request never changes. A request is
# found by its id alone: it comes first.
_INDEXES = (
    "ALTER TABLE inference_requests ADD PRIMARY KEY (request_id, received_at)",
    # What usage sums is in the index: of a tenant's month, no row is read.
    """CREATE INDEX inference_requests_usage ON inference_requests (tenant_id, ended_at) INCLUDE (
        model, path, principal_id, state, usage_source, input_tokens, output_tokens, cached_tokens, reasoning_tokens,
        cost_micros)""",
    "CREATE INDEX inference_requests_admitted ON inference_requests (tenant_id, admitted_at)",
    # Of both directions: pages go backwards, an export forwards.
    "CREATE INDEX inference_requests_listed ON inference_requests (tenant_id, received_at, request_id)",
    # Rows are written in about the order of their ends: some pages say where a time is, of all tenants.
    "CREATE INDEX inference_requests_written ON inference_requests USING brin (ended_at, settlement)",
    # Without it, Postgres takes each row's day for another one once the whole table is analyzed, and sorts them all.
    "CREATE STATISTICS inference_requests_day ON (((ended_at AT TIME ZONE 'UTC')::date)) FROM inference_requests",
)

# A statement on the partitioned table runs its triggers, one on a partition the partition's own: both have them.
_APPEND_ONLY = """
CREATE FUNCTION make_ledger_append_only(part regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER inference_requests_append_only BEFORE UPDATE OR DELETE ON %s '
                   'FOR EACH STATEMENT EXECUTE FUNCTION refuse_ledger_change()', part);
    EXECUTE format('CREATE TRIGGER inference_requests_not_emptied BEFORE TRUNCATE ON %s '
                   'FOR EACH STATEMENT EXECUTE FUNCTION refuse_ledger_change()', part);
END
$$"""

# Made apart and attached: that takes no lock which a write waits for. Strays of the month move out of the default
# partition, under its lock. Of several at once, one makes it.
_ENSURE = """
CREATE FUNCTION ensure_ledger_partition(month date) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    since timestamptz := date_trunc('month', month::timestamp) AT TIME ZONE 'UTC';
    until timestamptz := (date_trunc('month', month::timestamp) + interval '1 month') AT TIME ZONE 'UTC';
    part text := 'inference_requests_' || to_char(month, 'YYYY_MM');
BEGIN
    PERFORM pg_advisory_xact_lock(7130442892);
    IF EXISTS (SELECT FROM pg_inherits
               WHERE inhparent = 'inference_requests'::regclass AND inhrelid = to_regclass(part)) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE inference_requests INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', part);
    LOCK TABLE inference_requests_default IN ACCESS EXCLUSIVE MODE;
    ALTER TABLE inference_requests_default DISABLE TRIGGER inference_requests_append_only;
    EXECUTE format('WITH stray AS (DELETE FROM inference_requests_default WHERE received_at >= $1 AND received_at < $2 '
                   'RETURNING *) INSERT INTO %I SELECT * FROM stray', part) USING since, until;
    ALTER TABLE inference_requests_default ENABLE TRIGGER inference_requests_append_only;
    EXECUTE format('ALTER TABLE inference_requests ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                   part, since, until);
    PERFORM make_ledger_append_only(to_regclass(part));
    RETURN true;
END
$$"""

# Whoever may write the ledger may call it, and no retention is so short that the limits of a month lack rows.
_DROP = """
CREATE FUNCTION drop_ledger_partition(month date) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    part text := 'inference_requests_' || to_char(month, 'YYYY_MM');
BEGIN
    IF date_trunc('month', month::timestamp) + interval '2 months' >= date_trunc('month', now() AT TIME ZONE 'UTC') THEN
        RAISE EXCEPTION 'the partition of % is too young to be dropped', to_char(month, 'YYYY-MM');
    END IF;
    PERFORM pg_advisory_xact_lock(7130442892);
    IF NOT EXISTS (SELECT FROM pg_inherits
                   WHERE inhparent = 'inference_requests'::regclass AND inhrelid = to_regclass(part)) THEN
        RETURN false;
    END IF;
    EXECUTE format('ALTER TABLE inference_requests DETACH PARTITION %I', part);
    EXECUTE format('DROP TABLE %I', part);
    RETURN true;
END
$$"""

# They run with the rights of whoever owns the ledger, so they look nothing up where others can put things.
_GUARDED = """
DO $$
DECLARE
    definer text;
BEGIN
    FOREACH definer IN ARRAY ARRAY['ensure_ledger_partition(date)', 'drop_ledger_partition(date)'] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', definer, current_schema());
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', definer);
    END LOOP;
END
$$"""

# The rights that were given on the table are rights on the new one; who may write may make and drop partitions.
_RIGHTS = """
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN
        SELECT CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END AS who,
               privilege_type AS what, CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END AS how
        FROM pg_class, aclexplode(relacl)
        WHERE oid = 'inference_requests_unparted'::regclass AND grantee <> relowner
    LOOP
        EXECUTE format('GRANT %s ON inference_requests TO %s%s', given.what, given.who, given.how);
        IF given.what = 'INSERT' THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION ensure_ledger_partition(date), drop_ledger_partition(date) TO %s',
                           given.who);
        END IF;
    END LOOP;
END
$$"""

_MONTHS = """
SELECT DISTINCT date_trunc('month', received_at AT TIME ZONE 'UTC')::date FROM inference_requests_unparted
UNION SELECT (date_trunc('month', now() AT TIME ZONE 'UTC') + ahead * interval '1 month')::date
FROM generate_series(0, 2) AS ahead ORDER BY 1"""
# A month at a time: each statement has its own time to end in.
_MOVE = """
INSERT INTO inference_requests SELECT * FROM inference_requests_unparted
WHERE received_at >= CAST(:month AS date)::timestamp AT TIME ZONE 'UTC'
  AND received_at < (CAST(:month AS date) + interval '1 month') AT TIME ZONE 'UTC'"""
_MOVED = """
DO $$
BEGIN
    IF (SELECT count(*) FROM inference_requests) <> (SELECT count(*) FROM inference_requests_unparted) THEN
        RAISE EXCEPTION 'not every row of the ledger has moved';
    END IF;
END
$$"""


def upgrade() -> None:
    for statement in (*_OLD, *_NEW, _APPEND_ONLY, _ENSURE, _DROP, _GUARDED):
        op.execute(statement)
    for part in ("inference_requests", "inference_requests_default"):
        op.execute(f"SELECT make_ledger_append_only('{part}')")
    connection = op.get_bind()
    for month in connection.execute(text(_MONTHS)).scalars().all():
        connection.execute(text("SELECT ensure_ledger_partition(:month)"), {"month": month})
        connection.execute(text(_MOVE), {"month": month})
    for statement in (_MOVED, *_INDEXES, _RIGHTS, "DROP TABLE inference_requests_unparted"):
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("months that were dropped would not come back; restore a backup instead")
