"""Training and sampling speed, as a share of what the machine's matrix product reaches in the same run.

    python benchmarks/throughput.py [--threads 2]

FLOPs of a training step: 3 x (2 x non-zeros x width for the sparse first layer + the dense layers); wall time includes
drawing cells, thinning, the optimiser and the running average. The rate is against a float32 product of the shapes of
the model's largest layer, the median of 30, timed before and after. "auto" is what `fit` uses on this machine: bfloat16
where the hardware multiplies it natively. Costs are shown against genes, cells and steps, with the exponent of
a power law through them (1 = linear). Forward simulation: 1,000 simulated cells of 2,000 genes in 50 frames, under a
perturbation and along velocity, and their fates, with networks of the default size that are hardly trained.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse

import scidiff as sd
from scidiff.conditioning import ConditionEncoder, Vocabulary
from scidiff.models.anchor import Anchor
from scidiff.models.denoiser import Denoiser
from scidiff.models.networks import Backbone
from scidiff.models.thinning import Thinning
from scidiff.training import CountBatches, train

WIDTH, BLOCKS, BATCH = 384, 3, 256


def fake_cells(n_cells: int, n_genes: int, *, depth: int = 1500, seed: int = 0) -> AnnData:
    """Return multinomial cells with a realistic spectrum of gene means; speed does not depend on biology."""
    rng = np.random.default_rng(seed)
    mean = rng.lognormal(0, 1.8, n_genes)
    cumulative = np.cumsum(mean / mean.sum())
    rows = np.repeat(np.arange(n_cells), depth)
    columns = np.minimum(np.searchsorted(cumulative, rng.random(len(rows))), n_genes - 1)
    counts = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(n_cells, n_genes))
    return AnnData(counts)


def multiply_rate(n_genes: int, *, dtype: torch.dtype = torch.float32) -> float:
    """Return FLOP/s of (batch x width) @ (width x genes), the median of 30."""
    a, b = torch.randn(BATCH, WIDTH, dtype=dtype), torch.randn(WIDTH, n_genes, dtype=dtype)
    times = []
    for _ in range(30):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * BATCH * WIDTH * n_genes / float(np.median(times))


def flops_per_step(adata: AnnData) -> float:
    """Return FLOPs of one training step, from the non-zeros that thinned cells really have."""
    x = CountBatches(adata.X).take(np.arange(min(BATCH, adata.n_obs)))
    noisy, _ = Thinning().noise(x, generator=torch.Generator().manual_seed(0))
    nonzeros = int((noisy.values() > 0).sum()) / len(x) * BATCH
    block = WIDTH * 3 * WIDTH + 2 * WIDTH * 2 * WIDTH
    dense = BATCH * (BLOCKS * block + WIDTH * adata.n_vars + 10 * WIDTH + WIDTH * WIDTH)
    return 3 * 2 * (nonzeros * WIDTH + dense)


def train_seconds(adata: AnnData, steps: int, precision: str) -> float:
    """Return seconds per step of the training loop: a long run less a short one, so that setting up does not count."""
    table = sd.Schema().table(adata)
    depth = np.asarray(adata.X.sum(axis=1)).ravel()
    vocabulary = Vocabulary.learn(table, sd.Schema(), depth=depth)
    cond = vocabulary.encode(table, depth=depth)
    anchor = Anchor.fit(adata.X, cond, control=np.zeros(adata.n_obs, bool), counts=True)
    encoder = ConditionEncoder(vocabulary, WIDTH)
    denoiser = Denoiser(
        Thinning(), anchor=anchor, encoder=encoder, backbone=Backbone(adata.n_vars, width=WIDTH, n_blocks=BLOCKS)
    )
    times = []
    for n in (5, 5 + steps):
        config = sd.TrainConfig(steps=n, evaluate_every=10**6, precision=precision, batch_size=BATCH)
        history = train(denoiser, CountBatches(adata.X), cond, config=config)
        times.append(history["seconds"].iloc[-1])
    return (times[1] - times[0]) / steps


def exponent(x: list[float], y: list[float]) -> float:
    """Return the slope of log y on log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def forward_seconds() -> dict[str, float]:
    """Return seconds of simulating 1,000 cells of 2,000 genes forward, and of their fates under a perturbation."""
    screen = sd.data.simulate(n_cells=4000, n_genes=2000, n_tfs=60, n_states=4, n_perturbations=30, n_null=4, seed=0)
    adata = screen.adata
    schema = sd.Schema(perturbation="perturbation", control="control", context="cell_type")
    model = sd.ScIDiff.fit(adata, schema, layer="counts", config=sd.TrainConfig(steps=20))
    control = adata[adata.obs["perturbation"] == "control"]
    cells = control[np.resize(np.arange(control.n_obs), 1000)].copy()
    cells.obs_names_make_unique()
    asked = {"perturbation": next(name for name in adata.obs["perturbation"].unique() if name != "control")}
    ends = {"cell_type": screen.lab.terminal_states}
    seconds = {}
    for name, ask in {
        "under a perturbation": lambda: model.trajectory(cells, asked, steps=50, layer="counts"),
        "along velocity": lambda: model.trajectory(cells, velocity=1.0, steps=50, layer="counts"),
        "fates under a perturbation": lambda: model.fate(cells, ends, to=asked, layer="counts"),
    }.items():
        started = time.perf_counter()
        ask()
        seconds[name] = time.perf_counter() - started
    return seconds


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")

    adata = fake_cells(2000, 9015)
    flops = flops_per_step(adata)
    print(f"9,015 genes, width {WIDTH}, batch {BATCH}: {flops / 1e9:.2f} GFLOP a step")
    for precision, dtype in (("auto", torch.bfloat16), ("fp32", torch.float32)):
        shares = []
        for _ in range(args.repeats):
            rate = multiply_rate(adata.n_vars)
            seconds = train_seconds(adata, 40, precision)
            rate = (rate + multiply_rate(adata.n_vars)) / 2
            shares.append((flops / seconds / rate, seconds, rate, multiply_rate(adata.n_vars, dtype=dtype)))
        share, seconds, rate, own = np.median(shares, axis=0)
        low, high = min(s[0] for s in shares), max(s[0] for s in shares)
        print(
            f"training {precision}: {seconds * 1e3:.1f} ms a step, {BATCH / seconds:,.0f} cells/s, "
            f"{share:.0%} of the float32 product's {rate / 1e9:.0f} GFLOP/s (range {low:.0%}-{high:.0%}); "
            f"{str(dtype).removeprefix('torch.')} product {own / 1e9:.0f} GFLOP/s"
        )

    for name, sizes, make in (
        ("genes", [1000, 2000, 4000, 9000, 18000], lambda n: fake_cells(500, n)),
        ("cells", [1000, 4000, 16000], lambda n: fake_cells(n, 2000)),
    ):
        seconds = [train_seconds(make(n), 20, "auto") for n in sizes]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        row = ", ".join(f"{n}: {s * 1e3:.1f}" for n, s in zip(sizes, seconds, strict=True))
        print(
            f"ms a training step against {name}: {row}; exponent {exponent(sizes, seconds):.2f}; peak {memory:.1f} GB"
        )

    model = sd.ScIDiff.fit(adata, width=WIDTH, config=sd.TrainConfig(steps=20, heldout=0.0))
    counts, seconds = [5, 10, 20, 40], []
    for n in counts:
        started = time.perf_counter()
        model.generate(1024, n_steps=n)
        seconds.append(time.perf_counter() - started)
    row = ", ".join(f"{n}: {1024 / s:,.0f}" for n, s in zip(counts, seconds, strict=True))
    print(
        f"cells sampled a second against steps (9,015 genes): {row}; exponent of time {exponent(counts, seconds):.2f}"
    )
    row = ", ".join(f"{name} {s:.0f} s" for name, s in forward_seconds().items())
    print(f"1,000 cells of 2,000 genes, 50 frames: {row}")


if __name__ == "__main__":
    main()
