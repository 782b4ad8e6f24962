"""Fault testing: real nodes, a mixed workload, seeded faults, and a checker that judges what was observed."""
