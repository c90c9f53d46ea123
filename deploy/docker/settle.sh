#!/bin/sh
# settle.sh FOLDER: compile bytecode for a read-only file system, and make bytes, modes and times the same in every build.
# The bytecode names its source by hash and is never checked against it, so that times do not matter.
# Packages may contain files for other versions of Python: what does not compile stays as it is.
set -eu
find "$1" -name __pycache__ -type d -prune -exec rm -rf {} +
python3 -m compileall -qq --invalidation-mode unchecked-hash "$1" || echo "not all of $1 is for this Python"
chmod -R u=rwX,go=rX "$1"
find "$1" -exec touch --no-dereference --date 1980-01-01T00:00:00Z {} +
