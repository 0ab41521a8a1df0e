"""Tables become figures and one self-contained page."""

from jaxseg.report.page import write_report
from jaxseg.report.sweep import write_sweep_report

__all__ = ["write_report", "write_sweep_report"]
