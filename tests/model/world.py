"""The world of one schedule: writers, the source, the network, daemon processes, the target, and a nemesis.

`run` takes steps, each one of what could happen next, as the choices say; then lets everything come to rest
without faults and asks whether all has arrived. The oracle looks after every step.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg

from daemon.errors import Kind, TargetError
from daemon.source import Limits
from tests.model.choices import Choices, Exhausted
from tests.model.clockwork import Clock
from tests.model.database import TABLES, Database, Session
from tests.model.mirror import Mirror
from tests.model.oracle import Broken, Oracle
from tests.model.process import Process, Request
from tests.model.wire import Call

Action = tuple[int, Callable[..., None], tuple[Any, ...]]  # weight, what, with what

_REST = 600  # steps in which a world without faults must come to rest
_RETRIES = 60  # retries after which a mended letter must have arrived
_TOLD = 40  # of which a story tells so many
_NETWORK = ("lose", "stray", "refuse", "garble", "twice")
_SOURCE = ("unflushed", "source_crash", "drop_query", "split")
_PROCESS = ("crash", "freeze", "cut_bell", "stray")
_FAULTS = tuple(dict.fromkeys((*_NETWORK, *_SOURCE, *_PROCESS, "poison", "truncate")))
_LATE = ("stray",)  # nothing else: requests that arrive after their successors
_THEMES = ((), _NETWORK, _SOURCE, _PROCESS, _LATE)


@dataclass(frozen=True, slots=True)
class Setting:
    """What kind of world: drawn once, so that a schedule has a few kinds of trouble and not a little of each."""

    steps: int
    writers: int
    keys: int
    tables: int
    processes: int
    limits: Limits
    faults: frozenset[str]
    deletes: bool  # mostly
    quick: bool  # a relay's read is one step, so that more of the schedule is about the target
    warm: bool  # a relay leads already

    @classmethod
    def drawn(cls, choices: Choices) -> "Setting":
        theme = _THEMES[choices.below(len(_THEMES))]
        others = [fault for fault in _FAULTS if choices.below(4) == 1]
        faults = frozenset(theme) if theme is _LATE else frozenset((*theme, *others))
        return cls(
            steps=30 + choices.below(50),
            writers=1 + choices.below(3),
            keys=1 + choices.below(4),
            tables=1 + choices.below(2),
            processes=1 + choices.below(2),
            limits=Limits(changes=(3, 2, 1, 4, 2000)[choices.below(5)], bytes=(4096, 30)[choices.below(4) == 1]),
            faults=faults,
            deletes=choices.below(4) == 1,
            quick=theme in (_NETWORK, _LATE) or choices.below(3) == 1,
            warm=choices.below(4) != 1,
        )


class World:
    """Everything of one schedule."""

    def __init__(
        self, choices: Choices, mirror: Callable[[], Mirror] = Mirror, history: list[str] | None = None
    ) -> None:
        self._choices = choices
        self._history = history
        self.setting = Setting.drawn(choices)
        self.met: Counter[str] = Counter()  # what happened in this schedule
        self.clock = Clock()
        self.database = Database()
        self.database.on_notify = self._notify
        self.mirror = mirror()
        self.oracle = Oracle(self.database, self.mirror)
        self.sessions = [Session(number) for number in range(1, self.setting.writers + 1)]
        self.requests: list[Request] = []  # not yet answered, or still to arrive
        self._posted = 0
        self._started = 0
        self.leader: Process | None = None
        self.processes: list[Process] = []

    # -- a schedule ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises Broken."""
        if self._history is not None:
            self._history.append(f"    {self.setting}")
        if self.setting.warm:
            while not any(process.relay.status.epoch for process in self.processes):
                self._go_on_without_faults()
        try:
            for _ in range(self.setting.steps):
                self._choices.step()
                self._step(self._possible())
                self.oracle.check()
        except Exhausted:
            pass
        self._calm()
        self._come_to_rest()

    def end(self) -> None:
        """Nothing of it runs any more."""
        self.met.update(self.mirror.answers)
        self.met["torn"] += bool(self.oracle.torn)
        for process in self.processes:
            if not process.task.done():
                process.kill()

    def _step(self, actions: list[Action]) -> None:
        if not actions:
            return
        _, act, arguments = actions[self._choices.weighted([weight for weight, _, _ in actions])]
        self._do(act, arguments)

    def _do(self, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.met[act.__name__.strip("_")] += 1
        if self._history is not None:
            self._history.append(f"{len(self._history):4}  {self._told(act, arguments)}")
            at = len(self._history) - 1
            act(*arguments)
            self._history[at] += f"   | target {self.mirror.rows} at {(self.mirror.cursor or {}).get('snapshot')}, batch {self.mirror.batch_no}, epoch {self.mirror.epoch}"
        else:
            act(*arguments)

    def _told(self, act: Callable[..., None], arguments: tuple[Any, ...]) -> str:
        words = [act.__name__.strip("_")]
        for argument in arguments:
            if isinstance(argument, Process):
                words.append(f"relay {argument.number}")
            elif isinstance(argument, Session):
                words.append(f"writer {argument.number} (xid {argument.xid or '–'})")
            elif isinstance(argument, Call):
                words.append(argument.name)
            elif isinstance(argument, Request):
                words.append(f"request {argument.number} of relay {argument.sender.number}: {argument.document}")
            else:
                words.append(str(argument))
        return " ".join(words)

    # -- what could happen next ------------------------------------------------------------------------------

    def _possible(self) -> list[Action]:
        actions: list[Action] = []
        for process in self.processes:
            if not process.dead:
                self._of_process(process, actions)
        for request in self.requests:
            self._of_request(request, actions)
        for session in self.sessions:
            self._of_session(session, actions)
        if sum(not process.dead for process in self.processes) < self.setting.processes:
            actions.append((4, self._start, ()))
        faults = self.setting.faults
        if "unflushed" in faults and self.database.flushed < self.database.lsn:
            actions.append((1, self.database.flush, ()))
        if "source_crash" in faults and self.database.lsn:
            actions.append((1, self._source_crash, ()))
        if self.database.letters:
            actions.append((2, self._want, ()))
        if "poison" in faults:
            actions.append((1, self._mend if self.mirror.strict else self._spoil, ()))
        if self._next_timer() is not None:
            actions.append((3, self._pass_time, ()))
        return actions

    def _of_process(self, process: Process, actions: list[Action]) -> None:
        faults = self.setting.faults
        for call in process.calls:
            actions.append((10, self._serve, (process, call)))
            if "split" in faults and len(call.results) < len(call.statements) - 1:
                actions.append((6, self._serve_one, (process, call)))
            if "drop_query" in faults:
                actions.append((1, self._drop_query, (process, call)))
        if "crash" in faults:
            actions.append((1, self._crash, (process,)))
        if "freeze" in faults:
            actions.append((2, self._thaw if process.frozen else self._freeze, (process,)))
        if "cut_bell" in faults and process.bell.connected:
            actions.append((1, self._cut_bell, (process,)))
        self._keep(process, actions)

    def _keep(self, process: Process, actions: list[Action]) -> None:
        """What daemon.lead does beside the relay, at some time."""
        if process.frozen:
            return
        if not process.bell.connected:
            actions.append((3, self._reconnect, (process,)))
        elif not process.leads and self.leader is None:
            actions.append((8, self._lead, (process,)))
        if process.leads and self.leader is not process:
            actions.append((2, self._follow, (process,)))

    def _of_request(self, request: Request, actions: list[Action]) -> None:
        faults = self.setting.faults
        waits = not request.future.done()
        if request.answer is None:
            # Late is worst when its successor is on its way.
            late = 12 if any(other.applies and not other.future.done() for other in self.requests) else 1
            actions.append((8 if waits else late, self._deliver, (request,)))
            if not waits and "lose" in faults:
                actions.append((1, self._vanish, (request,)))
        if waits:
            if request.answer is not None:
                actions.append((8, self._respond, (request,)))
            if "lose" in faults and request.answer is not None:
                actions.append((2, self._lose, (request,)))
            if "stray" in faults and request.answer is None:
                actions.append((4, self._stray, (request,)))
            if "refuse" in faults and request.answer is None and request.running is None:
                actions.append((1, self._refuse, (request,)))
            if "garble" in faults:
                actions.append((1, self._garble, (request,)))
            if "twice" in faults and request.answer is not None:
                actions.append((2, self._twice, (request,)))

    def _of_session(self, session: Session, actions: list[Action]) -> None:
        if session.writing is not None:
            actions.append((8, self._capture, (session,)))
            return
        if session.waits is not None:
            op, table, key = session.waits
            if not self.database.blocked(session, table, key):
                actions.append((6, self._write, (session, op, table, key)))
            actions.append((1, self._rollback, (session,)))
            return
        actions.append((4, self._begin_write, (session,)))
        if session.changes:
            actions.append((4, self._commit, (session,)))
            actions.append((1, self._rollback, (session,)))

    # -- writers ---------------------------------------------------------------------------------------------

    def _begin_write(self, session: Session) -> None:
        choices, faults = self._choices, self.setting.faults
        if not session.xid:
            session.durable = not ("unflushed" in faults and choices.chance(50))
        table = TABLES[choices.below(self.setting.tables)]
        key = 1 + choices.below(self.setting.keys)
        ops = ("delete", "delete", "upsert") if self.setting.deletes else ("upsert", "upsert", "upsert", "delete")
        op = ops[choices.below(len(ops))]
        if "truncate" in faults and choices.chance(15):
            op, key = "truncate", 0
        self._write(session, op, table, key)

    def _write(self, session: Session, op: str, table: str, key: int) -> None:
        self._note(f"writer {session.number}: {op} {table} {key or ''}")
        if self.database.write(session, op, table, key) and not self._choices.chance(30):
            self._capture(session)

    def _capture(self, session: Session) -> None:
        poisoned = "poison" in self.setting.faults and self._choices.chance(15)
        change = self.database.capture(session, poisoned=poisoned)
        self._note(f"writer {session.number}: change {change.id} of {change.xid}, {change.row or change.op}")

    def _commit(self, session: Session) -> None:
        self.database.commit(session)

    def _rollback(self, session: Session) -> None:
        self.database.rollback(session)

    # -- processes -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._started += 1
        self.processes.append(Process(self, self._started, self.setting.limits))

    def _serve(self, process: Process, call: Call) -> None:
        while not self._serve_one(process, call):
            pass
        if self.setting.quick and process.calls and process.calls[0].name.startswith(("window", "flush", "shapes")):
            self._serve(process, process.calls[0])

    def _serve_one(self, process: Process, call: Call) -> bool:
        try:
            done = call.serve()
        except psycopg.Error as error:
            process.answered(call, error)
            return True
        if done:
            process.answered(call)
        return done

    def _drop_query(self, process: Process, call: Call) -> None:
        if self._choices.chance(40):  # it was the answer that was lost
            with suppress(psycopg.Error):
                while not call.serve():
                    pass
        process.answered(call, psycopg.OperationalError("server closed the connection unexpectedly"))

    def _crash(self, process: Process) -> None:
        process.kill()
        self.requests = [request for request in self.requests if request.answer is None or not request.future.done()]

    def _freeze(self, process: Process) -> None:
        process.frozen = True

    def _thaw(self, process: Process) -> None:
        process.frozen = False
        process.go_on()

    def _cut_bell(self, process: Process) -> None:
        process.bell.drop()
        process.bell.ring()
        process.go_on()

    def _reconnect(self, process: Process) -> None:
        process.bell.connected = True
        process.bell.ring()
        process.go_on()

    def _lead(self, process: Process) -> None:
        self.leader = process
        process.leads = True
        process.relay.lead()
        process.go_on()

    def _follow(self, process: Process) -> None:
        process.leads = False
        process.relay.follow()
        process.go_on()

    def unseat(self, process: Process) -> None:
        """Its connection ended, and with it the leader's lock."""
        if self.leader is process:
            self.leader = None

    # -- network and target ----------------------------------------------------------------------------------

    def post(self, sender: Process, document: str) -> Request:
        """A request leaves a process."""
        self._posted += 1
        request = Request(self._posted, sender, document, sender.loop.create_future())
        self.requests.append(request)
        return request

    def _deliver(self, request: Request) -> None:
        """It arrives; with the last of its transactions there is an answer, if anybody still waits."""
        if request.running is None:
            request.running = iter(self.mirror.call(request.document))
        answer = next(request.running)
        if request.future.done():
            self.met["deliver late"] += 1
        if answer is not None:
            request.answer = answer
            if request.future.done():
                self.requests.remove(request)

    def _respond(self, request: Request) -> None:
        assert request.answer is not None
        self._settle(request, answer=request.answer)

    def _lose(self, request: Request) -> None:
        self._settle(request, error=TargetError(Kind.AMBIGUOUS, "the connection failed before the answer"))

    def _stray(self, request: Request) -> None:
        """The sender hears nothing, and yet it may arrive, at any time."""
        request.future.set_exception(TargetError(Kind.AMBIGUOUS, "the target did not answer"))
        request.sender.go_on()

    def _refuse(self, request: Request) -> None:
        kind = (Kind.TRANSIENT, Kind.THROTTLE, Kind.AMBIGUOUS, Kind.SIZE)[self._choices.below(4)]
        self._settle(request, error=TargetError(kind, "the target answered 503"))

    def _garble(self, request: Request) -> None:
        """A 200 that is none of ours; whether the request came through or not."""
        self._settle(request, answer=("<html>", '{"answer":"applied"}', "")[self._choices.below(3)])

    def _twice(self, request: Request) -> None:
        """A copy stays on the network."""
        copy = self.post(request.sender, request.document)
        copy.future.cancel()
        self._settle(request, answer=request.answer)

    def _vanish(self, request: Request) -> None:
        self.requests.remove(request)

    def _settle(self, request: Request, answer: str | None = None, error: Exception | None = None) -> None:
        self.requests.remove(request)
        if error is not None:
            request.future.set_exception(error)
        else:
            request.future.set_result(answer or "")
        request.sender.go_on()

    # -- the source's server, and time -----------------------------------------------------------------------

    def _source_crash(self) -> None:
        lost = self.database.crash(self.sessions)
        if lost:
            self.met["commits lost"] += 1
            self._note(f"commits lost: {lost}")
        self.leader = None
        for process in self.processes:
            if not process.dead:
                process.bell.drop()
                process.bell.ring()
                process.go_on()

    def _notify(self) -> None:
        for process in self.processes:
            if not process.dead and process.bell.connected:
                process.bell.ring()
                process.go_on()

    def _want(self) -> None:
        self.database.want()

    def _mend(self) -> None:
        self.mirror.strict = False

    def _spoil(self) -> None:
        self.mirror.strict = True

    def _next_timer(self) -> float | None:
        due = [process.loop.next_timer() for process in self.processes if not process.dead and not process.frozen]
        return min((when for when in due if when is not None), default=None)

    def _pass_time(self) -> None:
        when = self._next_timer()
        assert when is not None
        self.clock.now = max(self.clock.now, when)
        for process in self.processes:
            process.go_on()

    # -- the end ---------------------------------------------------------------------------------------------

    def _calm(self) -> None:
        """No more faults; whoever writes commits, and somebody leads."""
        self._note("-- no more faults --")
        while any(session.xid or session.waits for session in self.sessions):
            self._finish_writers()
        self.database.flush()
        self.oracle.check()
        if not any(not process.dead and not process.frozen for process in self.processes):
            self._do(self._start, ())

    def _finish_writers(self) -> None:
        moved = False
        for session in self.sessions:
            if session.writing is not None:
                self._do(self._capture, (session,))
            if session.waits is not None and not self.database.blocked(session, *session.waits[1:]):
                self._do(self._write, (session, *session.waits))
                moved = True
            elif session.xid and session.waits is None:
                self._do(self._commit, (session,))
                moved = True
        if not moved:  # they wait for one another
            self._do(self._rollback, (next(session for session in self.sessions if session.waits is not None),))

    def _come_to_rest(self) -> None:
        """Everything that has committed arrives, and what is late changes nothing."""
        for step in range(_REST):
            if self.oracle.arrived():
                break
            self._go_on_without_faults()
            if step == _TOLD and self._history is not None:
                self._note("… and so on")
                self._history = None
        else:
            raise Broken(f"I1: after {_REST} steps without faults not everything that committed is on the target")
        for request in [request for request in self.requests if request.future.done()]:
            while request in self.requests:
                self._do(self._deliver, (request,))
                self.oracle.check()
        for process in self.processes:
            if process.frozen and not process.dead:
                self._do(self._thaw, (process,))
        for _ in range(10):
            if not self._go_on_without_faults():
                break
        if not self.oracle.arrived():
            raise Broken("I1: what had arrived is gone")
        self.mirror.strict = False
        for _ in range(_RETRIES):
            if not self.mirror.held:
                return
            self._do(self._want, ())
            self._notify()  # or the poll timer would find it, a second later
            for _ in range(10):
                self._go_on_without_faults()
        raise Broken("I1: a dead letter that was mended does not arrive")

    def _go_on_without_faults(self) -> bool:
        """One step that a healthy world takes by itself."""
        act = self._next_healthy()
        if act is None:
            return False
        self._do(*act)
        self.oracle.check()
        return True

    def _next_healthy(self) -> tuple[Callable[..., None], tuple[Any, ...]] | None:
        alive = [process for process in self.processes if not process.dead and not process.frozen]
        if not alive:
            return self._start, ()
        for process in alive:
            if process.leads and self.leader is not process:
                return self._follow, (process,)
            if not process.bell.connected:
                return self._reconnect, (process,)
            if self.leader is None or self.leader.frozen:
                return self._lead, (process,)
            if process.calls:
                return self._serve, (process, process.calls[0])
        for request in self.requests:
            if not request.future.done() and not request.sender.frozen:
                return (self._deliver if request.answer is None else self._respond), (request,)
        return (self._pass_time, ()) if self._next_timer() is not None else None

    def _note(self, text: str) -> None:
        if self._history is not None:
            self._history.append(f"{len(self._history):4}    {text}")
