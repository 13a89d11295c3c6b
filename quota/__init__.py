"""How much is left? Takes room under limits before a request runs, and gives back or settles after it ended."""
