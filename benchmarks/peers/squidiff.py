"""Squidiff (He et al. 2025): diffusion from noise to a cell, told a latent code; the effect is a vector between codes.

    python benchmarks/peers/squidiff.py EXPORT squidiff.h5ad [--steps 100000] [--genes 500] [--width 2048]

It takes a GPU. An encoder makes 60 numbers of a cell, a perceptron of 3 blocks removes noise knowing them, and both
learn at once. The code of every control cell is moved by the mean difference of codes, treated less control, over the
contexts which have both, each with the same weight; for a combination by the sum over its parts, as the authors do, and
those with a part that nobody measured alone are left out. The authors' sampler takes the mean code and jitters it by
.7; the cells' own codes differ as cells do. log1p(CP10k) in and out, of the genes that vary most (published: 100 to
500); all others keep what the control cell has. Settings are the published ones: 100,000 batches of 128 at 1e-4, 1,000
steps of DDIM.

Some CPU-minutes a unit are too few. One core makes 1.5 batches of 64 a second at full width on 2,000 genes. Cut to 200
genes and 512 units (--genes 200 --width 512 --steps 6000 --batch 64 --ddim 50, at 1e-3), 4 CPU-minutes leave .46 of the
noise's variance, and B cells of Kang et al. come out farther from stimulated ones than unstimulated ones are (energy
distance 15 against 7). On 20 genes of a planted effect the same script finds that effect in half a CPU-minute.
Networks narrower than the genes are many cannot tell noise, and the package samples as if noise were told, whatever was
learned: that is as far as it can be cut.
"""

from __future__ import annotations

import tempfile

from exchange import Unit, in_environment, logged, run

# the package names no requirements; its scripts for training and sampling are for machines with a GPU
in_environment("squidiff", "Squidiff==1.0.8", "torch", "scanpy", "rdkit", "matplotlib")


def predict(unit: Unit, args) -> list:
    """Return the predicted cells of one unit."""
    import numpy as np
    import pandas as pd
    import scanpy
    import torch
    from Squidiff.dist_util import dev
    from Squidiff.script_util import create_gaussian_diffusion

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - its time steps are drawn from there
    column, control = unit.schema["perturbation"], unit.schema["control"]
    train, whole = logged(unit.train), logged(unit.source)
    if args.genes < train.n_vars:
        scanpy.pp.highly_variable_genes(train, n_top_genes=args.genes)
    else:
        train.var["highly_variable"] = True
    chosen = train.var["highly_variable"].to_numpy()
    train, source = train[:, chosen].copy(), whole[:, chosen].copy()
    model = trained(train, args).eval()
    unit.trained()
    with torch.no_grad():
        codes, start = (model.encoder(torch.tensor(adata.X).to(dev())).cpu() for adata in (train, source))
    codes = pd.DataFrame(codes.numpy()).groupby([unit.contexts(train).to_numpy(), train.obs[column].to_numpy(str)])
    arms = codes.mean().swaplevel()
    diffusion = create_gaussian_diffusion(steps=1000, timestep_respacing=f"ddim{args.ddim}", use_encoder=True)
    made = []
    for condition in unit.known():
        parts = [part for part in unit.parts(condition["perturbation"]) if part != control]
        if not set(parts) <= set(arms.index.get_level_values(0)):
            continue
        moves = [(arms.loc[part] - arms.loc[control]).mean().to_numpy(np.float32) for part in parts]
        z = (start + torch.tensor(sum(moves))).to(dev())
        x = whole.X.copy()
        x[:, chosen] = diffusion.ddim_sample_loop(model, source.shape, model_kwargs={"z_mod": z}).cpu().numpy()
        made.append(unit.cells(whole, x, condition))
    return made


def trained(adata, args):
    """Return the network, trained by the package's loop on log expression."""
    import torch.distributed
    from Squidiff import logger
    from Squidiff.dist_util import dev
    from Squidiff.MLPModel import MLPModel
    from Squidiff.script_util import create_gaussian_diffusion
    from Squidiff.scrna_datasets import AnnDataDataset
    from Squidiff.train_util import TrainLoop
    from torch.utils.data import DataLoader

    class Loop(TrainLoop):
        """Without checkpoints, and without running means of the weights, which nothing reads but those."""

        def save(self):
            pass

        def _update_ema(self):
            pass

        def log_step(self):
            self.loss_list[-1] = self.loss_list[-1].detach()  # or every step's graph stays, 10 GB of them

    if not torch.distributed.is_initialized():  # without a GPU the loop asks for the number of processes
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    logger.configure(tempfile.gettempdir(), format_strs=[])
    adata.obs["Group"] = 0  # a column it wants, of labels it does not use
    widths = dict.fromkeys(["hidden_sizes", "time_pos_dim", "time_embed_dim"], args.width)
    model = MLPModel(adata.n_vars, adata.n_vars, num_layers=3, use_encoder=True, **widths)
    loop = Loop(
        model=model.to(dev()),
        diffusion=create_gaussian_diffusion(steps=1000, use_encoder=True),
        data=DataLoader(AnnDataDataset(adata, False, 1), batch_size=args.batch, shuffle=True),
        batch_size=args.batch,
        microbatch=-1,
        lr=1e-4 if args.width == 2048 else 1e-3,
        ema_rate="0.9999",
        log_interval=args.steps,
        save_interval=args.steps,
        resume_checkpoint="",
        lr_anneal_steps=args.steps,
    )
    loop.run_loop()
    losses = torch.stack(loop.loss_list[-50:])
    print(f"mean squared error of the noise, last {len(losses)} steps: {losses.mean():.3f}", flush=True)
    return model


if __name__ == "__main__":
    run(predict, package="Squidiff", steps=100000, batch=128, genes=500, width=2048, ddim=1000)
