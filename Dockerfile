# Targets: service (the default), gpu, export and load. docs/deployment.md describes how to run each.
# Packages come from deploy/locks, every one with its hash. Base images are arguments, to pin them by digest or to
# take them from another registry: docker build --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:... .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# PyPI's builds of ONNX Runtime need CUDA 13. The TensorRT engine needs an image with TensorRT 10, too.
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04

FROM ${PYTHON_IMAGE} AS build
COPY deploy/docker/install-locked.sh deploy/docker/settle.sh /usr/local/bin/

# Copies of these files have the same bytes, modes and times in every build.
FROM build AS source
WORKDIR /app
COPY LICENSE deploy/docker/healthcheck.py ./
COPY models/starter models/starter
COPY tinyrm tinyrm
COPY service service
COPY export export
COPY loadtests loadtests
RUN settle.sh /app

FROM build AS service-build
# serve, or openvino for the engine of that name beside ONNX Runtime.
ARG LOCK=serve
COPY deploy/locks/${LOCK}.txt /locks/
RUN install-locked.sh "/locks/${LOCK}.txt"

FROM ${PYTHON_IMAGE} AS service
LABEL org.opencontainers.image.title="TinyRM" \
      org.opencontainers.image.description="Tiny reward models: which of two responses is better, in milliseconds" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HOME=/tmp \
    TINYRM_CACHE=/cache \
    TINYRM_HOST=0.0.0.0 \
    TINYRM_PORT=8000
WORKDIR /app
# For bundles that are fetched: mount a volume. Writable for any user.
RUN install --directory --mode 1777 /cache
# Layers that change least come first.
COPY --from=service-build /opt/venv /opt/venv
COPY --from=source /app/models models
COPY --from=source /app/LICENSE /app/healthcheck.py ./
COPY --from=source /app/tinyrm tinyrm
COPY --from=source /app/service service
# A number, so that an orchestrator can verify that it is not root.
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=3 CMD ["python", "-I", "-S", "healthcheck.py"]
# `service`, or another of our commands: docker run IMAGE service.keys --help
ENTRYPOINT ["python", "-m"]
CMD ["service"]

FROM build AS export-build
# PyPI's torch for Linux brings CUDA, gigabytes that an export does not use.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY deploy/locks/torch-cpu.txt deploy/locks/export.txt /locks/
RUN PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" install-locked.sh /locks/torch-cpu.txt /locks/export.txt

FROM ${PYTHON_IMAGE} AS export
LABEL org.opencontainers.image.title="TinyRM export" \
      org.opencontainers.image.description="Exports a masked LM and its adapter to a bundle" \
      org.opencontainers.image.licenses="Apache-2.0"
# USER: torch needs a user name, and the number below has none. TMPDIR: graphs are large, and /tmp may be memory.
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HOME=/cache \
    HF_HOME=/cache/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1 \
    TMPDIR=/cache \
    USER=tinyrm
WORKDIR /app
COPY --from=export-build /opt/venv /opt/venv
COPY --from=source /app/LICENSE ./
COPY --from=source /app/tinyrm tinyrm
COPY --from=source /app/export export
# Writable for any user: an export into a mounted folder runs as the owner of that folder.
RUN install --directory --mode 1777 /cache
USER 10001:10001
ENTRYPOINT ["python", "-m", "export"]
CMD ["--help"]

FROM build AS load-build
COPY deploy/locks/load.txt /locks/
RUN install-locked.sh /locks/load.txt

FROM ${PYTHON_IMAGE} AS load
LABEL org.opencontainers.image.title="TinyRM load" \
      org.opencontainers.image.description="Sends comparisons to a service, and shows rates and latencies on a page" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
WORKDIR /app
COPY --from=load-build /opt/venv /opt/venv
COPY --from=source /app/LICENSE ./
COPY --from=source /app/tinyrm tinyrm
COPY --from=source /app/loadtests loadtests
USER 10001:10001
EXPOSE 8089
ENTRYPOINT ["locust", "--locustfile", "loadtests/locustfile.py"]

FROM ${CUDA_IMAGE} AS gpu-base
# No versions: Ubuntu keeps only the latest of each package, with its security fixes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

FROM gpu-base AS gpu-build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY deploy/docker/install-locked.sh deploy/docker/settle.sh /usr/local/bin/
COPY deploy/locks/gpu.txt /locks/
RUN install-locked.sh /locks/gpu.txt
# Compiled again: this image has another version of Python.
COPY --from=source /app /app
RUN settle.sh /app

# Needs a host with an NVIDIA GPU and its container toolkit to run.
FROM gpu-base AS gpu
LABEL org.opencontainers.image.title="TinyRM on a GPU" \
      org.opencontainers.image.description="Tiny reward models: which of two responses is better, in milliseconds" \
      org.opencontainers.image.licenses="Apache-2.0"
# TensorRT's engines are cached under XDG_CACHE_HOME: mount a volume, or every start builds them again.
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/cache \
    TINYRM_CACHE=/cache/tinyrm \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TINYRM_ENGINE=onnxruntime-cuda \
    TINYRM_HOST=0.0.0.0 \
    TINYRM_PORT=8000
WORKDIR /app
COPY --from=gpu-build /opt/venv /opt/venv
COPY --from=gpu-build /app/models models
COPY --from=gpu-build /app/LICENSE /app/healthcheck.py ./
COPY --from=gpu-build /app/tinyrm tinyrm
COPY --from=gpu-build /app/service service
RUN install --directory --mode 1777 /cache
USER 10001:10001
EXPOSE 8000
# TensorRT may build engines for minutes before the service is ready.
HEALTHCHECK --interval=5s --timeout=4s --start-period=600s --retries=3 CMD ["python", "-I", "-S", "healthcheck.py"]
ENTRYPOINT ["python", "-m"]
CMD ["service"]

FROM service
