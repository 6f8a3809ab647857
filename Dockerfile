# The operator and the picker. For a model server that needs no GPU: --build-arg EXTRAS='[sim]', command `simulate vllm`.
FROM python:3.12-slim AS build
ARG EXTRAS="[picker,predictor]"
WORKDIR /src
# The environment holds no pip: nothing can be installed into a running operator.
RUN python -m venv --without-pip /opt/servingplan
COPY hack/constraints.txt hack/
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
RUN pip --python /opt/servingplan/bin/python --no-cache-dir install --constraint hack/constraints.txt \
    --only-binary :all: --no-binary servingplan ".${EXTRAS}"

FROM python:3.12-slim
RUN pip uninstall --yes pip
COPY --from=build /opt/servingplan /opt/servingplan
ENV PATH=/opt/servingplan/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 65532:65532
ENTRYPOINT ["servingplan"]
