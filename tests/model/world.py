"""The world of one schedule: writers, the source, the network, daemon processes, the target; and what can happen.

Each act is one step of a schedule and may be told in one line. Knows not when or how likely it happens.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg

from daemon.errors import Kind, TargetError
from tests.model.choices import Choices
from tests.model.clockwork import Clock
from tests.model.database import TABLES, Database, Session
from tests.model.mirror import Mirror
from tests.model.oracle import Oracle
from tests.model.process import Process, Request
from tests.model.setting import Setting
from tests.model.wire import Call

_QUICK = 6  # queries of one read, at most


class World:
    """Everything of one schedule."""

    def __init__(
        self, choices: Choices, mirror: Callable[[], Mirror] = Mirror, history: list[str] | None = None
    ) -> None:
        self._choices = choices
        self.history = history
        self.setting = Setting.drawn(choices)
        self.met: Counter[str] = Counter()  # what happened in this schedule
        self.clock = Clock()
        self.database = Database()
        self.database.on_notify = self.notify
        self.mirror = mirror()
        self.oracle = Oracle(self.database, self.mirror)
        self.sessions = [Session(number) for number in range(1, self.setting.writers + 1)]
        self.requests: list[Request] = []  # not yet answered, or still to arrive
        self._posted = 0
        self._started = 0
        self.leader: Process | None = None
        self.processes: list[Process] = []

    def end(self) -> None:
        """Nothing of it runs any more."""
        self.met.update(self.mirror.answers)
        self.met["torn"] += bool(self.oracle.torn)
        for process in self.processes:
            if not process.task.done():
                process.kill()

    def do(self, act: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self.met[act.__name__] += 1
        if self.history is not None:
            self.history.append(f"{len(self.history):4}  {self._told(act, arguments)}")
            at = len(self.history) - 1
            act(*arguments)
            self.history[at] += f"   | {self.mirror}"
        else:
            act(*arguments)

    def note(self, text: str) -> None:
        if self.history is not None:
            self.history.append(f"{len(self.history):4}    {text}")

    def _told(self, act: Callable[..., object], arguments: tuple[Any, ...]) -> str:
        words = [act.__name__]
        for argument in arguments:
            if isinstance(argument, Process):
                words.append(f"relay {argument.number}")
            elif isinstance(argument, Session):
                words.append(f"writer {argument.number} (xid {argument.xid or '–'})")
            elif isinstance(argument, Call):
                words.append(argument.name)
            elif isinstance(argument, Request):
                words.append(
                    f"request {argument.number} of relay {argument.sender.number}: {argument.document.decode()}"
                )
            else:
                words.append(str(argument))
        return " ".join(words)

    # -- writers ------------------------------------------------------------------------------------------------

    def begin_write(self, session: Session) -> None:
        choices, faults = self._choices, self.setting.faults
        if not session.xid:
            session.durable = not ("unflushed" in faults and choices.chance(50))
        table = TABLES[choices.below(self.setting.tables)]
        key = 1 + choices.below(self.setting.keys)
        ops = ("delete", "delete", "upsert") if self.setting.deletes else ("upsert", "upsert", "upsert", "delete")
        op = ops[choices.below(len(ops))]
        if "truncate" in faults and choices.chance(15):
            op, key = "truncate", 0
        self.write(session, op, table, key)

    def write(self, session: Session, op: str, table: str, key: int) -> None:
        self.note(f"writer {session.number}: {op} {table} {key or ''}")
        if self.database.write(session, op, table, key) and not self._choices.chance(30):
            self.capture(session)

    def capture(self, session: Session) -> None:
        poisoned = "poison" in self.setting.faults and self._choices.chance(15)
        change = self.database.capture(session, poisoned=poisoned)
        self.note(f"writer {session.number}: change {change.id} of {change.xid}, {change.row or change.op}")

    def commit(self, session: Session) -> None:
        self.database.commit(session)

    def rollback(self, session: Session) -> None:
        self.database.rollback(session)

    # -- processes ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._started += 1
        self.processes.append(Process(self, self._started, self.setting.limits))

    def serve(self, process: Process, call: Call) -> None:
        while not self.serve_one(process, call):
            pass
        for _ in range(_QUICK if self.setting.quick else 0):
            if not process.calls or not process.calls[0].name.startswith(("window", "flush", "shapes")):
                break
            while not self.serve_one(process, call := process.calls[0]):
                pass

    def serve_one(self, process: Process, call: Call) -> bool:
        try:
            done = call.serve()
        except psycopg.Error as error:
            process.answered(call, error)
            return True
        if done:
            process.answered(call)
        return done

    def drop_query(self, process: Process, call: Call) -> None:
        if self._choices.chance(40):  # it was the answer that was lost
            with suppress(psycopg.Error):
                while not call.serve():
                    pass
        process.answered(call, psycopg.OperationalError("server closed the connection unexpectedly"))

    def crash(self, process: Process) -> None:
        process.kill()
        self.requests = [request for request in self.requests if request.answer is None or not request.future.done()]

    def freeze(self, process: Process) -> None:
        process.frozen = True

    def thaw(self, process: Process) -> None:
        process.frozen = False
        process.go_on()

    def cut_bell(self, process: Process) -> None:
        process.bell.drop()
        process.bell.ring()
        process.go_on()

    def reconnect(self, process: Process) -> None:
        process.bell.connected = True
        process.bell.ring()
        process.go_on()

    def lead(self, process: Process) -> None:
        self.leader = process
        process.leads = True
        process.relay.lead()
        process.go_on()

    def follow(self, process: Process) -> None:
        process.leads = False
        process.relay.follow()
        process.go_on()

    def unseat(self, process: Process) -> None:
        """Its connection ended, and with it the leader's lock."""
        if self.leader is process:
            self.leader = None

    # -- network and target -------------------------------------------------------------------------------------

    def post(self, sender: Process, document: bytes) -> Request:
        """A request leaves a process."""
        self._posted += 1
        request = Request(self._posted, sender, document, sender.loop.create_future())
        self.requests.append(request)
        return request

    def deliver(self, request: Request) -> None:
        """It arrives; with the last of its transactions there is an answer, if anybody still waits."""
        if request.answer is not None:  # its sender has given up since: nobody waits for the answer
            self.requests.remove(request)
            return
        if request.running is None:
            request.running = iter(self.mirror.call(request.document))
        answer = next(request.running)
        if request.future.done():
            self.met["deliver late"] += 1
        if answer is not None:
            request.answer = answer
            if request.future.done():
                self.requests.remove(request)

    def respond(self, request: Request) -> None:
        assert request.answer is not None
        self._settle(request, answer=request.answer)

    def lose(self, request: Request) -> None:
        self._settle(request, error=TargetError(Kind.AMBIGUOUS, "the connection failed before the answer"))

    def stray(self, request: Request) -> None:
        """The sender hears nothing, and yet it may arrive, at any time."""
        request.future.set_exception(TargetError(Kind.AMBIGUOUS, "the target did not answer"))
        request.sender.go_on()

    def refuse(self, request: Request) -> None:
        kind = (Kind.TRANSIENT, Kind.THROTTLE, Kind.AMBIGUOUS, Kind.SIZE)[self._choices.below(4)]
        self._settle(request, error=TargetError(kind, "the target answered 503"))

    def garble(self, request: Request) -> None:
        """A 200 that is none of ours; whether the request came through or not."""
        self._settle(request, answer=("<html>", '{"answer":"applied"}', "")[self._choices.below(3)])

    def twice(self, request: Request) -> None:
        """A copy stays on the network."""
        copy = self.post(request.sender, request.document)
        copy.future.cancel()
        self._settle(request, answer=request.answer)

    def vanish(self, request: Request) -> None:
        self.requests.remove(request)

    def _settle(self, request: Request, answer: str | None = None, error: Exception | None = None) -> None:
        self.requests.remove(request)
        if error is not None:
            request.future.set_exception(error)
        else:
            request.future.set_result(answer or "")
        request.sender.go_on()

    # -- the source's server, and time --------------------------------------------------------------------------

    def source_crash(self) -> None:
        lost = self.database.crash(self.sessions)
        if lost:
            self.met["commits lost"] += 1
            self.note(f"commits lost: {lost}")
        self.leader = None
        for process in self.processes:
            if not process.dead:
                process.bell.drop()
                process.bell.ring()
                process.go_on()

    def notify(self) -> None:
        for process in self.processes:
            if not process.dead and process.bell.connected:
                process.bell.ring()
                process.go_on()

    def prune(self, process: Process) -> None:
        """As the relay would, by the floor of the cursor that the target stated to it last."""
        assert process.relay._stated is not None
        self.database.prune(process.relay._stated.floor_id)

    def want(self) -> None:
        self.database.want()

    def mend(self) -> None:
        self.mirror.strict = False

    def spoil(self) -> None:
        self.mirror.strict = True

    def next_timer(self) -> float | None:
        due = [process.loop.next_timer() for process in self.processes if not process.dead and not process.frozen]
        return min((when for when in due if when is not None), default=None)

    def pass_time(self) -> None:
        when = self.next_timer()
        assert when is not None
        self.clock.now = max(self.clock.now, when)
        for process in self.processes:
            process.go_on()
