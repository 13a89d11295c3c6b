"""What does the gateway cost? `make bench`, explained in docs/benchmarks/README.md."""
