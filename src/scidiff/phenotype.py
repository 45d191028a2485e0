"""What a cell shall look like: levels of genes, of gene sets, of a TF's targets, a signature, or any function.

    Phenotype(up=["IL2RA"], down=["LAG3", "TIGIT"])        levels as extreme as cells of the context have them
    Phenotype(up=["IL2RA=2.5"])                            the mean of log1p(CP10k) of the designed cells
    Phenotype(up=["IL2RA>2.5"])                            the denoised level of every designed cell
    Phenotype(up=["TF:STAT1"], network=collectri) + Phenotype(clamp={"XIST": 0})

Every wish is a number per cell, a *feature*: most are weighted sums of genes in log1p(CP10k), some are functions. The
level that a feature shall reach is a number, or is read from denoised real cells: the mean of their highest tenth.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scidiff.data.scaling import PER
from scidiff.errors import InputError, closest
from scidiff.integration.networks import read_network
from scidiff.integration.signatures import read_gene_sets

if TYPE_CHECKING:
    from torch import Tensor

#: "top" and "bottom": as extreme as real cells have it. "mean": that value, of the population. "above" and "below":
#: that value, of every cell. "shift": so much more than cells of the context have
Level = Literal["top", "bottom", "mean", "above", "below", "shift"]

_ENTRY = re.compile(r"^(?P<name>[^=<>]+?)\s*(?:(?P<sign>[=<>])\s*(?P<value>\S+))?$")
_TF = "TF:"
#: sets and TFs with fewer genes in the model say too little
MIN_IN_SET = 3
_KEYS = ("up", "down", "sets", "network", "signature", "clamp")


@dataclass(frozen=True, eq=False)
class Wish:
    """One feature and the level it shall have.

    Parameters
    ----------
    name
        What reports call it.
    level
        See :data:`Level`.
    value
        The number, for levels that have one; for "top" and "bottom" the strength: 1 is the mean of the most extreme
        tenth of real cells, 0 their mean.
    weights
        Gene -> weight in log1p(CP10k).
    function
        Instead of weights: a differentiable function of log1p(CP10k), tensor (n_cells, n_genes) -> (n_cells,), genes in
        the order of the model.
    """

    name: str
    level: Level
    value: float
    weights: Mapping[str, float] = field(default_factory=dict)
    function: Callable[[Tensor], Tensor] | None = None

    def on(self, genes: pd.Index) -> np.ndarray:
        """Return the weights of ``genes``, shape (n_genes,); zeros for a function.

        Raises
        ------
        InputError
            A gene that was named is not among them (the nearest is told); or hardly one of a set is.
        """
        missing = [gene for gene in self.weights if gene not in genes]
        if missing and len(self.weights) == 1:
            raise InputError(f"gene {missing[0]!r} is not one of the model{closest(missing[0], genes)}")
        if self.weights and len(self.weights) - len(missing) < min(MIN_IN_SET, len(self.weights)):
            raise InputError(
                f"{self.name}: only {len(self.weights) - len(missing)} of its {len(self.weights)} genes are in the "
                f"model, at least {min(MIN_IN_SET, len(self.weights))} are needed"
            )
        there = {gene: weight for gene, weight in self.weights.items() if gene in genes}
        # as if the genes that are not here did as the others: means stay means, shifts still are of 1
        power = 2 if self.level == "shift" else 1
        scale = _total(self.weights, power) / max(_total(there, power), 1e-12)
        out = np.zeros(len(genes), dtype=np.float32)
        out[genes.get_indexer(list(there))] = np.array(list(there.values())) * scale
        return out


class Phenotype:
    """Wishes that designed cells shall meet together; two phenotypes add up with ``+``.

    Parameters
    ----------
    up, down
        Genes, gene sets (names of ``sets``) and TFs (``"TF:STAT1"``, with ``network``). As a list of texts: a name asks
        for the most extreme tenth of real cells, ``NAME=2.5`` for this mean of log1p(CP10k), ``NAME>2.5`` or
        ``NAME<0.5`` for this denoised level in every cell. As a mapping ``{name: strength}``: so far towards the most
        extreme tenth.
    sets
        Gene sets: name -> genes.
    network
        TF -> target table with columns source, target and (optional) weight; a TF's activity is the weighted mean of
        its targets.
    signature
        A change of log1p(CP10k), gene -> difference, such as an effect: cells shall move by it, along it.
    clamp
        Gene -> level in log1p(CP10k) that every cell shall have, exactly (to a molecule); 0: never seen.
    function
        Any differentiable function, see :class:`Wish`; its mean over cells shall be ``value``.
    value
        See ``function``.

    Raises
    ------
    InputError
        An entry cannot be read, a set or TF is unknown, or nothing is asked for.
    """

    def __init__(
        self,
        up: Sequence[str] | Mapping[str, float] = (),
        down: Sequence[str] | Mapping[str, float] = (),
        *,
        sets: Mapping[str, Iterable[str]] | None = None,
        network: pd.DataFrame | None = None,
        signature: Mapping[str, float] | pd.Series | None = None,
        clamp: Mapping[str, float] | None = None,
        function: Callable[[Tensor], Tensor] | None = None,
        value: float | None = None,
    ) -> None:
        known = {str(name): _genes(name, genes) for name, genes in _mapping(sets, "sets").items()}
        wishes = [_wish(entry, strength, "top", known, network) for entry, strength in _entries(up)]
        wishes += [_wish(entry, strength, "bottom", known, network) for entry, strength in _entries(down)]
        if signature is not None:
            wishes.append(_signature(signature))
        if (function is None) != (value is None):
            raise InputError("function= and value= belong together: the mean of the function shall be the value")
        if function is not None:
            name = getattr(function, "__name__", type(function).__name__)
            wishes.append(Wish(name, "mean", _number(value, "value"), {}, function))
        self.wishes: tuple[Wish, ...] = tuple(wishes)
        self.clamp = {str(gene): _number(level, f"clamp {gene}") for gene, level in _mapping(clamp, "clamp").items()}
        self._check()

    def _check(self) -> None:
        if not self.wishes and not self.clamp:
            raise InputError("this phenotype asks for nothing; name genes that shall be up= or down=")
        names = [wish.name for wish in self.wishes]
        if double := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"{double[0]} is asked for more than once; say what it shall be, once")
        for gene, level in self.clamp.items():
            if not 0 <= level <= MAX_LEVEL:
                raise InputError(f"clamp {gene}={level:g}: a level of log1p(CP10k) is from 0 to {MAX_LEVEL:.3g}")
        if (share := sum(map(np.expm1, self.clamp.values())) / PER) >= 1:
            raise InputError(f"the clamped genes would have {share:.0%} of a cell's molecules; clamp them lower")
        for wish in self.wishes:
            if clamped := set(wish.weights) & set(self.clamp):
                raise InputError(f"{sorted(clamped)[0]} is clamped, so {wish.name} cannot steer it: choose one")

    def __add__(self, other: Phenotype) -> Phenotype:
        """Return the phenotype that asks for both."""
        if not isinstance(other, Phenotype):
            return NotImplemented
        for gene, level in self.clamp.items():
            if other.clamp.get(gene, level) != level:
                raise InputError(f"{gene} is clamped at {level:g} and at {other.clamp[gene]:g}: choose one")
        return self._of(self.wishes + other.wishes, self.clamp | other.clamp)

    def also(self, wish: Wish) -> Phenotype:
        """Return the phenotype that asks for one wish more."""
        return self._of((*self.wishes, wish), self.clamp)

    @classmethod
    def _of(cls, wishes: tuple[Wish, ...], clamp: dict[str, float]) -> Phenotype:
        made = object.__new__(cls)
        made.wishes, made.clamp = wishes, clamp
        made._check()
        return made

    def __repr__(self) -> str:
        said = [f"{wish.name} {wish.level} {wish.value:g}" for wish in self.wishes]
        return f"Phenotype({', '.join(said + [f'{gene} clamped at {level:g}' for gene, level in self.clamp.items()])})"

    @property
    def genes(self) -> list[str]:
        """Genes that are asked about, directly or in a set."""
        return sorted({gene for wish in self.wishes for gene in wish.weights} | set(self.clamp))

    @classmethod
    def from_yaml(cls, path: str | Path) -> Phenotype:
        """Return the phenotype in a YAML file: keys up, down, clamp, and sets, network, signature (paths from there).

        Sets and signatures may also be written out. All values are read as text.

        Raises
        ------
        InputError
            It cannot be read, or has other keys.
        """
        import yaml

        path = Path(path)
        try:
            said = yaml.load(path.read_text(), yaml.BaseLoader)  # texts only: the gene NO is no truth value
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"cannot read the phenotype {path}: {str(error).splitlines()[0]}") from None
        if not isinstance(said, dict):
            raise InputError(f"{path} holds no phenotype; write keys such as up: [IL2RA]")
        if other := [key for key in said if key not in _KEYS]:
            raise InputError(f"{path}: unknown key {other[0]!r}{closest(str(other[0]), _KEYS)}")
        asked: dict[str, Any] = {key: value for key, value in said.items() if value not in ("", [], {})}
        try:
            for key, value in asked.items():
                if key in READERS and isinstance(value, str):
                    asked[key] = READERS[key](path.parent / value)
                elif key in ("up", "down") and isinstance(value, str):
                    asked[key] = [value]
            return cls(**asked)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def matrix(self, genes: Sequence[str]) -> np.ndarray:
        """Return the weights of genes in every feature, shape (n_genes, n_wishes); columns of functions are zero.

        Raises
        ------
        InputError
            A gene that was named is not among ``genes`` (the nearest is told); or hardly one of a set is.
        """
        index = pd.Index(genes)
        for gene in self.clamp:
            if gene not in index:
                raise InputError(f"gene {gene!r} is not one of the model{closest(gene, genes)}")
        columns = [wish.on(index) for wish in self.wishes]
        return np.stack(columns, axis=1) if columns else np.zeros((len(genes), 0), dtype=np.float32)


def _total(weights: Mapping[str, float], power: int) -> float:
    return sum(abs(weight) ** power for weight in weights.values())


#: levels of log1p(CP10k) end where a cell has one gene only
MAX_LEVEL = float(np.log1p(PER))


def read_signature(path: Path) -> dict[str, float]:
    """Return the first two columns of a table: gene -> difference."""
    try:
        with path.open() as lines:
            separator = "\t" if "\t" in lines.readline() else ","
        table = pd.read_csv(path, sep=separator)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the table {path}: {str(error).splitlines()[0]}") from None
    if table.shape[1] < 2 or not pd.api.types.is_numeric_dtype(table.iloc[:, 1]):
        raise InputError(f"{path} is no signature: its first column names genes, its second holds numbers")
    return dict(zip(table.iloc[:, 0].astype(str), table.iloc[:, 1].astype(float), strict=True))


READERS: dict[str, Callable[[Path], Any]] = {
    "sets": read_gene_sets,
    "network": read_network,
    "signature": read_signature,
}


def asked_phenotype(
    *,
    up: Sequence[str] | None = None,
    down: Sequence[str] | None = None,
    clamp: Sequence[str] | None = None,
    file: Path | None = None,
    sets: Path | None = None,
    network: Path | None = None,
    signature: Path | None = None,
) -> Phenotype:
    """Return the phenotype of a command line: lists of comma-separated entries, and files."""
    parts = [] if file is None else [Phenotype.from_yaml(file)]
    lists: dict[str, Any] = {
        name: listed(said) for name, said in (("up", up), ("down", down), ("clamp", clamp)) if said
    }
    levels = {}
    for entry in lists.pop("clamp", []):
        gene, sign, level = entry.partition("=")
        if not sign:
            raise InputError(f"--clamp {entry}: write GENE=LEVEL")
        levels[gene] = _number(level, entry)
    files = {name: path for name, path in (("sets", sets), ("network", network), ("signature", signature)) if path}
    if lists or levels or "signature" in files or not parts:  # what is asked here, beside the file
        parts.append(Phenotype(**lists, clamp=levels, **{name: READERS[name](path) for name, path in files.items()}))
    elif files:
        name = next(iter(files))
        raise InputError(f"--{name} is for --up and --down; to use it in {file}, name it there")
    return sum(parts[1:], parts[0])


def module_scores(x: Any, genes: Sequence[str], modules: Mapping[str, Any]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return how active gene sets and TFs are in cells: the (weighted) mean of log1p(CP10k) of their genes.

    Parameters
    ----------
    x
        log1p(CP10k), csr or dense, shape (n_cells, n_genes).
    genes
        Names of its columns.
    modules
        Name -> genes of a set, or gene -> weight, such as the targets of a TF.

    Returns
    -------
    Scores, one row per cell and one column per module, and the weights that made them: name -> gene -> weight.

    Raises
    ------
    InputError
        A module is no list of genes, or fewer than three of its genes are among ``genes``.
    """
    index, scores, weights = pd.Index(genes), {}, {}
    for name, asked in _mapping(modules, "modules").items():
        if isinstance(asked, Mapping | pd.Series):
            told = {str(gene): _number(weight, f"module {name}, {gene}") for gene, weight in asked.items()}
            told = {gene: weight / (_total(told, 1) or 1) for gene, weight in told.items() if weight}
        else:
            told = _weights(name, {name: _genes(name, asked)}, None)
        if not told:
            raise InputError(f"module {name} has no gene with a weight")
        on = Wish(f"module {name}", "mean", 0.0, told).on(index)
        scores[str(name)] = np.asarray(x @ on).ravel()
        weights[str(name)] = {genes[int(i)]: float(on[i]) for i in np.flatnonzero(on)}
    return pd.DataFrame(scores, index=range(x.shape[0])), weights


