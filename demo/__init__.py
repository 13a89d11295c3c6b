"""What stands behind the gateway when no real model does? A Router that each request steers by headers."""
