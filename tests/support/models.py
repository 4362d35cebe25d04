"""Small helpers for tests that read models."""

from pagewire.scheduler_svc.progress import QuietProgress

QUIET = QuietProgress()
