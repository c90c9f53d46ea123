#!/usr/bin/env bash
# Write deploy/locks: what the images install, every package by version and hash. What is locked stays, unless --upgrade
# takes the newest versions that pyproject.toml allows. The CUDA libraries are those of the base image.
set -euo pipefail
cd "$(dirname "$0")/.."

uv=.venv/lock/bin/uv
[ -x "$uv" ] || {
	"${PYTHON:-python3}" -m venv .venv/lock
	.venv/lock/bin/pip install --disable-pip-version-check 'uv>=0.9,<1'
}
# Where the export image's torch comes from: PyPI's brings CUDA.
torch_wheels=${TORCH_WHEELS:-https://download.pytorch.org/whl/cpu/torch/}
cuda=()
for package in cublas cuda-nvrtc cuda-runtime cudnn-cu13 cufft curand nvjitlink; do
	cuda+=(--no-emit-package "nvidia-$package")
done

compile() {
	local lock=$1
	shift
	"$uv" pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
		--custom-compile-command 'make lock' "$@" --output-file "deploy/locks/$lock.txt"
}

compile serve --extra serve --extra otel "$@"
compile openvino --extra serve --extra otel --extra openvino "$@"
compile gpu --extra gpu --extra otel "${cuda[@]}" "$@"
compile load --extra serve --extra load "$@"
compile export --extra export --override deploy/locks/torch-cpu.txt --find-links "$torch_wheels" --no-emit-package torch "$@"
