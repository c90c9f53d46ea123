#!/bin/sh
# install-locked.sh LOCK...: install exactly the packages of the locks into /opt/venv. Wheels only, so that no setup code
# runs here, and no pip beside them, so that nothing else is installed later. A download that stalls is not resumed by
# every pip, so an index may be slow for two minutes, and the whole step is tried three times.
set -eu
python3 -m venv --without-pip /opt/venv
for lock in "$@"; do
    attempt=1
    until python3 -m pip --python /opt/venv/bin/python install --quiet --no-cache-dir --disable-pip-version-check --no-compile \
        --timeout 120 --no-deps --only-binary :all: --require-hashes --requirement "$lock"; do
        [ "$attempt" -lt 3 ] || exit 1
        attempt=$((attempt + 1))
    done
done
settle.sh /opt/venv
