"""Figures of the pages from the files of results, so that no page states what no file says.

    python benchmarks/figures.py           # writes them between the marks of README.md and benchmarks/README.md
    python benchmarks/figures.py --check   # names what differs from the files

A mark is `<!-- figure: NAME -->…<!-- /figure -->`, with a name of FIGURES. It does not show on a page.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
PAGES = (ROOT / "README.md", ROOT / "benchmarks/README.md")
MARK = re.compile(r"(<!-- figure: ([\w-]+) -->)(.*?)(<!-- /figure -->)", re.DOTALL)

EDITED, NOVEL = "edited, union, dB", "novel, union, dB"
COLUMNS = {
    "edited views": (EDITED, 2),
    "novel views": (NOVEL, 2),
    "novel, whole": ("novel, whole, dB", 2),
    "novel views, whole": ("novel, whole, dB", 2),
    "SSIM": ("novel, union, SSIM", 3),
    "IoU": ("novel, IoU", 3),
    "depth error": ("depth error", 3),
    "consistency": ("consistency, union, dB", 2),
}
"""What a column of a table holds: the figure's name in the files, and its digits."""


@dataclass(frozen=True)
class Recipe:
    """A recipe's figures in a setting of the consistency benchmark."""

    setting: str
    """Folder of the results."""
    seeds: Sequence[int]
    """Seeds of the captures."""
    method: str
    """The recipe."""

    def values(self, figure: str) -> list[float]:
        """A figure on every seed that was measured."""
        cells = json.loads((RESULTS / self.setting / "figures.json").read_text(encoding="utf-8"))["cells"][self.method]
        return [cells[str(seed)][figure] for seed in self.seeds if str(seed) in cells]

    def mean(self, figure: str) -> float:
        """Its mean."""
        values = self.values(figure)
        return sum(values) / len(values)


def recipes(setting: str, seeds: Sequence[int], methods: Mapping[str, str]) -> dict[str, Recipe]:
    """Recipes of one setting by their names on the page."""
    return {label: Recipe(setting, seeds, method) for label, method in methods.items()}


def table(title: str, columns: Sequence[str], rows: Mapping[str, Recipe], each: bool = False) -> str:
    """A table in Markdown of means over seeds, or of each seed's figure."""

    def entry(recipe: Recipe, column: str) -> str:
        if column not in COLUMNS:
            return str(len(recipe.values(EDITED)))
        figure, digits = COLUMNS[column]
        shown = recipe.values(figure) if each else [recipe.mean(figure)]
        return " / ".join(f"{value:.{digits}f}" for value in shown)

    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    lines += [f"| {label} | {' | '.join(entry(row, column) for column in columns)} |" for label, row in rows.items()]
    return "\n\n" + "\n".join(lines) + "\n\n"


def differences(figure: str, method: str, *others: str) -> list[float]:
    """By how much a recipe is ahead of the best of others, seed by seed, under loose controls."""
    values = (Recipe("consistency/loose", EIGHT, each).values(figure) for each in (method, *others))
    return [first - max(rest) for first, *rest in zip(*values, strict=True)]


def listed(values: Sequence[float], form: str = "+.2f") -> str:
    """Values in a sentence."""
    return ", ".join(f"{value:{form}}" for value in values)


EIGHT = range(8)
FEW = ("edited views", "novel views", "IoU", "depth error", "consistency")
OTHERS = {name: name for name in ("per-view", "reference attention", "token propagation")}
LIFTED = {
    "per-view, lifted": "per-view, lifted",
    "one-shot (lifted)": "one-shot",
    "progressive (lifted), the default then": "progressive",
}
SEED_7 = {
    "dataset update": "dataset update",
    "per-view": "per-view",
    "per-view, lifted": "per-view, lifted",
    "replacing queries (lifted)": "progressive, replace",
    "blending queries (lifted)": "progressive, blend",
    "guided by queries and drawn to renders (lifted)": "progressive, guidance too",
    "one-shot, drawn to renders (lifted)": "one-shot",
    "progressive, drawn to renders (lifted), the default then": "progressive",
}
SEED_1 = {label: method for label, method in SEED_7.items() if "blend" not in method and "guidance" not in method}
WRONG = {
    "every fifth wrong, mean over views": "progressive, mean of views, not lifted",
    "every fifth wrong, views weighted down that the others contradict (the default)": "progressive, not lifted",
}
WHOLE = {"per-view": "per-view", "progressive, the default": "progressive"}
BEFORE = (
    *("ceiling", "unedited", "per-view", "reference attention", "token propagation", "dataset update"),
    *("progressive, blend", "progressive, replace", "one-shot", "progressive"),
)


