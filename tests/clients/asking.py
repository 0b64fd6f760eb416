"""The same questions put to a project by both of Supabase's clients.

Knows how supabase-py and supabase-js are called. What they are told is kept as it came over the wire, beside what they
make of it.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from postgrest.exceptions import APIError
from supabase import Client, ClientOptions, create_client

from daemon.demo.supabase import EmbeddedSupabase
from tests.clients.questions import Question

_HERE = Path(__file__).parent
_OF_THE_MOMENT = {"date", "connection", "transfer-encoding", "content-length", "keep-alive"}


class MissingJs(Exception):
    """supabase-js cannot be run on this machine."""


@dataclass(frozen=True)
class Answer:
    """`said`: what the client hands to its caller."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: str
    said: str

    @property
    def rows(self) -> int:
        """How many there are in it."""
        if self.status >= 300:
            return 0
        if self.body[:1] not in ("[", "{"):  # CSV
            return self.body.count("\n")
        body = json.loads(self.body)
        return len(body) if isinstance(body, list) else 1


def _answer(status: int, headers: Mapping[str, str], body: str, said: str) -> Answer:
    kept = sorted((name.lower(), value) for name, value in headers.items() if name.lower() not in _OF_THE_MOMENT)
    return Answer(status, tuple(kept), body, said)


def tokens(project: EmbeddedSupabase, users: Mapping[str, str]) -> dict[str, str]:
    """What each of those who ask shows."""
    signed = {who: project.jwt_for(user) for who, user in users.items()}
    return {"anon": "", "secret": project.secret_key, **signed}


# supabase-py


def ask_py(project: EmbeddedSupabase, users: Mapping[str, str], questions: Sequence[Question]) -> list[Answer]:
    with _clients(project, users) as (clients, heard):
        answers = []
        for question in questions:
            said = _said(clients[question.who], question)
            response = heard.pop()
            assert not heard, "one question is one request"
            answers.append(_answer(response.status_code, response.headers, response.text, said))
        return answers


@contextmanager
def _clients(
    project: EmbeddedSupabase, users: Mapping[str, str]
) -> Iterator[tuple[dict[str, Client], list[httpx.Response]]]:
    heard: list[httpx.Response] = []

    def note(response: httpx.Response) -> None:
        response.read()
        heard.append(response)

    with httpx.Client(event_hooks={"response": [note]}, trust_env=False) as http:
        clients = {}
        for who, token in tokens(project, users).items():
            key = token if who == "secret" else project.publishable_key
            options = ClientOptions(httpx_client=http, persist_session=False, auto_refresh_token=False)
            clients[who] = create_client(project.url, key, options)
            if who in users:
                clients[who].postgrest.auth(token)
        yield clients, heard


def _said(client: Client, question: Question) -> str:
    asked: Any = client.table(question.table).select(question.select, count=question.count, head=question.head)  # type: ignore[arg-type]
    try:
        for name, *given in question.steps:
            asked = _step(asked, name, given)
        answer = asked.execute()
    except APIError as refusal:
        return json.dumps(refusal.json())
    return "nothing" if answer is None else json.dumps([answer.data, answer.count])


def _step(asked: Any, name: str, given: Sequence[Any]) -> Any:
    match name, given:
        case "not_", [column, operator, value]:
            return asked.not_.filter(column, operator, value)
        case "or_", [filters, table]:
            return asked.or_(filters, reference_table=table)
        case "order", [column, ascending, nulls_first, table]:
            return asked.order(column, desc=not ascending, nullsfirst=nulls_first, foreign_table=table)
        case "limit", [count, table]:
            return asked.limit(count, foreign_table=table)
        case "range", [first, last, table]:
            return asked.range(first, last, foreign_table=table)
        case "text_search", [column, words, kind, config]:
            return asked.text_search(column, words, {"type": kind, "config": config})
        case _:
            return getattr(asked, name)(*given)


# supabase-js


def ask_js(project: EmbeddedSupabase, users: Mapping[str, str], questions: Sequence[Question]) -> list[Answer]:
    node = shutil.which("node")
    if node is None or not (_HERE / "node_modules/@supabase/supabase-js").exists():
        raise MissingJs("supabase-js is not on this machine: Node.js and npm, then make setup")
    asked = {
        "url": project.url, "key": project.publishable_key, "users": tokens(project, users),
        "questions": [{**question.plain(), "steps": [_for_js(step) for step in question.steps]} for question in questions],
    }  # fmt: skip
    done = subprocess.run(
        [node, "ask.mjs"], cwd=_HERE, input=json.dumps(asked), env={"PATH": os.environ["PATH"]}, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [_answer(**{**heard, "said": heard["said"]}) for heard in json.loads(done.stdout)]


def _for_js(step: Sequence[Any]) -> list[Any]:
    """It takes several patterns as a list."""
    name, *given = step
    if re.search("_(all|any)_of$", name):
        return [name, given[0], given[1].split(",")]
    return list(step)
