"""How does Alembic run our revisions? In the transaction, and under the lock, of store/migration.py."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
