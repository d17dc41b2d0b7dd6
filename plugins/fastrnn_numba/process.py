"""Which process imported this plugin: a number that tells one that was forked later."""

import os

STARTED = os.getpid()
