# lesionseg in a container; docs/operations.md has recipes for training, nightly runs and `serve`.
#   docker build -t lesionseg .                            # torch for CPUs
#   docker build -t lesionseg --build-arg TORCH=cuda .
# Results belong to the user who runs it, and their modes follow the umask (022: all can read them).
# Without --user that is uid 10001, which must be able to write into OUT.
#   docker run --rm --user "$(id -u):$(id -g)" --network none --read-only --tmpfs /tmp --memory 8g \
#     -v MODEL:/model:ro -v SCANS:/scans:ro -v OUT:/out \
#     lesionseg predict bundle=/model input=/scans output=/out inference.max_memory_gb=6
# `private=true` keeps results for that user alone (files 0600, folders 0700).
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build
ARG TORCH=cpu
WORKDIR /source
COPY requirements-runtime.lock requirements.lock ./
# the extras dicom, hub, pacs, pdf and serve, at the versions of requirements.lock
RUN python -m venv /opt/lesionseg \
 && if [ "$TORCH" = cpu ]; then \
      /opt/lesionseg/bin/pip install --no-cache-dir \
        "$(grep '^torch==' requirements-runtime.lock)" \
        --index-url https://download.pytorch.org/whl/cpu; \
    fi \
 && /opt/lesionseg/bin/pip install --no-cache-dir -r requirements-runtime.lock \
      -c requirements.lock fastapi uvicorn python-multipart pydicom highdicom python-gdcm weasyprint \
      dicomweb-client huggingface-hub
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY lesionseg lesionseg
COPY conf conf
RUN /opt/lesionseg/bin/pip install --no-cache-dir --no-deps .

FROM python:${PYTHON}-slim
ARG TORCH=cpu
# Pango lays out report.pdf. Triton, with which torch.compile works on a GPU, compiles its launchers.
RUN apt-get update \
 && apt-get install -y --no-install-recommends libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0 \
 && if [ "$TORCH" = cuda ]; then apt-get install -y --no-install-recommends gcc libc6-dev; fi \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/lesionseg /opt/lesionseg
RUN useradd --create-home --uid 10001 lesionseg
USER 10001
WORKDIR /home/lesionseg
# caches of compiled loops and figures: a read-only root has /tmp alone
ENV PATH=/opt/lesionseg/bin:$PATH NUMBA_CACHE_DIR=/tmp/numba MPLCONFIGDIR=/tmp/matplotlib \
    TRITON_CACHE_DIR=/tmp/triton TORCHINDUCTOR_CACHE_DIR=/tmp/inductor
EXPOSE 8000
# without a health check: only `serve` answers one, and its recipe has it
ENTRYPOINT ["lesionseg"]
CMD ["--help"]
