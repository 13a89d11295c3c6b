"""Which servers does `inference-gateway up` bring along? Real ones, from wheels, run as children."""