def asked_modules(said: Sequence[str]) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Return obs columns, and weights of genes by module, from ``COLUMN``, ``SET=FILE.gmt`` and ``TF=NETWORK``."""
    columns, modules = [], {}
    for entry in said:
        name, is_file, file = entry.partition("=")
        if not is_file:
            columns.append(name)
        elif ".gmt" in Path(file).suffixes:
            sets = read_gene_sets(Path(file))
            if name not in sets:
                raise InputError(f"{file} has no gene set {name!r}{closest(name, sets)}")
            modules[name] = _weights(name, {name: list(sets[name])}, None)
        else:
            modules[name] = _weights(_TF + name, {}, read_network(Path(file)))
    return columns, modules


def listed(said: Sequence[str]) -> list[str]:
    """Split at commas, those within quotes apart."""
    try:
        rows = list(csv.reader(said, skipinitialspace=True))
    except csv.Error as error:
        raise InputError(f"cannot read {', '.join(said)!r}: {error}") from None
    return [entry.strip() for row in rows for entry in row if entry.strip()]


# ---- reading what was asked -----------------------------------------------------------------------------------------


def _entries(asked: Sequence[str] | Mapping[str, float]) -> list[tuple[str, float]]:
    if isinstance(asked, str):
        raise InputError(f"up= and down= take a list: write [{asked!r}]")
    if isinstance(asked, Mapping):
        return [(str(name), _number(strength, str(name))) for name, strength in asked.items()]
    if not isinstance(asked, Iterable):
        raise InputError(f"up= and down= take a list of names, not {asked!r}")
    entries = list(asked)
    if wrong := [entry for entry in entries if isinstance(entry, Iterable) and not isinstance(entry, str)]:
        raise InputError(f"up= and down= take names, not {str(wrong[0])[:60]!r}")
    return [(str(entry), 1.0) for entry in entries]


def _mapping(asked: Any, what: str) -> Mapping[str, Any]:
    if asked is not None and not isinstance(asked, Mapping | pd.Series):
        raise InputError(f"{what} takes names and what each has, not {asked!r}")
    return {} if asked is None else asked


def _genes(name: str, genes: Any) -> list[str]:
    if isinstance(genes, str) or not isinstance(genes, Iterable) or not (listed := [str(gene) for gene in genes]):
        raise InputError(f"the gene set {name} takes a list of genes, not {genes!r}")
    return listed


def _wish(
    entry: str, strength: float, level: Level, sets: Mapping[str, list[str]], network: pd.DataFrame | None
) -> Wish:
    read = _ENTRY.match(entry.strip())
    if not read:
        raise InputError(f"cannot read {entry!r}; write GENE, GENE=2.5, GENE>2.5 or GENE<0.5")
    name, sign = read["name"], read["sign"]
    weights = _weights(name, sets, network)
    if not sign:
        if not 0 < strength <= 5:
            raise InputError(f"{name}: a strength is above 0 and at most 5, not {strength:g}")
        return Wish(name, level, strength, weights)
    if strength != 1:
        raise InputError(f"{entry} says a level and {strength:g} a strength: give one of them")
    value = _number(read["value"], entry)
    if not name.startswith(_TF) and not 0 <= value <= MAX_LEVEL:
        raise InputError(f"{entry}: a level of log1p(CP10k) is from 0 to {MAX_LEVEL:.3g}")
    levels: dict[str, Level] = {"=": "mean", ">": "above", "<": "below"}
    return Wish(name, levels[sign], value, weights)


def _weights(name: str, sets: Mapping[str, list[str]], network: pd.DataFrame | None) -> dict[str, float]:
    if name in sets:
        return dict.fromkeys(sets[name], 1 / max(len(set(sets[name])), 1))
    if not name.startswith(_TF):
        return {name: 1.0}
    if network is None:
        raise InputError(f"{name} needs network=, a table of TFs and targets")
    if not isinstance(network, pd.DataFrame):
        raise InputError("the network must be a table with columns source, target and, if known, weight")
    if lost := [column for column in ("source", "target") if column not in network]:
        raise InputError(f"the network has no column {lost[0]!r}; it has {', '.join(map(str, network.columns))}")
    tf = name.removeprefix(_TF)
    rows = network[network["source"].astype(str) == tf]
    if rows.empty:
        raise InputError(f"the network has no TF {tf!r}{closest(tf, network['source'].unique())}")
    weight = pd.to_numeric(rows["weight"], errors="coerce") if "weight" in rows else pd.Series(1.0, rows.index)
    weight = weight.fillna(np.inf).groupby(rows["target"].astype(str)).sum()
    total = weight.abs().sum()
    if not np.isfinite(total) or total == 0:
        raise InputError(f"the network's weights of {name} must be numbers, not all of them zero")
    return {str(gene): float(w / total) for gene, w in weight.items()}


def _signature(signature: Mapping[str, float] | pd.Series) -> Wish:
    """A shift along a direction d: the feature d x / (d d) of cells shall grow by 1."""
    changes = _mapping(signature, "signature").items()
    numbers = {str(gene): _number(value, f"signature {gene}") for gene, value in changes}
    delta = {gene: value for gene, value in numbers.items() if value}
    norm = _total(delta, 2)
    if not norm:
        raise InputError("the signature has no change that is not zero")
    return Wish("signature", "shift", 1.0, {gene: value / norm for gene, value in delta.items()})


def _number(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{what}: {value!r} is no number") from None
    if not np.isfinite(number):
        raise InputError(f"{what}: {number} is not finite")
    return number
