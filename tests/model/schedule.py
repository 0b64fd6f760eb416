"""One schedule: steps, each one of what could happen next, as the choices say; then all comes to rest without faults.

The oracle looks after every step. Knows what may happen and how likely; what happening means, the world knows.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tests.model.choices import Choices, Step
from tests.model.database import Session
from tests.model.oracle import Broken
from tests.model.process import Process, Request
from tests.model.wire import Call
from tests.model.world import World

Action = tuple[int, Callable[..., object], tuple[Any, ...]]  # weight, what, with what

_REST = 600  # steps in which a world without faults must come to rest
_RETRIES = 60  # retries after which a mended letter must have arrived
_TOLD = 40  # of which a story tells so many


class Schedule:
    """Drives a world."""

    def __init__(self, world: World, choices: Choices) -> None:
        self._world = world
        self._choices = choices

    def run(self) -> None:
        """Raises Broken."""
        if self._world.history is not None:
            self._world.history.append(f"    {self._world.setting}")
        if self._world.setting.warm:
            while not any(process.relay.status.epoch for process in self._world.processes):
                self._go_on_without_faults()
        if self._choices.given is None:
            self._go_by_chance()
        else:
            self._repeat(self._choices.given)
        self._choices.calm()
        self._calm()
        self._come_to_rest()
        self._let_late_ones_arrive()
        self._mend_letters()

    def _go_by_chance(self) -> None:
        for _ in range(self._world.setting.steps):
            actions = self._possible()
            _, act, arguments = actions[self._choices.pick([weight for weight, _, _ in actions])]
            self._choices.begin(_label(act, arguments))
            self._world.do(act, arguments)
            self._world.oracle.check()

    def _repeat(self, steps: Sequence[Step]) -> None:
        """Steps that are not possible any more, because others before them are gone, are left out."""
        for step in steps:
            for _, act, arguments in self._possible():
                if _label(act, arguments) == step.label:
                    self._choices.begin(step.label, step.drawn)
                    self._world.do(act, arguments)
                    self._world.oracle.check()
                    break

    # -- what could happen next -------------------------------------------------------------------------------

    def _possible(self) -> list[Action]:
        actions: list[Action] = []
        for process in self._world.processes:
            if not process.dead:
                self._of_process(process, actions)
        for request in self._world.requests:
            self._of_request(request, actions)
        for session in self._world.sessions:
            self._of_session(session, actions)
        if sum(not process.dead for process in self._world.processes) < self._world.setting.processes:
            actions.append((4, self._world.start, ()))
        self._of_servers(actions)
        return actions

    def _of_servers(self, actions: list[Action]) -> None:
        faults = self._world.setting.faults
        if "unflushed" in faults and self._world.database.flushed < self._world.database.lsn:
            actions.append((1, self._world.database.flush, ()))
        if "source_crash" in faults and self._world.database.lsn:
            actions.append((1, self._world.source_crash, ()))
        if self._world.database.letters:
            actions.append((2, self._world.want, ()))
        if "poison" in faults:
            actions.append((1, self._world.mend if self._world.mirror.strict else self._world.spoil, ()))
        if self._world.next_timer() is not None:
            actions.append((3, self._world.pass_time, ()))

    def _of_process(self, process: Process, actions: list[Action]) -> None:
        faults = self._world.setting.faults
        for call in process.calls:
            actions.append((10, self._world.serve, (process, call)))
            if "split" in faults and len(call.results) < len(call.statements) - 1:
                actions.append((6, self._world.serve_one, (process, call)))
            if "drop_query" in faults:
                actions.append((1, self._world.drop_query, (process, call)))
        if "crash" in faults:
            actions.append((1, self._world.crash, (process,)))
        if "freeze" in faults:
            actions.append((2, self._world.thaw if process.frozen else self._world.freeze, (process,)))
        if "cut_bell" in faults and process.bell.connected:
            actions.append((1, self._world.cut_bell, (process,)))
        stated = process.relay._stated
        if "prune" in faults and not process.frozen and stated and stated.floor_id > self._world.database.pruned:
            actions.append((2, self._world.prune, (process,)))
        self._keep(process, actions)

    def _keep(self, process: Process, actions: list[Action]) -> None:
        """What daemon.lead does beside the relay, at some time."""
        if process.frozen:
            return
        if not process.bell.connected:
            actions.append((3, self._world.reconnect, (process,)))
        elif not process.leads and self._world.leader is None:
            actions.append((8, self._world.lead, (process,)))
        if process.leads and self._world.leader is not process:
            actions.append((2, self._world.follow, (process,)))

    def _of_request(self, request: Request, actions: list[Action]) -> None:
        faults = self._world.setting.faults
        waits = not request.future.done()
        if request.answer is None:
            # Late is worst when its successor is on its way.
            late = 12 if any(other.mode == "apply" and not other.future.done() for other in self._world.requests) else 1
            actions.append((8 if waits else late, self._world.deliver, (request,)))
            if not waits and "lose" in faults:
                actions.append((1, self._world.vanish, (request,)))
        if waits:
            if request.answer is not None:
                actions.append((8, self._world.respond, (request,)))
            if "lose" in faults and request.answer is not None:
                actions.append((2, self._world.lose, (request,)))
            if "stray" in faults and request.answer is None:
                actions.append((4, self._world.stray, (request,)))
            if "refuse" in faults and request.answer is None and request.running is None:
                actions.append((1, self._world.refuse, (request,)))
            if "garble" in faults:
                actions.append((1, self._world.garble, (request,)))
            if "twice" in faults and request.answer is not None:
                actions.append((2, self._world.twice, (request,)))

    def _of_session(self, session: Session, actions: list[Action]) -> None:
        if session.writing is not None:
            actions.append((8, self._world.capture, (session,)))
            return
        if session.waits is not None:
            op, table, key = session.waits
            if not self._world.database.blocked(session, table, key):
                actions.append((6, self._world.write, (session, op, table, key)))
            actions.append((1, self._world.rollback, (session,)))
            return
        actions.append((4, self._world.begin_write, (session,)))
        if session.changes:
            actions.append((4, self._world.commit, (session,)))
            actions.append((1, self._world.rollback, (session,)))

    # -- the end ----------------------------------------------------------------------------------------------

    def _calm(self) -> None:
        """No more faults; whoever writes commits, and somebody leads."""
        self._world.note("-- no more faults --")
        while any(session.xid or session.waits for session in self._world.sessions):
            self._finish_writers()
        self._world.database.flush()
        self._world.oracle.check()
        if not any(not process.dead and not process.frozen for process in self._world.processes):
            self._world.do(self._world.start, ())

    def _finish_writers(self) -> None:
        moved = False
        for session in self._world.sessions:
            if session.writing is not None:
                self._world.do(self._world.capture, (session,))
            if session.waits is not None and not self._world.database.blocked(session, *session.waits[1:]):
                self._world.do(self._world.write, (session, *session.waits))
                moved = True
            elif session.xid and session.waits is None:
                self._world.do(self._world.commit, (session,))
                moved = True
        if not moved:  # they wait for one another
            self._world.do(
                self._world.rollback, (next(session for session in self._world.sessions if session.waits is not None),)
            )

    def _come_to_rest(self) -> None:
        """Everything that has committed arrives, or is held."""
        for step in range(_REST):
            if self._world.oracle.arrived():
                break
            self._go_on_without_faults()
            if step == _TOLD and self._world.history is not None:
                self._world.note("… and so on")
                self._world.history = None
        else:
            raise Broken(f"I1: after {_REST} steps without faults not everything that committed is on the target")

    def _let_late_ones_arrive(self) -> None:
        """What is still on the network arrives, who was frozen wakes up, and none of it changes anything."""
        world = self._world
        late = [request for request in world.requests if request.future.done()]
        for request in late:
            while request in world.requests:
                world.do(world.deliver, (request,))
                world.oracle.check()
        frozen = [process for process in world.processes if process.frozen and not process.dead]
        for process in frozen:
            world.do(world.thaw, (process,))
        if late or frozen:
            for _ in range(10):
                self._go_on_without_faults()
        if not world.oracle.arrived():
            raise Broken("I1: what had arrived is gone")

    def _mend_letters(self) -> None:
        """Once nothing is refused any more, a retry brings every dead letter over."""
        world = self._world
        world.mirror.strict = False
        for retried in range(_RETRIES):
            if not world.mirror.held:
                self._forget_letters()
                return
            if retried == _TOLD // 10 and world.history is not None:
                world.note("… and so on")
                world.history = None
            world.do(world.want, ())
            world.notify()  # or the poll timer would find it, a second later
            for _ in range(10):
                self._go_on_without_faults()
        raise Broken("I1: a dead letter that was mended does not arrive")

    def _forget_letters(self) -> None:
        """Once nothing is held, no letter is left of attempts that came to nothing."""
        for _ in range(20):
            if not self._world.database.letters:
                return
            self._go_on_without_faults()
        raise Broken(f"I9: nothing is held, and there are letters of {sorted(self._world.database.letters)}")

    def _go_on_without_faults(self) -> bool:
        """One step that a healthy world takes by itself."""
        act = self._next_healthy()
        if act is None:
            return False
        self._world.do(*act)
        self._world.oracle.check()
        return True

    def _next_healthy(self) -> tuple[Callable[..., object], tuple[Any, ...]] | None:
        alive = [process for process in self._world.processes if not process.dead and not process.frozen]
        if not alive:
            return self._world.start, ()
        for process in alive:
            if process.leads and self._world.leader is not process:
                return self._world.follow, (process,)
            if not process.bell.connected:
                return self._world.reconnect, (process,)
            if self._world.leader is None or self._world.leader.frozen:
                return self._world.lead, (process,)
            if process.calls:
                return self._world.serve, (process, process.calls[0])
        for request in self._world.requests:
            if not request.future.done() and not request.sender.frozen:
                return (self._world.deliver if request.answer is None else self._world.respond), (request,)
        return (self._world.pass_time, ()) if self._world.next_timer() is not None else None


def _label(act: Callable[..., object], arguments: tuple[Any, ...]) -> str:
    """A name that still means the same when steps before this one are struck out."""
    words = [act.__name__]
    for argument in arguments[:2]:
        if isinstance(argument, Process | Session):
            words.append(str(argument.number))
        elif isinstance(argument, Call):
            words.append(argument.name)
        elif isinstance(argument, Request):
            words.append(f"{argument.sender.number} {argument.mode} {argument.future.done()}")
    return " ".join(words)
