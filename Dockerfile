# The serving images: policies from /policies, gRPC on 50051, Prometheus metrics on 9464.
#
#   docker build --target cpu -t kilolayer:cpu .
#   docker run -p 50051:50051 -p 9464:9464 -v "$PWD/runs/first/policies:/policies:ro" kilolayer:cpu
#
# Add `-v kilolayer-cache:/cache` to keep compiled programs when the container is replaced: the next start is faster. It
# also keeps copies of policies from buckets: the next start works while the bucket cannot be read.
# Add `-e KILOLAYER_HTTP_PORT=8000 -p 8000:8000` to answer the Open Inference Protocol over HTTP, too.
# Add `-v kilolayer-state:/state` to keep the decisions about live versions, such as a rollback.
#
# The target `cuda` runs on NVIDIA GPUs (docker run --gpus all). Pass settings as flags after the image's name, or as
# KILOLAYER_ variables. KILOLAYER_POLICIES has one folder a line, on a volume or in a bucket. With
# `--build-arg COMMIT="$(git rev-parse HEAD)"`, the metric kilolayer_build_info names the commit. Change the ports with
# KILOLAYER_LISTEN and KILOLAYER_METRICS_PORT: the health check reads the second.
#
# KILOLAYER_INSECURE allows plain text on the container's network, with a warning at the start. Encrypt the connections
# with KILOLAYER_TLS_CERT and KILOLAYER_TLS_KEY, which overrides it (docs/security.md). The metrics port is always plain
# HTTP, on all addresses of the container.
#
# The target `training` trains on NVIDIA GPUs. Its user, 10001, must be able to write to the folder of the run:
#
#   docker build --target training -t kilolayer-train .
#   docker run --gpus all -v kilolayer-runs:/runs kilolayer-train --env point_u_maze --out /runs/first --resume auto

# ---- the packages, installed without pip in the image ----------------------------------------------------------------
FROM python:3.12-slim AS builder
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# The lock file also has the packages of training and tests. This version of pip takes versions and hashes from it as
# constraints and refuses other packages, so it installs only what serving needs. The pip of the base image is too old.
RUN echo "pip==26.3 --hash=sha256:f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13" > pip.txt \
    && python -m pip install --require-hashes -r pip.txt \
    && python -m venv --without-pip /opt/venv
COPY pyproject.toml ./
COPY requirements/ requirements/
# The names of the packages that serving needs, also from buckets and over HTTP, and those that training needs.
# `kilolayer` itself is copied from this checkout below.
RUN python -c "import tomllib; \
        project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        extras = project['optional-dependencies']; \
        serve = project['dependencies'] + extras['serve'] + extras['remote'] + extras['http']; \
        serve = [need for need in serve if not need.startswith('kilolayer')]; \
        train = project['dependencies'] + extras['train'] + extras['warp']; \
        print(*serve, file=open('serve.txt', 'w'), sep='\n'); \
        print(*serve, *extras['cuda'], file=open('cuda.txt', 'w'), sep='\n'); \
        print(*train, *extras['cuda'], file=open('train.txt', 'w'), sep='\n')"

FROM builder AS packages-cpu
RUN python -m pip --python /opt/venv install --require-hashes --only-binary=:all: \
    -r serve.txt -c requirements/cpu.txt

FROM builder AS packages-cuda
RUN python -m pip --python /opt/venv install --require-hashes --only-binary=:all: \
    -r cuda.txt -c requirements/cuda13.txt

FROM builder AS packages-training
RUN python -m pip --python /opt/venv install --require-hashes --only-binary=:all: \
    -r train.txt -c requirements/cuda13.txt

# ---- the images -----------------------------------------------------------------------------------------------------
FROM python:3.12-slim AS base
RUN useradd --system --uid 10001 --no-create-home kilolayer \
    && install --directory --owner=10001 --mode=700 /cache /state
WORKDIR /app
ARG COMMIT=""
RUN echo "$COMMIT" > commit.txt
COPY pyproject.toml ./
COPY policy/ policy/
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    XDG_CACHE_HOME=/cache

FROM base AS training
# The command that an installation of the project has.
RUN printf '%s\n' '#!/opt/venv/bin/python' 'from training.run import command' 'command()' \
        > /usr/local/bin/kilolayer-train \
    && chmod 755 /usr/local/bin/kilolayer-train \
    && install --directory --owner=10001 --mode=700 /runs
COPY training/ training/
COPY --from=packages-training /opt/venv /opt/venv
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    MPLCONFIGDIR=/cache/matplotlib
USER 10001
# The exec form, so that SIGTERM reaches the run: it then saves a snapshot and exits with code 75.
ENTRYPOINT ["kilolayer-train"]

FROM base AS runtime
COPY serving/ serving/
COPY clients/python/kilolayer/ kilolayer/
ENV XDG_STATE_HOME=/state \
    KILOLAYER_LISTEN=0.0.0.0:50051 \
    KILOLAYER_INSECURE=true \
    KILOLAYER_POLICIES=/policies \
    KILOLAYER_METRICS_HOST=0.0.0.0 \
    KILOLAYER_METRICS_PORT=9464
EXPOSE 50051 9464
# A number, because Kubernetes cannot tell from a name that the user is not root.
USER 10001
# The start period is long because the server compiles every batch size before health says SERVING.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 CMD ["python", "-c", "import http.client, os; probe = http.client.HTTPConnection('127.0.0.1', int(os.environ['KILOLAYER_METRICS_PORT']), timeout=3); probe.request('GET', '/healthz'); raise SystemExit(probe.getresponse().status != 200)"]
# The exec form, so that SIGTERM reaches the server: it then answers the accepted requests and exits with code 0.
ENTRYPOINT ["python", "serving/run.py"]

FROM runtime AS cuda
COPY --from=packages-cuda /opt/venv /opt/venv
# The CUDA libraries are wheels that find each other, so LD_LIBRARY_PATH stays unset. A policy is small, and JAX would
# reserve 75 % of the GPU's memory by default.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    XLA_PYTHON_CLIENT_MEM_FRACTION=0.2

# The last target is the default.
FROM runtime AS cpu
COPY --from=packages-cpu /opt/venv /opt/venv
ENV JAX_PLATFORMS=cpu
