"""Tables become figures and one self-contained page."""

from jaxseg.report.page import write_report

__all__ = ["write_report"]
