# The daemon. deploy/README.md says how to run it, what it weighs, and what was tried.
# 3.11 on bookworm is what the tests run on.

FROM python:3.11-slim-bookworm AS build
WORKDIR /opt/organism
ENV PATH=/opt/venv/bin:$PATH \
    NUMBA_CACHE_DIR=/var/cache/organism

# Dependencies first: they stay in the build's cache while the sources change. PyTorch's own index has
# wheels without CUDA, whose version (2.13.0+cpu) goes before PyPI's.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
      > requirements.txt
RUN python -m venv --without-pip /opt/venv \
 && /usr/local/bin/pip --python /opt/venv/bin/python install --no-cache-dir \
      --constraint constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu \
      --requirement requirements.txt

# Installed in place: the console script, and the version that /metrics tells.
COPY README.md LICENSE ./
COPY organism/ organism/
COPY server/ server/
COPY checkpoints/default.genome checkpoints/
RUN /usr/local/bin/pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --editable .

# Kernels for the processor that builds. numba keys them by processor: any other compiles its own at
# the first start. It also keys them by the sources' times, which layers round to seconds.
RUN find organism server -name '*.py' -exec touch --date=@0 {} + \
 && python -m compileall -q organism server \
 && python -c "from organism.genome import load; from server.learner import warm_up; from server.life import Life; from server.settings import load_settings; warm_up(Life.born(load(load_settings().genome), 0, 0))"


FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 organism \
 && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /nonexistent \
      --shell /usr/sbin/nologin organism \
 && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/organism
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/organism /opt/organism
COPY --from=build --chown=10001:10001 /var/cache/organism /var/cache/organism
WORKDIR /opt/organism
# Beyond loopback the daemon asks for a key: docker run -e ORGANISM_API_KEY=...
ENV PATH=/opt/venv/bin:$PATH \
    ORGANISM_HOST=0.0.0.0 \
    ORGANISM_STATE_DIR=/var/lib/organism \
    NUMBA_CACHE_DIR=/var/cache/organism
EXPOSE 8765
# The second takes machine code that it runs: it belongs to the daemon alone. A volume begins with
# what the image has there, and can be written to where the root cannot.
VOLUME ["/var/lib/organism", "/var/cache/organism"]
USER 10001:10001
STOPSIGNAL SIGTERM
# The first start on another processor compiles before it listens.
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s --retries=3 \
  CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('ORGANISM_PORT', '8765')), timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["python", "-m", "server"]
