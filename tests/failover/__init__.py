"""Failover for real: nodes, clients and a load before a primary that dies, a standby that takes over, and a pooler."""
