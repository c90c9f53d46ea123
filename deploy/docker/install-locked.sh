#!/bin/sh
# install-locked.sh LOCK...: install exactly the packages of the locks into /opt/venv. Wheels only, so that no setup code
# runs here, and no pip beside them, so that nothing else is installed later.
set -eu
python3 -m venv --without-pip /opt/venv
for lock in "$@"; do
    python3 -m pip --python /opt/venv/bin/python install --quiet --no-cache-dir --disable-pip-version-check --no-compile \
        --no-deps --only-binary :all: --require-hashes --requirement "$lock"
done
settle.sh /opt/venv
