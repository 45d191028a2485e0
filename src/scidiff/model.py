"""What a trained model is made of, and how it is kept in a folder.

Everything that a task needs of the training cells is in here, or the task cannot be done: a model goes where its cells
do not.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch

from scidiff._version import __version__
from scidiff.conditioning import ConditionEncoder, Conditions, Vocabulary
from scidiff.data.cells import listing
from scidiff.data.population import Population
from scidiff.data.reference import Reference
from scidiff.data.scaling import Standardizer
from scidiff.data.schema import Schema
from scidiff.errors import DataWarning, InputError
from scidiff.integration.attribution import Library
from scidiff.models.anchor import Anchor
from scidiff.models.denoiser import Denoiser
from scidiff.models.gaussian import GaussianNoise
from scidiff.models.networks import Backbone
from scidiff.models.thinning import Thinning
from scidiff.predictor import Predictor
from scidiff.storage import read_model, write_model

if TYPE_CHECKING:
    from anndata import AnnData

    from scidiff.streaming import CellFile

PROCESSES = {"thinning": Thinning, "gaussian": GaussianNoise}

#: thinning as it is learned for denoising: cells that lost about half of their molecules, the deep ones speaking louder
TO_DENOISE = Thinning(empty=0.0, uniform=1.0, middle=True, power=0.5, own_counts=True)

#: width and blocks of networks
SIZE = {"width": 384, "n_blocks": 3}
#: those of the one for posterior means where there are fewer cells: faster, and nearly as good on held-out molecules
SMALL, MANY_CELLS = {"width": 256, "n_blocks": 2}, 30_000

#: what stands between a perturbation and its dose in rankings
DOSE = " @ "


@dataclass(frozen=True, eq=False, repr=False)
class TrainedModel:
    """The parts of a model; :class:`scidiff.ScIDiff` adds what it can be asked.

    Parameters
    ----------
    denoiser
        The network with its anchor and noise process: ``prediction = denoiser(x_noisy, level, cond)``. Cells are
        sampled from it: trained long, until cells vary as real ones do.
    posterior
        Another, for posterior means: trained to denoise, and stopped where held-out molecules are predicted best.
        Gaussian noise, or a model that only denoises: the same object.
    vocabulary
        Schema and known conditions.
    genes
        Genes in the order of the model.
    scale
        What the model was trained on: "counts" or "log1p".
    standardizer
        Per-gene scaling of log1p(CP10k) for the Gaussian process; None for thinning.
    population
        Frequencies and depths of the training conditions.
    predictor
        Effects of perturbations in closed form; None without a perturbation and control cells.
    library
        Means of the training conditions, for naming the one behind a population; None without perturbed cells and
        controls.
    reference
        Some of the training cells, that what is designed is compared with.
    trust
        For draws: how far the other genes of a cell foretell each gene, from 0 to 1, shape (n_genes,); None: fully.
    history
        One row per look at what was held out: step, loss, heldout, seconds, and stage: "sample", or "denoise" for
        the weights of ``posterior`` (``heldout`` is then nats per held-out molecule, given all others of its cell), or
        "predict" for those of ``effect_network``.
    settings
        How the model was made, JSON values.
    effect_network
        A small network that knows nothing of the closed form and is asked beside it what a perturbation does; None
        where every perturbation was measured in every context.
    """

    denoiser: Denoiser
    posterior: Denoiser
    vocabulary: Vocabulary
    genes: list[str]
    scale: str
    standardizer: Standardizer | None
    population: Population
    predictor: Predictor | None
    library: Library | None
    reference: Reference
    trust: torch.Tensor | None
    history: pd.DataFrame
    settings: dict[str, Any]
    effect_network: Denoiser | None = None

    @property
    def schema(self) -> Schema:
        """Roles of the obs columns."""
        return self.vocabulary.schema

    @property
    def counted(self) -> bool:
        """Whether the model was trained on counts, with either noise."""
        return self.scale == "counts"

    def __repr__(self) -> str:
        told = self.vocabulary
        known = ({"perturbation": told.perturbations} if self.schema.perturbation else {}) | told.categories
        conditions = [f"{name} ({len(values)} values)" for name, values in known.items()]
        conditions += [name for name in ("dose", "time") if getattr(self.schema, name) is not None]
        conditions += list(told.modules)
        return (
            f"{type(self).__name__} of {len(self.genes):,} genes, {self.scale}, {self.settings['noise']} noise\n"
            f"    trained on {self.settings['n_cells']:,} cells\n"
            f"    conditions: {', '.join(conditions) or 'none'}"
        )

    # ---- in a folder ---------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, *, files: Mapping[str, str] | None = None) -> Path:
        """Write the model as a folder of safetensors and JSON, whole or not at all; return its path.

        ``files`` are texts to keep beside it, by file name, such as ``{"split.json": split.to_json()}``.

        Raises
        ------
        InputError
            The folder exists and is not a model.
        """
        tensors = {f"denoiser/{name}": tensor for name, tensor in self.denoiser.state_dict().items()}
        if self.posterior is not self.denoiser:  # its anchor and features are those of the other
            tensors |= {f"posterior/{name}": weight.detach() for name, weight in self.posterior.named_parameters()}
        if self.effect_network is not None:
            weights = self.effect_network.named_parameters()
            tensors |= {f"effect_network/{name}": weight.detach() for name, weight in weights}
        if self.standardizer is not None:
            tensors |= {f"standardizer/{k}": torch.from_numpy(v) for k, v in self.standardizer.to_arrays().items()}
        if self.population.log_depth is not None:
            tensors["population/log_depth"] = torch.from_numpy(self.population.log_depth)
        if self.trust is not None:
            tensors["trust"] = self.trust
        arrays, reference = self.reference.to_arrays()
        tensors |= {f"reference/{k}": torch.from_numpy(v) for k, v in arrays.items()}
        library = None
        if self.library is not None:
            arrays, library = self.library.to_arrays()
            tensors |= {f"library/{k}": torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()}
        predictor = None
        if self.predictor is not None:
            arrays, predictor = self.predictor.to_arrays()
            tensors |= {f"predictor/{k}": torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()}
        about = {
            "settings": self.settings,
            "scale": self.scale,
            "vocabulary": self.vocabulary.to_dict(),
            "population": self.population.to_dict(),
            "factors": [factor.attributes for factor in self.denoiser.anchor.factors],
            "predictor": predictor,
            "library": library,
            "reference": reference,
            "history": self.history.to_dict("records"),
            "genes": self.genes,
        }
        return write_model(Path(folder), about, tensors, files=files)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Return the model in a folder that :meth:`save` wrote.

        Raises
        ------
        InputError
            There is none, it is damaged, or a newer version wrote it.
        """
        about, tensors = read_model(Path(folder))
        try:
            return cls._of(about, tensors)
        except InputError:
            raise
        except Exception as error:  # a folder that was edited can raise anything
            why = f"{type(error).__name__} {error}".splitlines()[0]
            raise InputError(f"{folder} holds no model that can be used ({why}); train or copy it again") from error

    @classmethod
    def _of(cls, about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Self:
        """Return the model that :meth:`save` wrote as this manifest and these tensors."""
        settings, genes = about["settings"], about["genes"]
        vocabulary = Vocabulary.from_dict(about["vocabulary"])
        state = {k.removeprefix("denoiser/"): v for k, v in tensors.items() if k.startswith("denoiser/")}
        anchor = Anchor.from_state(about["factors"], state, prefix="anchor.")
        size = {name: settings[name] for name in ("width", "n_blocks")}
        described = state.get("encoder.part_features")
        process = PROCESSES[settings["noise"]](**settings["process"])
        denoiser = untrained(process, anchor, vocabulary, described, seed=0, **size)
        denoiser.load_state_dict(state)
        posterior = denoiser
        if best := {k.removeprefix("posterior/"): v for k, v in tensors.items() if k.startswith("posterior/")}:
            own = settings["posterior"]
            posterior = untrained(
                Thinning(**own["process"]), anchor, vocabulary, described, seed=0, **{name: own[name] for name in size}
            )
            posterior.load_state_dict(posterior.state_dict() | best)
        effect_network, prefix = None, "effect_network/"
        if own := {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}:
            effect_network = unanchored(anchor, vocabulary, described, seed=0, **size)
            effect_network.load_state_dict(effect_network.state_dict() | own)
            effect_network.eval()
        arrays = {k.removeprefix("standardizer/"): v.numpy() for k, v in tensors.items() if k.startswith("standard")}
        log_depth = tensors.get("population/log_depth")
        return cls(
            denoiser=denoiser.eval(),
            posterior=posterior.eval(),
            vocabulary=vocabulary,
            genes=genes,
            scale=about["scale"],
            standardizer=Standardizer.from_arrays(arrays) if arrays else None,
            population=Population.from_dict(
                about["population"], vocabulary.schema, None if log_depth is None else log_depth.numpy()
            ),
            predictor=None
            if about["predictor"] is None
            else Predictor.from_arrays(
                {k.removeprefix("predictor/"): v.numpy() for k, v in tensors.items() if k.startswith("predictor/")},
                about["predictor"],
                n_genes=len(genes),
            ),
            library=None
            if about["library"] is None
            else Library.from_arrays(
                {k.removeprefix("library/"): v.numpy() for k, v in tensors.items() if k.startswith("library/")},
                about["library"],
            ),
            reference=Reference.from_arrays(
                {k.removeprefix("reference/"): v.numpy() for k, v in tensors.items() if k.startswith("reference/")},
                about["reference"],
                n_genes=len(genes),
            ),
            trust=tensors.get("trust"),
            history=pd.DataFrame(about["history"]),
            settings=settings,
            effect_network=effect_network,
        )

    # ---- cells that a task is given ------------------------------------------------------------------------------

    def refuse_cells(self, scale: str, empty: pd.Index) -> None:
        """Raise for cells that this model cannot use; ``empty`` names those that have nothing of its genes."""
        if scale != self.scale:
            raise InputError(f"the model was trained on {self.scale}, but the cells hold {scale}")
        if len(empty):
            told = f"{len(empty)} cells have only zeros in the model's genes: {listing(empty)}"
            if scale == "counts":
                raise InputError(f"{told}; leave them out")
            warnings.warn(told, DataWarning, stacklevel=4)

    def conditions_of(self, adata: AnnData) -> pd.DataFrame:
        """Return the canonical conditions of cells, missing where obs has no such column."""
        lost = [column for column in self.schema.columns.values() if column not in adata.obs]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # what is missing is said by those who need it
            return self.schema.table(SimpleNamespace(obs=adata.obs.assign(**dict.fromkeys(lost))))

    def labels_of(self, adata: AnnData | CellFile, *, use: bool) -> pd.DataFrame:
        """Return the canonical conditions of cells; what is missing from obs or unknown to the model is missing."""
        lost = [column for column in self.schema.columns.values() if column not in adata.obs]
        if not use or len(lost) == len(self.schema.columns):
            return pd.DataFrame(index=adata.obs.index)
        told = [f"obs column {column!r} (absent)" for column in lost]
        table = self._known_only(self.conditions_of(adata), told)
        if told:
            warnings.warn(f"not known to the model: {', '.join(told)}; taken as unlabelled", DataWarning, stacklevel=4)
        return table

    def encoded(self, table: pd.DataFrame, *, depth: np.ndarray | None = None) -> Conditions:
        """Return conditions for the network; what is unknown or far from training was said with the effect."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            return self.vocabulary.encode(self._known_only(table.reset_index(drop=True)), depth=depth)

    def _known_only(self, table: pd.DataFrame, told: list[str] | None = None) -> pd.DataFrame:
        """Return canonical conditions in which values unknown to the network are missing; say so in ``told``."""
        table = table.copy()
        for name, known in self.vocabulary.known.items():
            values = table[name].map(self.schema.parts if name == "perturbation" else lambda value: (value,))
            fine = table[name].isna() | values.map(set(known).issuperset)
            if not fine.all():
                if told is not None:
                    told.append(f"{name} {table[name][~fine].iloc[0]!r} ({int((~fine).sum())} cells)")
                table[name] = table[name].where(fine, None)
        return table

    def provenance(self, verb: str, scales: dict[str, str], **how: Any) -> dict[str, Any]:
        """Return what ``uns["scidiff"]`` says of a result: how it was made, and the scale of each matrix."""
        return {
            "version": __version__,
            "process": self.settings["noise"],
            "schema": json.dumps(self.schema.to_dict()),
            "scales": scales,
            "verb": verb,
            **how,
        }


def treatment_name(parts: Sequence[str], doses: Sequence[float] | None, *, separator: str | None) -> str:
    """Return what rankings call a treatment: ``A``, ``A+B``, with doses ``A @ 10+B @ 1``."""
    if doses is None:
        return (separator or "").join(parts)
    return (separator or "").join(f"{part}{DOSE}{dose:g}" for part, dose in zip(parts, doses, strict=True))


def untrained(
    process: GaussianNoise | Thinning,
    anchor: Anchor,
    vocabulary: Vocabulary,
    features: torch.Tensor | None,
    *,
    width: int,
    n_blocks: int,
    seed: int,
) -> Denoiser:
    """Return the denoiser before its first step, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Denoiser(
            process,
            anchor=anchor,
            encoder=ConditionEncoder(vocabulary, width, features=features),
            backbone=Backbone(len(anchor.base), width=width, n_blocks=n_blocks),
        )


def unanchored(
    anchor: Anchor,
    vocabulary: Vocabulary,
    features: torch.Tensor | None,
    *,
    width: int,
    n_blocks: int,
    seed: int,
) -> Denoiser:
    """Return an untrained denoiser, small at any size of the model, that starts alike whatever the condition.

    What it says of conditions it has from cells alone, so that its errors are not those of the closed form.
    """
    base = Anchor(anchor.base, [], [], anchor.effects[:1])
    size = {"width": min(width, 128), "n_blocks": min(n_blocks, 2)}
    return untrained(Thinning(), base, vocabulary, features, seed=seed, **size)
