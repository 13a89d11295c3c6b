"""Does a Router keep its side of docs/router.md? Asked directly, without a gateway in front of it."""
