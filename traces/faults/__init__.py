"""Which pages faulted and moved: the trace, its checks, its statistics."""

from traces.faults.trace import (
    BLOCK,
    PAGE,
    FaultTrace,
    fault_table,
    is_fault_trace,
    open_faults,
)
from traces.faults.writer import FaultWriter

__all__ = [
    "BLOCK",
    "PAGE",
    "FaultTrace",
    "FaultWriter",
    "fault_table",
    "is_fault_trace",
    "open_faults",
]
