"""Whose name stands in the audit for what a test changes?"""

from store.audit import Actor, Trail


def trail(pepper: str) -> Trail:
    return Trail(Actor(name="test", source="tests"), pepper=pepper.encode())