def demo() -> dict[str, float]:
    """What `qnerf demo` scored."""
    return json.loads((RESULTS / "demo/score.json").read_text(encoding="utf-8"))


def novel(method: str) -> Callable[[], str]:
    """A recipe's mean in novel views under loose controls."""
    return lambda: f"{Recipe('consistency/loose', EIGHT, method).mean(NOVEL):.1f}"


FIGURES: dict[str, Callable[[], str]] = {
    "demo-photos": lambda: f"{demo()['source photos']:.2f} | {demo()['novel views, unedited NeRF']:.2f}",
    "demo": lambda: f"**{demo()['edited views']:.2f}** | **{demo()['novel views, edited NeRF']:.2f}**",
    "novel-default": novel("progressive"),
    "novel-per-view": novel("per-view"),
    "novel-reference-attention": novel("reference attention"),
    "novel-token-propagation": novel("token propagation"),
    "loose": lambda: table(
        "means over seeds 0 to 7",
        ("edited views", "novel views", "novel, whole", "SSIM", "IoU", "depth error", "consistency"),
        recipes("consistency/loose", EIGHT, OTHERS | LIFTED),
    ),
    "loose-wins": lambda: listed(differences(NOVEL, "progressive", *OTHERS), ".2f"),
    "loose-edited": lambda: listed(differences(EDITED, "progressive", "per-view, lifted")),
    "loose-novel": lambda: listed(differences(NOVEL, "progressive", "per-view, lifted")),
    "one-shot-edited": lambda: listed(differences(EDITED, "progressive", "one-shot")),
    "one-shot-novel": lambda: listed(differences(NOVEL, "progressive", "one-shot")),
    "seed-8": lambda: table("seed 8", FEW, recipes("consistency/loose", [8], OTHERS | LIFTED)),
    "seed-7": lambda: table("seed 7", FEW, recipes("consistency/loose", [7], SEED_7)),
    "seed-1": lambda: table("seed 1", FEW, recipes("consistency/loose", [1], SEED_1)),
    "wrong": lambda: table(
        "seeds 1 / 7",
        ("edited views", "novel views", "depth error", "consistency"),
        recipes("consistency/tight", [1, 7], {"all views right, the default": "progressive"})
        | recipes("consistency/wrong", [1, 7], WRONG),
        each=True,
    ),
    "tight": lambda: table("seeds 1 / 2 / 4 / 7", FEW, recipes("consistency/tight", [1, 2, 4, 7], WHOLE), each=True),
    "before-lifting": lambda: table(
        "means",
        ("seeds (of 0 to 2)", "edited views", "novel views", "novel views, whole", *FEW[2:]),
        recipes("recipes/loose", range(3), {method: method for method in BEFORE}),
    ),
}


def filled(page: str) -> str:
    """A page's text with all marks filled from the files."""
    return MARK.sub(lambda mark: f"{mark[1]}{FIGURES[mark[2]]()}{mark[4]}", page)


def differing(page: str) -> list[str]:
    """Names of the marks whose text is not that of the files."""
    return [name for _, name, text, _ in MARK.findall(page) if text != FIGURES[name]()]


def main(check: bool = False) -> None:
    """Fill the pages.

    Args:
        check: Write nothing; the exit code is 1 where a page differs from the files.
    """
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        if not check:
            path.write_text(filled(page), encoding="utf-8")
        elif names := differing(page):
            sys.exit(f"{path}: {', '.join(names)}: not what the files say; run python benchmarks/figures.py")


if __name__ == "__main__":
    tyro.cli(main)
