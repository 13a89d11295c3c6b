"""What does `python -m sidecar` run? The same as the command `inference-gateway`."""

from sidecar.cli import main

main()
