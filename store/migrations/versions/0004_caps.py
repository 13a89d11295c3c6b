"""What may one request of a plan come to, and what did the Router say of it? Caps, decisions, costs."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


_CAPS = ("stream_seconds", "output_tokens", "response_bytes")


def upgrade() -> None:
    for cap in _CAPS:
        op.execute(f"ALTER TABLE plans ADD max_{cap} bigint NOT NULL DEFAULT 0 CHECK (max_{cap} >= 0)")
    op.execute("ALTER TABLE inference_requests ADD dispatched_at timestamptz")
    op.execute("ALTER TABLE inference_requests ADD routing_snapshot jsonb")
    op.execute("ALTER TABLE inference_requests ADD actual_cost jsonb")


def downgrade() -> None:
    for column in ("actual_cost", "routing_snapshot", "dispatched_at"):
        op.execute(f"ALTER TABLE inference_requests DROP {column}")
    for cap in _CAPS:
        op.execute(f"ALTER TABLE plans DROP max_{cap}")
