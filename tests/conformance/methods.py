"""One row per method of `nse.editors`: the settings under which it is tried, and what is known of its patches beforehand."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from nse.architecture import EditableModel
from nse.hyperparameters import Hyperparameters
from nse.training.run import train_on
from tests.nse.conftest import fact

SETTINGS = Hyperparameters(
    layers=(1, 2),
    v_num_grad_steps=10,
    v_lr=0.2,
    v_weight_decay=0.02,
    clamp_norm_factor=1.0,
    mom2_update_weight=0.2,
    alpha=0.5,
    max_passes=2,
)


@dataclass(frozen=True, slots=True)
class Method:
    """What the suite has to know of a method.

    Attributes:
        settings: For the small random models of the families.
        train: Makes `EditContext.trained` for a model, if the method trains first.
        order: Whether the order of the facts of a round makes no difference beyond rounding.
        rise: By how much the mean log-probability per token of the targets rises at least, in nats; 0 where a random model
            of any family cannot show it.
    """

    settings: Hyperparameters = SETTINGS
    train: Callable[[EditableModel, Path], None] | None = None
    order: bool = True
    rise: float = 0.25


MEND = replace(
    SETTINGS, own={"rank": 8, "lr": 1e-3, "edit_lr": 1e-2, "edit_lr_lr": 1e-3, "edit_weight": 1.0, "batch_size": 2}
)
SERAC = replace(SETTINGS, own={"width": 8, "scope_lr": 1e-2, "rank": 4, "lr": 1e-2, "batch_size": 6})


def training(method: str, settings: Hyperparameters, steps: int) -> Callable[[EditableModel, Path], None]:
    """Trains a method on a model with the facts of the small world, each with a rewording and a prompt that shall stay."""
    facts = [
        replace(fact(i), paraphrase_prompts=(f"Tell me: {fact(i).prompt}",), neighborhood_prompts=("The sun is",))
        for i in range(6)
    ]

    def train(editable: EditableModel, path: Path) -> None:
        train_on(editable, facts, method=method, hyperparameters=settings, steps=steps).save(path)

    return train


METHODS: dict[str, Method] = {
    "nse": Method(),
    "rome": Method(replace(SETTINGS, layers=(1,)), order=False, rise=0.2),
    "memit": Method(rise=0.24),  # one pass, beside a C0 of limited keys
    "memit_seq": Method(rise=0.24),
    "alphaedit": Method(replace(SETTINGS, own={"null_share": 0.8, "L2": 0.02}), rise=0.2),
    "grace": Method(replace(SETTINGS, own={"eps": 0.5, "lr": 0.2, "steps": 10})),
    "mend": Method(MEND, training("mend", MEND, steps=2)),
    "serac": Method(SERAC, training("serac", SERAC, steps=40), rise=0.1),
    "ft": Method(replace(SETTINGS, own={"lr": 0.02, "num_steps": 15})),
    "ft_l": Method(replace(SETTINGS, own={"lr": 0.02, "num_steps": 15, "norm_constraint": 0.1})),
    "locft_bf": Method(replace(SETTINGS, own={"lr": 0.02, "epochs": 15})),
    "saul": Method(replace(SETTINGS, own={"lr": 0.02, "epochs": 15, "facts_per_edit": 2}), order=False),
    "one_li": Method(replace(SETTINGS, own={"lr": 0.02, "epochs": 15, "alpha_share": 0.75})),
    "ultraedit": Method(replace(SETTINGS, own={"lr": 0.01})),
}
