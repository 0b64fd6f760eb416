"""What a copy or a comparison of a table is of, as the source says: `installation:digest order` (outbox.aims).

As text. While ranges are still to be read two are compared as a whole, with `=`. Of the parts one is asked for: numbers of wishes mean something within one
installation of schema outbox alone. Pure.
"""


def same_outbox(one: str | None, other: str | None) -> bool:
    """Do numbers that go with the one mean the same for the other?"""
    return one is not None and other is not None and installation(one) == installation(other)


def same_rows(one: str | None, other: str | None) -> bool:
    """Are they of the same, in whatever order it is read?"""
    return one is not None and other is not None and one.partition(" ")[0] == other.partition(" ")[0]


def installation(aim: str) -> str:
    """The installation of schema outbox that it is of."""
    return aim.partition(":")[0]
