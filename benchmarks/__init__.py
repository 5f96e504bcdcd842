"""What the production layer costs, measured on running servers; `python -m benchmarks --help` tells how."""
