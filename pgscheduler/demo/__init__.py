"""`pgscheduler demo`: a hundred jobs, two nodes, a kill -9 half-way, and the proof that nothing was lost or doubled.

Everything is real: a PostgreSQL of its own, two operating-system processes, files on a disk. Only the pause of
each job is made up, so that there is something to watch.
"""

from .plot import play

__all__ = ["play"]
