"""Runs inside SGLang's environment: starts its server with a key that no command line and no log shows.

SGLang takes its key as a flag only and logs all flags. This file is run by its path, with ``python -P``, so it imports
nothing but the standard library.
"""

import logging
import os
import runpy
import sys
from typing import Any

__all__ = ["KEY_VARIABLE", "hide_in_logs", "main"]

KEY_VARIABLE = "AREAL_X_SERVER_KEY"
"""Environment variable that holds the key; children do not get it."""


def hide_in_logs(secret: str) -> None:
    """Replace ``secret`` in every log record of this process."""
    make_record = logging.getLogRecordFactory()

    def make_clean_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            # Its handler reports a record that cannot be formatted.
            return record
        if secret in text:
            record.msg, record.args = text.replace(secret, "***"), ()
        return record

    logging.setLogRecordFactory(make_clean_record)


def main() -> None:
    """Start the server with this process's arguments."""
    key = os.environ.pop(KEY_VARIABLE, None)
    if key is not None:
        hide_in_logs(key)
        sys.argv += ["--api-key", key]
    # As ``python -m`` would: the processes that the server spawns import the same main module.
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
