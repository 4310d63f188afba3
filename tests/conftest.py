"""What all tests need."""

import signal

# Shells start background jobs with interrupts ignored, and children inherit that: tests that interrupt a child would
# wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
