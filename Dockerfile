# syntax=docker/dockerfile:1
# One recipe, two images:
#   docker build -t flux-pulid:gpu .                          the exact profile, on NVIDIA cards
#   docker build -t flux-pulid:cpu --build-arg DEVICE=cpu .   the tiny profile, for a first look
# Of model files only the small one of the package is inside; the others come from a volume at /models. The server
# listens on all of the container's addresses, so it starts only with API keys, or with FLUX_PULID_AUTH=none in so
# many words.
ARG DEVICE=gpu
ARG CPU_IMAGE=debian:bookworm-slim
# "base" brings CUDA's own runtime and refuses drivers that are too old. cuBLAS, cuDNN and the rest come with torch.
ARG GPU_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04

FROM ${CPU_IMAGE} AS cpu-base
# The extra index has the CPU builds of the pinned torch and torchvision; without it pip takes 3 GB of CUDA.
ENV FLUX_PULID_PROFILE=tiny \
    EXTRAS=[tiny,cluster] \
    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

FROM ${GPU_IMAGE} AS gpu-base
# The host gives the driver, through the NVIDIA container toolkit.
ENV FLUX_PULID_PROFILE=exact \
    EXTRAS=[cluster] \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM ${DEVICE}-base AS system
# The interpreter package of the distribution: 3.11 on bookworm, 3.12 on Ubuntu 24.04.
ARG PYTHON=python3
# opencv-python loads libGL and glib; model files from release pages are fetched by the system's certificates.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ${PYTHON} ca-certificates libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --system --gid 10001 flux \
    && useradd --system --uid 10001 --gid flux --no-create-home flux \
    && install -d -o flux -g flux /models /data

FROM system AS builder
ARG PYTHON=python3
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ${PYTHON}-venv \
    && rm -rf /var/lib/apt/lists/*
RUN ${PYTHON} -m venv /opt/venv
WORKDIR /src
COPY configs/constraints.txt configs/constraints.txt
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY server server
COPY pulid pulid
COPY weights weights
# Another build of torch, for instance for an older driver: both versions, and the index that has them.
ARG TORCH_VERSION=2.13.0
ARG TORCHVISION_VERSION=0.28.0
ARG TORCH_INDEX=
RUN sed -i -e "s/^torch==.*/torch==${TORCH_VERSION}/" -e "s/^torchvision==.*/torchvision==${TORCHVISION_VERSION}/" \
        configs/constraints.txt \
    && PIP_EXTRA_INDEX_URL="${TORCH_INDEX:-${PIP_EXTRA_INDEX_URL:-}}" \
        /opt/venv/bin/pip install --no-cache-dir -c configs/constraints.txt ".${EXTRAS}"

FROM system AS server
COPY --from=builder /opt/venv /opt/venv
# HOME is where libraries keep their caches (numba, matplotlib, triton): on the volume, as the root may be read-only.
# SSL_CERT_FILE is for psycopg's own OpenSSL: where it looks for certificates there are none, so that `sslrootcert=system`
# in the address of a database would find no authority.
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/data \
    PYTHONUNBUFFERED=1 \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    FLUX_PULID_HOST=0.0.0.0 \
    FLUX_PULID_DATA_DIR=/data/jobs \
    FLUX_PULID_WEIGHTS_DIR=/models
WORKDIR /data
VOLUME ["/models", "/data"]
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=3)"]
USER 10001:10001
CMD ["flux-pulid", "serve"]
