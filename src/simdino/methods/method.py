"""What a method is: everything of a run that depends on its objective, declared in the file of the method.

Nothing heavy is imported here or by the methods' files: the command line reads their declarations. What builds a loss
or a network imports it when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from simdino.config import Config, LossConfig
from simdino.defaults import Preset, Row

if TYPE_CHECKING:
    from simdino.losses.objective import Objective
    from simdino.models.encoder import Encoder
    from simdino.models.projector import Embedder

ONE_FEATURE = 1.5  # effective rank under which all images have nearly the same feature
RANKS = ("effective_rank", "feature_rank")  # of the embeddings in each step; of the encoder's features when evaluated
Numbers = Mapping[str, float]
"""What a run logged lately, by name."""
Rule = tuple[bool, str]
"""Whether settings contradict each other, and the words for it."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One chart of a report: which number it shows, beside which others, and what good looks like."""

    key: str
    title: str
    caption: str
    along: Literal["step", "layer"] = "step"  # what the number is drawn against
    references: tuple[tuple[str, str], ...] = ()  # (key, name), drawn dashed
    start: bool = False  # a line at the value of step 0
    zones: tuple[tuple[float, float, str, str], ...] = ()  # (low, high, name, colour)
    zones_with: str | None = None  # the zones are for runs that have this number
    limits: tuple[float | None, float | None] = (None, None)  # where the axis ends, whatever rounding adds
    log: bool = False  # logarithmic where values span more than a factor of thirty
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What ails a run: how it fails, why, and what to do."""

    status: Literal["collapse", "over-expansion"]
    sentence: str


def sizes(config: Config) -> dict[str, Any]:
    """What every objective has of a run."""
    heads, width = config.projector, known_width(config)
    return {
        "batch": config.run.batch, "dim": heads.out_dim if heads.layers else width,
        "rank": width + 1 if heads.layers == 1 and width else None, "global_views": config.views.global_views,
        "local_views": config.views.local_views,
    }  # fmt: skip


def known_width(config: Config) -> int | None:
    """The width of the encoder's tokens; None where only the encoder itself knows it, as one of timm does."""
    from simdino.models.catalogue import kind_of

    kind = kind_of(config.encoder.name)
    width = kind.complete(config.encoder).embed_dim
    return width and width * (config.data.channels if kind.joins else 1)


def with_projector(config: Config, encoder: Encoder) -> Embedder:
    """The encoder with a projector, with prototypes where the configuration has some, and with a second one for masked
    patches where it asks for that. The heads' weights are random."""
    from simdino.models.projector import Embedder, Projector, Prototypes

    heads = config.projector

    def head() -> Projector:
        prototypes = None
        if heads.prototypes:
            dim = heads.out_dim if heads.layers else encoder.embed_dim
            prototypes = Prototypes(dim=dim, count=heads.prototypes, train_lengths=heads.train_lengths)
        return Projector(
            embed_dim=encoder.embed_dim, hidden_dim=heads.hidden_dim, out_dim=heads.out_dim, layers=heads.layers,
            prototypes=prototypes,
        )  # fmt: skip

    separate = heads.separate and config.views.mask_share > 0
    return Embedder(encoder, head(), head() if separate else None)


def health_numbers(now: Numbers) -> list[str]:
    """The numbers that a verdict names: those of the health terms which a loss logs, else the loss itself."""
    forms = {
        "expansion_fraction": "expansion {:.2f} of its range", "alignment": "alignment {:.2f}",
        "effective_rank": "effective rank {:.0f}",
    }  # fmt: skip
    found = [form.format(now[name]) for name, form in forms.items() if name in now]
    return found or [f"loss {now['loss']:.3g}"]


def one_feature(now: Numbers) -> Diagnosis | None:
    """The diagnosis that every method can give: the features of all images are nearly the same."""
    ranks = [now[name] for name in RANKS if name in now]
    if not ranks or ranks[0] >= ONE_FEATURE:
        return None
    return Diagnosis(status="collapse", sentence="all images get nearly the same feature. Lower --lr.")


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of training without labels.

    Args:
        name: what --method takes, and the name of its file.
        about: what it does, in a line.
        settings: the settings of its loss, `loss.NAME` in config.json.
        objective: the loss of a run.
        parts: what it has beside a loss on class tokens, of "prototypes", "masks" and "koleo". Settings that belong to
            a part (`settings.setting`) have no meaning for methods without it.
        networks: the encoder with the heads that it trains.
        ours: what it changes of the settings that follow the images (`defaults.TABLE`).
        recipes: its published settings by name, for an encoder's name, of ViTs with patches of 16 pixels at 224 px:
            "paper", and "released" with every quirk of the released code that changes results (DINO at 7c446df, DINOv2
            at b8931f7, SimDINO and SimDINOv2 at 8149fc4; docs/parity.md lists what still differs). Those normalise
            images by ImageNet's constants, whatever they are, and turn grey ones into three channels.
        rules: what may contradict between its settings.
        describe: what decides its balance, for the plan of a run.
        warnings: what is wrong with the balance of a loss before step 1.
        numbers: what a verdict names of the numbers that a run has logged.
        diagnose: what ails a run by these numbers; None where nothing does.
        cure: which of its settings spread features that are alike: "a higher --rho".
        health, terms: the charts of what it alone logs.
    """

    name: str
    about: str
    settings: type[LossConfig]
    objective: Callable[[Config], Objective]
    parts: frozenset[str] = frozenset()
    networks: Callable[[Config, Encoder], Embedder] = with_projector
    ours: Callable[[Preset, Row], Preset] = lambda preset, _: preset
    recipes: Mapping[str, Callable[[str], Preset]] = field(default_factory=dict)
    rules: Callable[[Config], list[Rule]] = lambda _: []
    describe: Callable[[Config], str] = lambda config: config.run.method
    warnings: Callable[[Objective], list[str]] = lambda _: []
    numbers: Callable[[Numbers], list[str]] = health_numbers
    diagnose: Callable[[Numbers], Diagnosis | None] = one_feature
    cure: str = ""
    health: tuple[Curve, ...] = ()
    terms: tuple[Curve, ...] = ()
