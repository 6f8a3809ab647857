# The simulator under the name and with the entry point of the vLLM image.
ARG SIMULATOR
FROM ${SIMULATOR}
ENTRYPOINT ["servingplan", "simulate", "vllm"]
