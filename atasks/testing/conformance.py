"""The whole list of cases."""

from __future__ import annotations

from atasks.testing.calls import CallCases
from atasks.testing.endings import EndingCases
from atasks.testing.exceptions import ExceptionCases
from atasks.testing.limits import LimitCases
from atasks.testing.middleware import MiddlewareCases
from atasks.testing.nesting import NestingCases
from atasks.testing.progress import ProgressCases
from atasks.testing.resume import ResumeCases
from atasks.testing.retries import RetryCases
from atasks.testing.stream_endings import StreamEndingCases
from atasks.testing.streams import StreamCases
from atasks.testing.submit_options import SubmitOptionCases
from atasks.testing.submitted import SubmittedCases
from atasks.testing.values import ValueCases
from atasks.testing.whereabouts import WhereaboutsCases

__all__ = ["TransportConformance"]


class TransportConformance(
    ValueCases,
    CallCases,
    ExceptionCases,
    EndingCases,
    NestingCases,
    StreamCases,
    StreamEndingCases,
    RetryCases,
    ResumeCases,
    MiddlewareCases,
    WhereaboutsCases,
    SubmittedCases,
    SubmitOptionCases,
    LimitCases,
    ProgressCases,
):
    """Every case that needs neither the death of a worker nor a lost connection.

    Subclass it in a test module, as a class named `Test...`, and override the fixture `new_transport`; set
    `shared_transport` to what holds for your transport.
    """
