"""Thinning against probability: binomials, composition, the multinomial likelihood, and a mixture solved by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats
from torch import Tensor

from scidiff.errors import InputError
from scidiff.models.sparse import csr_tensor, depth_of
from scidiff.models.thinning import Thinning, _invert_binomial, binomial, draw_molecules
from scidiff.sampling.solvers import ancestral

PROCESS = Thinning()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def to_csr(x: Tensor) -> Tensor:
    m = sparse.csr_matrix(x.numpy())
    return csr_tensor(*map(torch.from_numpy, (m.indptr, m.indices, m.data)), m.shape[1])


def counts(n_cells: int = 40, n_genes: int = 12, *, mean: float = 3.0, seed: int = 0) -> Tensor:
    means = mean * torch.rand(n_genes, generator=rng(seed)) * 2
    return torch.poisson(means.expand(n_cells, -1), generator=rng(seed + 1))


class TestNoise:
    """The forward process."""

    @pytest.mark.parametrize(
        ("n", "p"),
        [(1, 0.3), (2, 0.7), (3, 0.2), (4, 0.5), (4, 0.9), (5, 0.6), (7, 0.1), (60, 0.5), (2000, 0.02)],
    )
    def test_binomial(self, n, p):
        draws = binomial(torch.full((40_000,), float(n)), torch.full((40_000,), p), generator=rng())
        seen = np.bincount(draws.long().numpy(), minlength=n + 1)
        expected = stats.binom.pmf(np.arange(n + 1), n, p) * len(draws)
        often = expected >= 5  # the rest goes into one bin
        observed = np.append(seen[often], seen[~often].sum())
        expected = np.append(expected[often], expected[~often].sum())
        keep = expected > 0
        assert stats.chisquare(observed[keep], expected[keep]).pvalue > 1e-3

    @pytest.mark.parametrize("u", [0.0, 2.0**-24, 0.5, 1 - 2.0**-24])
    def test_inverted_binomial_stays_in_its_range(self, u):
        """The rarest uniform numbers meet probabilities that rounding left a little off."""
        n = torch.arange(2.0, 5.0)[:, None].expand(-1, 2001)
        p = torch.linspace(0, 1, 2001).expand(3, -1)
        drawn = _invert_binomial(n, p, torch.full_like(p, u))
        assert ((drawn >= 0) & (drawn <= n)).all()

    def test_binomial_at_the_ends(self):
        x = counts()
        assert torch.equal(binomial(x, torch.ones_like(x), generator=rng()), x)
        assert not binomial(x, torch.zeros_like(x), generator=rng()).any()

    @settings(max_examples=40, deadline=None)
    @given(seed=st.integers(0, 2**31), kappa=st.floats(0, 1), mean=st.floats(0.01, 50))
    def test_molecules_are_kept_or_removed(self, seed, kappa, mean):
        x = counts(5, 7, mean=mean, seed=seed)
        kept = PROCESS.corrupt(x, torch.full((5,), kappa), generator=rng(seed))
        removed = x - kept
        assert (kept >= 0).all()
        assert (removed >= 0).all()
        assert torch.equal(kept, kept.round())

    def test_sparse_and_dense_are_the_same_process(self):
        """Same molecules in, and the same law out: the sparse path never touches zeros."""
        x, kappa = counts(4000, 6), torch.full((4000,), 0.3)
        thin = PROCESS.corrupt(to_csr(x), kappa, generator=rng())
        dense = PROCESS.corrupt(x, kappa, generator=rng(1))
        assert torch.equal(thin.crow_indices(), to_csr(x).crow_indices())
        assert torch.equal(thin.col_indices(), to_csr(x).col_indices())
        for kept in (thin.to_dense(), dense):
            assert (kept <= x).all()
            error = (kept.mean(0) - 0.3 * x.mean(0)) / torch.sqrt(0.3 * 0.7 * x.mean(0) / len(x))
            assert error.abs().max() < 4

    def test_thinning_composes(self):
        """kappa_1 then kappa_2 has the law of kappa_1 kappa_2: same table of counts (chi-square of homogeneity)."""
        x, n = torch.full((30_000, 1), 9.0), 30_000
        twice = PROCESS.corrupt(x, torch.full((n,), 0.6), generator=rng(0))
        twice = PROCESS.corrupt(twice, torch.full((n,), 0.5), generator=rng(1))
        once = PROCESS.corrupt(x, torch.full((n,), 0.3), generator=rng(2))
        table = np.stack([np.bincount(t[:, 0].long().numpy(), minlength=10) for t in (twice, once)])
        table = np.column_stack([table[:, :6], table[:, 6:].sum(1)])
        assert stats.chi2_contingency(table).pvalue > 1e-3

    def test_given_its_depth_a_thinned_cell_is_a_uniform_subset(self):
        """Multivariate hypergeometric, whatever kappa was: why a denoiser is told the depth and not kappa."""
        x = torch.tensor([[5.0, 3.0, 2.0]])
        exact = stats.multivariate_hypergeom([5, 3, 2], 4)
        for kappa in (0.25, 0.5):
            kept = PROCESS.corrupt(x.expand(60_000, -1), torch.full((60_000,), kappa), generator=rng())
            kept = kept[kept.sum(1) == 4]
            states, seen = np.unique(kept.numpy(), axis=0, return_counts=True)
            expected = exact.pmf(states.astype(int)) * len(kept)
            assert expected.sum() == pytest.approx(len(kept))  # every possible state was seen
            assert stats.chisquare(seen, expected).pvalue > 1e-3

    @pytest.mark.parametrize("uniform", [0.0, 1.0])
    def test_keep_fractions(self, uniform):
        """A share is thinned to nothing; the rest is uniform, or log-uniform down to one molecule."""
        depth = torch.full((50_000,), 400.0)
        kappa = Thinning(empty=0.2, uniform=uniform).draw_level(depth, generator=rng())
        assert float((kappa == 0).float().mean()) == pytest.approx(0.2, abs=0.01)
        kappa = kappa[kappa > 0].numpy()
        exact = stats.uniform() if uniform else stats.loguniform(1 / 400, 1)
        assert stats.kstest(kappa, exact.cdf).pvalue > 1e-3

    def test_noise_reports_the_depth_left(self):
        x = to_csr(counts())
        x_noisy, level = PROCESS.noise(x, generator=rng())
        assert torch.equal(level, x_noisy.to_dense().sum(1))
        assert torch.equal(x_noisy.col_indices(), x.col_indices())

    def test_bad_setting(self):
        with pytest.raises(InputError, match=r"empty=1\.5"):
            Thinning(empty=1.5)


class TestLevels:
    """The path of depths."""

    @settings(max_examples=60, deadline=None)
    @given(
        depths=st.lists(st.integers(1, 200_000), min_size=1, max_size=5),
        n=st.integers(1, 40),
        start=st.integers(0, 3000),
    )
    def test_rises_in_integers_between_the_ends(self, depths, n, start):
        depth = torch.tensor(depths, dtype=torch.float32)
        levels = PROCESS.levels(depth, n, start=torch.full_like(depth, start))
        assert levels.shape == (n + 1, len(depths))
        assert torch.equal(levels[0], torch.full_like(depth, start))
        assert torch.equal(levels[-1], depth.clamp_min(start))  # a cell cannot lose molecules on the way up
        assert (levels.diff(dim=0) >= 0).all()
        assert torch.equal(levels, levels.round())

    def test_is_geometric(self):
        levels = PROCESS.levels(torch.tensor([1e6]), 10, start=torch.tensor([100.0]))[:, 0]
        np.testing.assert_allclose(levels[1:] / levels[:-1], 10**0.4, rtol=5e-3)

    def test_starts_with_no_molecules(self):
        levels = PROCESS.levels(torch.tensor([1500.0, 1.0]), 20)
        assert levels[0].tolist() == [0, 0]
        assert levels[-1].tolist() == [1500, 1]

    def test_needs_a_step(self):
        with pytest.raises(InputError, match="n_steps=0"):
            PROCESS.levels(torch.tensor([10.0]), 0)


class TestDraw:
    """Molecules from compositions."""

    def test_exact_numbers_of_the_right_genes(self):
        generator = rng()
        p = torch.rand(5, 8, generator=generator)
        p[:, [0, 3, 7]] = 0  # nothing of these, also at both edges
        p /= p.sum(1, keepdim=True)
        n = torch.tensor([0.0, 1.0, 10.0, 1000.0, 100_000.0])
        x = draw_molecules(p.log(), n, generator=generator)
        assert torch.equal(x.sum(1), n)
        assert not x[:, [0, 3, 7]].any()
        keep = [1, 2, 4, 5, 6]
        for row in (3, 4):
            q = p[row, keep].double()
            assert stats.chisquare(x[row, keep].double(), q / q.sum() * n[row]).pvalue > 1e-3

    def test_spread_is_multinomial(self):
        p = torch.tensor([0.7, 0.2, 0.1])
        x = draw_molecules(p.log().expand(20_000, -1), torch.full((20_000,), 30.0), generator=rng()).double()
        np.testing.assert_allclose(x.mean(0), 30 * p, rtol=0.02)
        exact = 30 * (torch.diag(p) - torch.outer(p, p))
        np.testing.assert_allclose(np.cov(x.T.numpy()), exact, atol=0.15)

    def test_negative_numbers_add_nothing(self):
        assert not draw_molecules(torch.zeros(2, 3), torch.tensor([-4.0, 0.0]), generator=rng()).any()

    def test_step_adds_the_difference(self):
        x = counts(6, 4)
        level = depth_of(x)
        after = PROCESS.step(x, level, next_level=level + 7, prediction=torch.zeros(6, 4), generator=rng())
        assert (after >= x).all()
        assert torch.equal(depth_of(after), level + 7)


class TestLoss:
    """Against independent computations."""

    def test_is_the_multinomial_likelihood_per_removed_molecule(self):
        x = counts(30, 9)
        x[0] = 0
        x[0, 2] = 4  # kept whole below: nothing removed, nothing to pay
        x = to_csr(x)
        kappa = torch.rand(30, generator=rng(5))
        kappa[0] = 1
        x_noisy = PROCESS.corrupt(x, kappa, generator=rng(6))
        log_rho = torch.randn(30, 9, generator=rng(7)).log_softmax(1)
        loss = PROCESS.loss(log_rho, x, x_noisy=x_noisy, level=depth_of(x_noisy))
        removed = (x.to_dense() - x_noisy.to_dense()).numpy()
        for i in range(30):
            if removed[i].sum() == 0:
                assert loss[i] == 0
                continue
            p = np.exp(log_rho[i].double().numpy())
            exact = stats.multinomial.logpmf(removed[i], removed[i].sum(), p / p.sum())
            constant = math.lgamma(removed[i].sum() + 1) - sum(math.lgamma(r + 1) for r in removed[i])
            assert float(loss[i]) == pytest.approx((constant - exact) / removed[i].sum(), rel=1e-4)

    def test_gradient_is_that_of_autograd(self):
        """The likelihood has a hand-written gradient."""
        x = to_csr(counts(8, 5))
        x_noisy = PROCESS.corrupt(x, torch.full((8,), 0.4), generator=rng())
        logits = torch.randn(8, 5, generator=rng(1), requires_grad=True)
        weight = torch.rand(8, generator=rng(2))
        (PROCESS.loss(logits, x, x_noisy=x_noisy, level=depth_of(x_noisy)) * weight).sum().backward()
        mine, logits.grad = logits.grad, None
        removed = x.to_dense() - x_noisy.to_dense()
        loss = -(removed * logits.log_softmax(1)).sum(1) / removed.sum(1).clamp_min(1)
        (loss * weight).sum().backward()
        torch.testing.assert_close(mine, logits.grad)

    def test_precondition_of_sparse_and_dense(self):
        x = counts(20, 9)
        level = depth_of(x)
        dense, scale = PROCESS.precondition(x, level)
        thin, same_scale = PROCESS.precondition(to_csr(x), level)
        torch.testing.assert_close(thin.to_dense(), dense)
        torch.testing.assert_close(scale, same_scale)
        np.testing.assert_allclose(dense, np.log1p(1000 * x / level[:, None]), rtol=1e-5)
        assert torch.equal(depth_of(to_csr(x)), level)

    def test_a_cell_without_molecules_can_be_seen(self):
        seen, scale = PROCESS.precondition(torch.zeros(2, 5), torch.zeros(2))
        assert not seen.any()
        assert not scale.any()

    def test_head_moves_the_anchor(self):
        anchor = torch.randn(4, 6, generator=rng())
        out = PROCESS.head(torch.zeros(4, 6), torch.zeros(4, 6), torch.zeros(4), anchor)
        torch.testing.assert_close(out.softmax(1), anchor.softmax(1))
        raw = torch.randn(4, 6, generator=rng(1))
        out = PROCESS.head(raw, torch.zeros(4, 6), torch.zeros(4), anchor)
        torch.testing.assert_close(out - out[:, :1], (raw + anchor) - (raw + anchor)[:, :1])


class TwoCompositions:
    """Cells of two kinds, compositions a and b; itself the ideal denoiser.

    Given the molecules seen, the posterior odds of kind a are the prior odds times prod_g (a_g / b_g)^n_g, and the
    molecules to come have the composition mixed by them.
    """

    share = 0.3

    def __init__(self, n_genes: int = 6) -> None:
        p = torch.rand(2, n_genes, generator=rng(3), dtype=torch.float64) + 0.1
        p[1] = p[0] * torch.exp(0.9 * torch.randn(n_genes, generator=rng(4), dtype=torch.float64))
        self.p = p / p.sum(1, keepdim=True)
        self.prior = torch.tensor([self.share, 1 - self.share], dtype=torch.float64)

    def posterior(self, x: Tensor) -> Tensor:
        x = x.to_dense() if x.layout != torch.strided else x
        return (self.prior.log() + x.double() @ self.p.log().T).softmax(1)

    def __call__(self, x: Tensor, level: Tensor, cond: object = None) -> Tensor:
        return (self.posterior(x) @ self.p).log().float()

    def cells(self, n: int, depth: int, generator: torch.Generator) -> Tensor:
        kind = torch.multinomial(self.prior, n, replacement=True, generator=generator)
        return draw_molecules(self.p[kind].log().float(), torch.full((n,), float(depth)), generator=generator)

    def moments(self, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Exact mean and variance of each gene's counts."""
        mean = self.prior @ self.p
        second = self.prior @ (depth * self.p * (1 - self.p) + (depth * self.p) ** 2)
        return (depth * mean).numpy(), (second - (depth * mean) ** 2).numpy()


