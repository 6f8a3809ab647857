"""A picker that picks at random: what the protocol costs whatever is decided.

    random_picker.py SOCKET ENDPOINTS

It reads no body, knows no state and keeps none.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as messages
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as services
from google.protobuf.struct_pb2 import Struct
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from live import process

DESTINATION = "x-gateway-destination-endpoint"
_OVERWRITE = base_pb2.HeaderValueOption.HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD


class RandomPicker(services.ExternalProcessorServicer):
    """Names two endpoints for every body.

    Args:
        addresses: The endpoints.
    """

    def __init__(self, addresses: list[str]) -> None:
        self._addresses = addresses

    async def Process(  # noqa: N802 - the protocol's name
        self, request_iterator: AsyncIterator[messages.ProcessingRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[messages.ProcessingResponse]:
        del context
        async for request in request_iterator:
            if request.HasField("request_headers"):
                yield messages.ProcessingResponse(request_headers=messages.HeadersResponse())
            elif request.HasField("request_body"):
                yield self._pick()

    def _pick(self) -> messages.ProcessingResponse:
        chosen = ",".join(random.sample(self._addresses, 2))
        option = base_pb2.HeaderValueOption(
            header=base_pb2.HeaderValue(key=DESTINATION, raw_value=chosen.encode()), append_action=_OVERWRITE
        )
        metadata = Struct()
        metadata.get_or_create_struct("envoy.lb")[DESTINATION] = chosen
        common = messages.CommonResponse(clear_route_cache=True, header_mutation=messages.HeaderMutation(set_headers=[option]))
        return messages.ProcessingResponse(request_body=messages.BodyResponse(response=common), dynamic_metadata=metadata)


async def serve(socket: str, addresses: list[str]) -> None:
    """Serve at a Unix socket for ever."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 * 2**20)])
    services.add_ExternalProcessorServicer_to_server(RandomPicker(addresses), server)
    healthy = health.aio.HealthServicer()
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    process.run(serve(sys.argv[1], [each for pool in json.loads(Path(sys.argv[2]).read_text()).values() for each in pool]))
