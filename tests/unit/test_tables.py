"""What may be said of a table in outboxd.toml, and what is refused in which words."""

import pytest

from daemon.configuration import ConfigError, load
from daemon.errors import AmbiguousTable
from daemon.settings import Settings, redacted
from daemon.tables import TableSettings, meant, parts, said_of


@pytest.fixture(autouse=True)
def _nothing_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def loaded(toml: str) -> Settings:
    with open("outboxd.toml", "w", encoding="utf-8") as file:
        file.write(toml)
    return load(needs=())


def refused(toml: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        loaded(toml)
    assert all(one.origin == "outboxd.toml" for one in caught.value.problems)
    return [(one.setting, one.what) for one in caught.value.problems]


WHOLE = """
relay = "main"
[tables."public.story"]
target = "app.story"
exclude = ["draft"]
rename = { authorId = "user_id" }
constant = { origin = "main" }
mask = { email = "hash" }
where = "deleted_at is null"
owner = "user_id"
realtime = true
[tables.'public."Scene"']
access = "public_read"
[tables."public.bare"]
[schema]
auto = "additive"
"""


def test_everything_that_may_be_said():
    """Each value arrives under its name; owner alone says who may see the rows."""
    settings = loaded(WHOLE)
    assert settings.schema_.auto == "additive"
    assert settings.tables["public.story"] == TableSettings(
        target="app.story", exclude=("draft",), rename={"authorId": "user_id"}, constant={"origin": "main"},
        mask={"email": "hash"}, where="deleted_at is null", owner="user_id", access="owner", realtime=True,
    )  # fmt: skip
    assert settings.tables['public."Scene"'].access == "public_read"
    assert Settings().tables == {}
    assert Settings().schema_.auto == "off"


def test_config_show_has_what_was_said():
    """With the file it is from; what was not said is not listed."""
    shown = redacted(loaded(WHOLE))
    assert shown["tables.'public.story'.rename"] == {"value": {"authorId": "user_id"}, "from": "outboxd.toml"}
    assert shown["schema.auto"] == {"value": "additive", "from": "outboxd.toml"}
    assert "tables.'public.story'.write" not in shown
    assert redacted(Settings())["schema.auto"] == {"value": "off", "from": "default"}


def test_the_environment_may_say_what_schema_does(monkeypatch):
    monkeypatch.setenv("OUTBOXD_SCHEMA__AUTO", "additive")
    assert load(needs=()).schema_.auto == "additive"


@pytest.mark.parametrize(
    ("line", "setting", "what"),
    [
        ('ownr = "x"', ".ownr", "is no setting; did you mean tables.'public.story'.owner?"),
        ('access = "everybody"', ".access", "should be 'owner', 'public_read' or 'none'"),
        ('access = "owner"', "", 'has access = "owner" and no owner: name the column, as in owner = "user_id"'),
        ("write = true", "", 'has write = true and no owner: name the column, as in owner = "user_id"'),
        ('owner = "u"\naccess = "none"\nwrite = true', "", 'has write = true and access = "none": nobody could write'),
        ('include = ["a"]\nexclude = ["b"]', "", "has include and exclude: give one of them"),
        ("include = []", "", "has an empty include: no column would travel"),
        ('rename = { a = "c", b = "c" }', "", "renames two columns to the same name"),
        ('rename = { a = "c" }\nconstant = { c = "1" }', "", "has a constant under a name that rename gives away as well"),
        ('mask = { a = "blur" }', ".mask.a", "should be 'null', 'hash' or 'redact'"),
        ('target = "story"', ".target", 'is no name of a table: write schema.table, as in public.story or public."Story"'),
        ('where = " "', ".where", "is empty: leave it out, and every row travels"),
        ('where = "true; drop table x"', ".where", "is to be one condition over the table's columns, without a semicolon"),
        ('owner = ""', ".owner", "should have at least 1 character"),
    ],
)  # fmt: skip
def test_what_is_refused(line, setting, what):
    """The setting is named as TOML has it, with the file, and the sentence says what to write."""
    assert refused(f'[tables."public.story"]\n{line}\n') == [(f"tables.'public.story'{setting}", what)]


def test_names_of_tables_are_looked_at():
    """A name that no table can have, one given twice in two spellings, and a setting where a table should be."""
    assert refused('[tables."story"]\nwrite = false\n') == [("tables.'story'", "is no name of a table")]
    twice = '[tables."public.Story"]\naccess = "none"\n[tables.\'public."Story"\']\naccess = "none"\n'
    assert refused(twice) == [("tables.'public.\"Story\"'", "is the same table as tables.'public.Story'")]
    assert refused('[tables]\n"public.story" = 3\n') == [
        ("tables.'public.story'", 'is to be a table of settings: [tables."public.story"]')
    ]


def test_two_spellings_are_one_table():
    """As SQL has it, and as a person types it: without quotes a name is what it is written as, or what SQL makes of it."""
    assert parts('public."Story"') == parts("public.Story") == ("public", "Story")
    assert parts('"a.b"."c""d"') == ("a.b", 'c"d')
    assert [parts(name) for name in ("story", "a.b.c", "", 'a."b')] == [None] * 4
    assert said_of({"public.Story": 1}, 'public."Story"', []) == 1
    assert said_of({"public.Story": 1}, "public.story", []) == 1
    assert said_of({'public."Story"': 1}, "public.story", []) is None
    assert said_of({"public.story": 1}, 'public."Story"', []) is None


BOTH = ['public."Story"', "public.story", "app.other"]


@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("public.story", "public.story"), ('public."Story"', 'public."Story"'), ("Public.story", "public.story"), ("other", "app.other"),
        ("story", "public.story"), ('"Story"', 'public."Story"'), ("app.nope", None), ("a.b.c", None),
    ],
)  # fmt: skip
def test_a_name_means_one_table(name, which):
    """Quoted it is exact; where nothing is quoted, whichever there is."""
    assert meant(name, BOTH) == which


@pytest.mark.parametrize("name", ["public.Story", "Story"])
def test_a_name_that_may_mean_two_tables_is_refused_with_both(name):
    """In a command, and where something is said of it in [tables]."""
    with pytest.raises(AmbiguousTable, match=r'may mean public\."Story" or public\.story'):
        meant(name, BOTH)
    with pytest.raises(AmbiguousTable):
        said_of({"public.Story": 1}, "public.story", BOTH)
    assert meant(name, ["public.story"]) == "public.story"
