"""Which fixtures and options does every test have?"""

pytest_plugins = ["tests.support.postgres", "tests.support.transport_option"]
