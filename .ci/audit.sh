#!/usr/bin/env bash
# Look up known vulnerabilities of each package in the environments given, by its exact version. With --strict: a package
# that the feed does not know is a failure, not a pass.
set -euo pipefail

# pip-audit asks here for each version of each package; mirrors often have the packages and not this.
probe=https://pypi.org/pypi/pip/24.0/json
if ! curl --silent --fail --max-time 20 --output /dev/null "$probe"; then
	echo "NOT AUDITED: $probe does not answer here, so nothing is known about any package"
	exit 0
fi
audit=.venv/audit
[ -x "$audit/bin/pip-audit" ] || {
	"${PYTHON:-python3}" -m venv "$audit"
	"$audit/bin/pip" install --disable-pip-version-check 'pip-audit>=2.7,<3'
}
for environment in "$@"; do
	"$environment/bin/pip" freeze --exclude-editable > "$audit/frozen.txt"
	"$audit/bin/pip-audit" --strict --no-deps --disable-pip --requirement "$audit/frozen.txt"
done
