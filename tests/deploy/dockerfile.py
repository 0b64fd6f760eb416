"""The Dockerfile as its instructions. Knows continued lines, comments and stages, and nothing of what they mean."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"

Instruction = tuple[str, str]


def instructions() -> list[list[Instruction]]:
    """Of each stage: (word, rest). What stands before the first FROM belongs to the first stage."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text("utf-8"), flags=re.MULTILINE)
    lines = [line.split(None, 1) for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]
    stages: list[list[Instruction]] = [[]]
    for word, rest in lines:
        if word == "FROM" and any(known == "FROM" for known, _ in stages[-1]):
            stages.append([])
        stages[-1].append((word, rest.strip()))
    return stages


def last_stage() -> dict[str, str]:
    """What the image itself is made of."""
    return dict(instructions()[-1])
