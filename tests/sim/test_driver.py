"""The engine against the wall clock, in process."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from servingplan.sim.driver import RESYNC_S, Driver
from servingplan.sim.engine import Limits, StepCost

STEP_S = 0.05
DEADLINE_S = 30.0


def driven(story: Callable[[Driver], Awaitable[None]]) -> None:
    """Tell `story` to a running driver whose steps all take `STEP_S`."""

    async def run() -> None:
        driver = Driver(
            StepCost(STEP_S, 0.0, 0.0, 0.0),
            Limits(4, 512, 1),
            kv_blocks=100,
            max_model_len=1000,
            on_token=lambda ticket, since_s: None,
            on_step=lambda tokens: None,
        )
        driving = asyncio.create_task(driver.run())
        await asyncio.wait_for(story(driver), DEADLINE_S)
        driving.cancel()

    asyncio.run(run())


def test_a_row_is_not_reused_while_a_step_under_way_names_it() -> None:
    async def story(driver: Driver) -> None:
        gone = driver.submit(16, 100)
        while driver.engine.in_flight[gone.row] < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)  # let the driver compose
        driver.abort(gone)
        late = driver.submit(16, 3)
        assert late.row != gone.row
        while not late.done:
            await late.tokens()
        assert late.generated == 3
        assert late.first_token_s - late.arrival_s >= STEP_S, "the steps under way were not its own"
        assert driver.submit(16, 1).row in {gone.row, late.row}

    driven(story)


def test_a_starved_process_goes_on_at_the_engines_pace() -> None:
    async def story(driver: Driver) -> None:
        ticket = driver.submit(16, 100)
        await ticket.tokens()
        before = ticket.generated
        time.sleep(4 * RESYNC_S)  # noqa: ASYNC251 - the loop is to stand still, as on a starved machine
        resumed_s = time.monotonic()
        while ticket.generated < before + 6:
            await ticket.tokens()
        # Two steps were under way; the other four take their time.
        assert time.monotonic() - resumed_s >= 3 * STEP_S
        driver.abort(ticket)

    driven(story)


def test_all_are_aborted_and_the_engine_is_idle() -> None:
    async def story(driver: Driver) -> None:
        tickets = [driver.submit(16, 100) for _ in range(6)]
        await tickets[0].tokens()
        driver.abort_all()
        await driver.idle()
        assert all(ticket.aborted for ticket in tickets)
        assert driver.kv_usage == 0

    driven(story)
