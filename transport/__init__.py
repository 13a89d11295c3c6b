"""How do bytes reach a service? The seam, and the two gRPC servers that implement it: grpcio's and a lean one."""
