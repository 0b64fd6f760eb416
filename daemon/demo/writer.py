"""The example application: it writes stories to its own Postgres, and has never heard of outboxd.

Knows the four tables. Must not know the outbox: what travels, travels without the application's help.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg.types.json import Jsonb

_STORY = 'insert into "Story" ("id", "title", "authorEmail", "isPublic", "tags", "settings", "updatedAt") values (%s, %s, %s, %s, %s, %s, now())'
_SCENARIO = (
    'insert into "Scenario" ("id", "storyId", "position", "summary", "updatedAt") values (%s, %s, %s, %s, now())'
)
_PROMPT = 'insert into "Prompt" ("id", "scenarioId", "body", "parameters") values (%s, %s, %s, %s)'
_VIDEO = 'insert into "VideoAsset" ("id", "scenarioId", "durationSeconds", "checksum", "renderedAt") values (%s, %s, %s, %s, now())'
_EDIT = (
    'update "Story" set "title" = %s, "tags" = %s, "settings" = "settings" || %s, "updatedAt" = now() where "id" = %s'
)
_STATUS = 'update "Scenario" set "status" = %s, "updatedAt" = now() where "id" = %s'
_COST = 'update "Prompt" set "tokenCount" = %s, "costUsd" = %s where "scenarioId" = %s'
_RENAME = 'update "Scenario" set "id" = %s where "id" = %s'
_CUT_VIDEOS = 'delete from "VideoAsset" where "scenarioId" = any (%s)'
_CUT_PROMPTS = 'delete from "Prompt" where "scenarioId" = %s'
_CUT_STORY = 'delete from "Story" where "id" = %s'

# Values that a careless copy changes: quotes, other scripts, JSON null, array bounds, what no float holds.
_TITLES = ("The Lighthouse", 'She said "no"', "Тихий океан", "雨の後に", "Ça va? 🦊", "back\\slash", "tab\there")
_TAGS: Sequence[Sequence[str] | None] = (
    ["drama"],
    ["a,b", '"quoted"', ""],
    [],
    None,
    "[0:1]={zero,one}",
    "{{a,b},{c,d}}",
)
_SETTINGS = ({"voice": "alto"}, {"seed": 12345678901234567890}, {"style": None}, {"cuts": [1, 2.50, {"at": "0:07"}]})
_PARAMETERS: Sequence[object] = ({"temperature": 0.7}, [], None, "null", {"stop": ["\n", "—"]})
_SECONDS = (7.5, 0.1, 1e-9, 12345678.901, float("nan"), float("inf"))
_FEW, _MANY = 10, 300  # stories: from many on, they go faster than they come


@dataclass
class _Story:
    id: UUID
    scenarios: list[str] = field(default_factory=list)


class Writer:
    """One connection in a thread of its own. `failure` is why it ended by itself, if it did."""

    def __init__(self, dsn: str, per_second: float, *, seed: int | None = None) -> None:
        self.per_second = per_second
        self.committed = self.rolled_back = 0
        self.failure: Exception | None = None
        self._dsn = dsn
        self._random = random.Random(seed)
        self._stories: list[_Story] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish the transaction in hand."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True, application_name="example application") as conn:
                due = time.monotonic()
                while not self._stopped.wait(max(0.0, due - time.monotonic())):
                    self.step(conn)
                    due = max(due, time.monotonic() - 1.0) + 1.0 / self.per_second
        except Exception as error:  # noqa: BLE001  (a thread has nobody above it: the story asks)
            self.failure = error

    def step(self, conn: psycopg.Connection[Any]) -> None:
        """One transaction, or one that changes its mind and rolls back."""
        act = self._choose()
        with conn.transaction():
            act(conn)
        if act == self._think_again:
            self.rolled_back += 1
        else:
            self.committed += 1

    def _choose(self) -> Callable[[psycopg.Connection[Any]], None]:
        if len(self._stories) < _FEW:
            return self._write
        acts = {
            self._write: 15, self._edit: 25, self._render: 25, self._price: 15, self._rename: 4, self._rewrite: 4,
            self._think_again: 4, self._end: 30 if len(self._stories) > _MANY else 12,
        }  # fmt: skip
        return self._random.choices(list(acts), list(acts.values()))[0]

    def _write(self, conn: psycopg.Connection[Any]) -> None:
        one, pick = _Story(uuid4()), self._random.choice
        values = (one.id, pick(_TITLES), "writer@example.com", pick((True, False)), pick(_TAGS), Jsonb(pick(_SETTINGS)))
        conn.execute(_STORY, values)
        for position in range(self._random.randint(1, 4)):
            scenario = f"scn_{uuid4().hex[:12]}"
            one.scenarios.append(scenario)
            conn.execute(_SCENARIO, (scenario, one.id, position, f"scene {position} of {pick(_TITLES)}"))
            self._prompt(conn, scenario)
        self._stories.append(one)

    def _prompt(self, conn: psycopg.Connection[Any], scenario: str) -> None:
        prompt = f"prm_{uuid4().hex[:12]}"
        parameters = self._random.choice(_PARAMETERS)
        shown = parameters if isinstance(parameters, str | None) else Jsonb(parameters)
        conn.execute(_PROMPT, (prompt, scenario, "a slow pan across the harbour", shown))

    def _edit(self, conn: psycopg.Connection[Any]) -> None:
        pick = self._random.choice
        conn.execute(_EDIT, (pick(_TITLES), pick(_TAGS), Jsonb(pick(_SETTINGS)), pick(self._stories).id))

    def _render(self, conn: psycopg.Connection[Any]) -> None:
        scenario = self._scenario()
        conn.execute(_STATUS, ("RENDERING", scenario))
        checksum = self._random.randbytes(16)
        conn.execute(_VIDEO, (uuid4(), scenario, self._random.choice(_SECONDS), checksum))
        conn.execute(_STATUS, (self._random.choice(("READY", "FAILED")), scenario))

    def _price(self, conn: psycopg.Connection[Any]) -> None:
        tokens = self._random.randint(1, 2**53 + 1)
        conn.execute(_COST, (tokens, f"{self._random.randrange(10**12)}e-6", self._scenario()))

    def _rename(self, conn: psycopg.Connection[Any]) -> None:
        """A key changes, and with it every row that refers to it."""
        story = self._random.choice(self._stories)
        at = self._random.randrange(len(story.scenarios))
        renamed = f"scn_{uuid4().hex[:12]}"
        conn.execute(_RENAME, (renamed, story.scenarios[at]))
        story.scenarios[at] = renamed

    def _rewrite(self, conn: psycopg.Connection[Any]) -> None:
        scenario = self._scenario()
        conn.execute(_CUT_PROMPTS, (scenario,))
        self._prompt(conn, scenario)

    def _think_again(self, conn: psycopg.Connection[Any]) -> None:
        conn.execute(_STATUS, ("FAILED", self._scenario()))
        raise psycopg.Rollback

    def _end(self, conn: psycopg.Connection[Any]) -> None:
        """Deleting a story takes its scenarios and prompts along."""
        story = self._stories.pop(self._random.randrange(len(self._stories)))
        conn.execute(_CUT_VIDEOS, (story.scenarios,))
        conn.execute(_CUT_STORY, (story.id,))

    def _scenario(self) -> str:
        return self._random.choice(self._random.choice(self._stories).scenarios)
