"""Twenty agents past their deadline at once, deaf to every signal that one can be deaf to."""

from __future__ import annotations

from tests.benchmarks.measuring import Room, Row, Target
from tests.benchmarks.yard import Yard, working

AGENTS = 20
GRACE_S = 3.0
SOFT_S = 8.0
DEAF = "trap '' INT TERM\nwhile :; do sleep 1; done\n"


def rows(room: Room) -> list[Row]:
    count = room.rounds(AGENTS, quick=5)
    ids = [f"LATE-{number}" for number in range(count)]
    yard = Yard.lay_out(
        room.folder("deadlines"),
        ids,
        DEAF,
        slots=count,
        prepared=0,
        deadline=f"{SOFT_S:g}s",
        more=f'[deadlines]\ngrace = "{GRACE_S:g}s"\n[retry]\nmax_attempts = 1\n',
    )
    with working(yard):
        yard.await_events("agent.exited", count)
    launched = {one["gap"]: one["t_ns"] for one in yard.told("dispatch.launched")}
    exited = {one["gap"]: one["t_ns"] for one in yard.told("agent.exited")}
    # They are stopped at twice their soft deadline (behaviour P2).
    late = [(exited[gap] - launched[gap]) / 1e9 - 2 * SOFT_S for gap in ids]
    whole = (max(exited.values()) - max(launched.values())) / 1e9 - 2 * SOFT_S
    limit = GRACE_S + 1
    words = f"≤ grace ({GRACE_S:g} s) + 1 s"
    return [
        Row(
            "deadlines.last",
            f"{count} agents past their deadline: the last one's to all gone, slots free",
            "s",
            (whole,),
            Target(limit, words=words),
        ),
        Row(
            "deadlines.each",
            "each of them, from its own",
            "s",
            tuple(late),
            Target(limit, words=words),
        ),
    ]
