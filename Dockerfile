# lesionseg in a container: docker build -t lesionseg .            (CPU)
#                           docker build -t lesionseg --build-arg TORCH=cuda .
# docker run --rm --read-only --tmpfs /tmp -v DATA:/data:ro -v OUT:/out lesionseg \
#   predict bundle=/data/bundle input=/data/scans output=/out
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build
ARG TORCH=cpu
WORKDIR /source
COPY requirements-runtime.lock ./
RUN python -m venv /opt/lesionseg \
 && if [ "$TORCH" = cpu ]; then \
      /opt/lesionseg/bin/pip install --no-cache-dir \
        "$(grep '^torch==' requirements-runtime.lock)" \
        --index-url https://download.pytorch.org/whl/cpu; \
    fi \
 && /opt/lesionseg/bin/pip install --no-cache-dir -r requirements-runtime.lock \
      fastapi uvicorn python-multipart pydicom highdicom python-gdcm
COPY pyproject.toml README.md LICENSE ./
COPY lesionseg lesionseg
COPY conf conf
RUN /opt/lesionseg/bin/pip install --no-cache-dir --no-deps .

FROM python:${PYTHON}-slim
COPY --from=build /opt/lesionseg /opt/lesionseg
RUN useradd --create-home --uid 10001 lesionseg
USER 10001
WORKDIR /home/lesionseg
# caches of compiled loops and figures: a read-only root has /tmp alone
ENV PATH=/opt/lesionseg/bin:$PATH NUMBA_CACHE_DIR=/tmp/numba MPLCONFIGDIR=/tmp/matplotlib
EXPOSE 8000
# of `serve`; other commands end before it asks
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["lesionseg"]
CMD ["--help"]
