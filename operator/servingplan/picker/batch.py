"""Predicts together what is already waiting, and waits for nothing.

The first prompt asks the event loop for its turn after what is ready now. Prompts that come in the same round of the loop are
predicted with it in one call. Under light load a batch is one prompt, and it is never held back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from servingplan.picker.asking import Prediction

MOST_PROMPTS = 32
"""Of one batch: bounds how long the loop stands still."""

Predict = Callable[[Sequence[str]], Sequence[Prediction]]


class Batcher:
    """Hands prompts to a predictor in batches.

    Attributes:
        predict: The predictor; may be exchanged at any time.
    """

    def __init__(self, predict: Predict) -> None:
        self.predict = predict
        self._waiting: list[tuple[str, asyncio.Future[Prediction]]] = []

    async def __call__(self, text: str) -> Prediction:
        """What the predictor says of a prompt; raises what the predictor raised."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._flush)
        future: asyncio.Future[Prediction] = loop.create_future()
        self._waiting.append((text, future))
        return await future

    def _flush(self) -> None:
        batch, self._waiting = self._waiting[:MOST_PROMPTS], self._waiting[MOST_PROMPTS:]
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        batch = [(text, future) for text, future in batch if not future.done()]
        try:
            predictions = self.predict([text for text, _ in batch])
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), prediction in zip(batch, predictions, strict=True):
            future.set_result(prediction)