class TestIdealDenoiser:
    """With the exact posterior in place of a network, only the sampler and the loss are left to be wrong."""

    N, DEPTH = 6000, 200

    def sample(self, truth: TwoCompositions, n_steps: int) -> Tensor:
        levels = PROCESS.levels(torch.full((self.N,), float(self.DEPTH)), n_steps)
        x = torch.zeros(self.N, truth.p.shape[1])
        return ancestral(truth, x, levels, process=PROCESS, generator=rng(8))

    def errors(self, truth: TwoCompositions, n_steps: int) -> tuple[float, float]:
        """Worst deviations of means and variances, in standard errors; variance errors relative."""
        x = self.sample(truth, n_steps).double().numpy()
        mean, variance = truth.moments(self.DEPTH)
        mean_error = np.abs((x.mean(0) - mean) / np.sqrt(variance / self.N)).max()
        return float(mean_error), float(np.abs(x.var(0) / variance - 1).max())

    def test_reproduces_the_mixture(self):
        truth = TwoCompositions()
        x = self.sample(truth, 60)
        kind = truth.posterior(x)[:, 0]
        assert float(((kind < 0.02) | (kind > 0.98)).double().mean()) > 0.95  # cells decide for one kind
        assert float(kind.mean()) == pytest.approx(truth.share, abs=4 * math.sqrt(0.21 / self.N))
        mean_error, variance_error = self.errors(truth, 60)
        assert mean_error < 4
        # molecules added together are drawn from one composition: each step loses a little of the spread
        assert variance_error < 0.1

    def test_one_molecule_a_step_is_exact_and_more_steps_are_better(self):
        truth = TwoCompositions()
        coarse, medium, fine = (self.errors(truth, n)[1] for n in (2, 8, 60))
        assert coarse > 2 * medium > 2 * fine
        # every step adds one molecule: no discretisation is left, only the chance of 6,000 cells
        levels = torch.arange(self.DEPTH + 1.0)[:, None].expand(-1, self.N)
        x = ancestral(truth, torch.zeros(self.N, 6), levels, process=PROCESS, generator=rng(9)).double().numpy()
        mean, variance = truth.moments(self.DEPTH)
        assert np.abs((x.mean(0) - mean) / np.sqrt(variance / self.N)).max() < 4
        np.testing.assert_allclose(x.var(0), variance, rtol=0.06)

    def test_continues_cells_that_have_begun(self):
        """From 40 molecules of a known kind on, nearly all cells end as that kind."""
        truth = TwoCompositions()
        start = draw_molecules(truth.p[:1].log().float().expand(2000, -1), torch.full((2000,), 40.0), generator=rng())
        levels = PROCESS.levels(torch.full((2000,), 200.0), 30, start=depth_of(start))
        x = ancestral(truth, start, levels, process=PROCESS, generator=rng(1))
        assert (x >= start).all()
        before, after = truth.posterior(start)[:, 0], truth.posterior(x)[:, 0]
        # the posterior is a martingale along an ideal path
        assert float(after.mean()) == pytest.approx(float(before.mean()), abs=0.03)

    def test_no_perturbed_denoiser_has_a_lower_loss(self):
        truth = TwoCompositions()
        x = to_csr(truth.cells(4000, 60, rng(10)))
        x_noisy, level = PROCESS.noise(x, generator=rng(11))
        ideal = truth(x_noisy, level)

        def loss(prediction: Tensor) -> Tensor:
            return PROCESS.loss(prediction, x, x_noisy=x_noisy, level=level)

        others = {
            "the mean composition": (truth.prior @ truth.p).log().float().expand_as(ideal),
            "too sure": (1.15 * ideal).log_softmax(1),
            "one gene off": (ideal + torch.tensor([0.25, 0, 0, 0, 0, 0])).log_softmax(1),
            "the wrong prior": ((truth.posterior(x_noisy) * torch.tensor([2.0, 1.0])).double() @ truth.p)
            .log()
            .float()
            .log_softmax(1),
        }
        for name, prediction in others.items():
            worse = loss(prediction) - loss(ideal)
            assert float(worse.mean() / (worse.std() / math.sqrt(len(worse)))) > 3, name
