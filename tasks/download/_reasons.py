"""The error of a row that gets no image, and the reasons for HTTP statuses."""

from tasks.reasons import REASONS, Retry


def of_status(status: int) -> str:
    """Return the reason for an HTTP status other than 200 and the redirects."""
    if status in (404, 410):
        return "not_found"
    if status in (401, 402, 403, 451):
        return "forbidden"
    if status == 429:
        return "rate_limited"
    if 400 <= status < 500:
        return "client_error"
    if 500 <= status < 600:
        return "server_error"
    return "unexpected_status"


class FetchError(Exception):
    """A row gets no image. `reason` is a key of REASONS; `pause_s` is the pause that the server asked for.

    `retry` overrides that of the reason: a name that does not exist differs from a resolver that is busy.
    """

    def __init__(self, reason: str, detail: str = "", pause_s: float | None = None, retry: Retry | None = None) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.pause_s = pause_s
        self.retry: Retry = retry or REASONS[reason].retry

    def bare(self) -> "FetchError":
        """Return a copy without the traceback, whose frames would keep the body in memory while the error is cached."""
        return FetchError(self.reason, self.detail, self.pause_s, self.retry)
