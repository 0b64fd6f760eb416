"""What kind of world a schedule has: drawn once, from its own choices.

A schedule has a few kinds of trouble and not a little of each: so it comes further with those it has.
"""

from dataclasses import dataclass

from daemon.batch import Limits
from tests.model.choices import Choices

_NETWORK = ("lose", "stray", "refuse", "garble", "twice")
_SOURCE = ("unflushed", "source_crash", "drop_query", "split")
_PROCESS = ("crash", "freeze", "cut_bell", "stray")
_FAULTS = tuple(dict.fromkeys((*_NETWORK, *_SOURCE, *_PROCESS, "poison", "truncate", "prune")))
_LATE = ("stray",)  # nothing else: requests that arrive after their successors
_THEMES = ((), _NETWORK, _SOURCE, _PROCESS, _LATE)


@dataclass(frozen=True, slots=True)
class Setting:
    """Sizes, and the faults that may happen."""

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
