"""CellFlow (Klein et al. 2025): flow matching from control to perturbed cells, in 50 principal components.

    python benchmarks/peers/cellflow.py EXPORT cellflow.h5ad [--iterations 300] [--width 256]

Perturbations are one-hot, combinations sets of them; a context is described by the mean of its control cells, so that
contexts without perturbed cells can be asked for. Its own networks are 2048 wide (4096 in the decoder), learn at 5e-5
from 20 batches at a time, and published runs take 100,000 iterations and more, on a GPU: what runs here by default,
on one core, is 8 times as narrow and learns at 1e-3 from every batch of 256. That is a look, not a verdict; --width
2048 brings its own networks back. Genes are the components turned back, log1p(CP10k).
"""

from __future__ import annotations

from exchange import Unit, in_environment, logged, run

# requests is imported, but not among its requirements
in_environment("cellflow", "cellflow-tools==0.0.9", "scikit-learn", "requests")


def predict(unit: Unit, args) -> list:
    """Return the predicted cells of one unit."""
    import cellflow
    import numpy as np
    import optax
    import pandas as pd
    from sklearn.decomposition import PCA

    column, nothing = unit.schema["perturbation"], "nothing"
    train, source = logged(unit.train), logged(unit.source)
    pca = PCA(50, random_state=0).fit(train.X)
    singles = sorted({p for name in train.obs[column].astype(str) for p in unit.parts(name)} - {unit.schema["control"]})
    asked = unit.known()
    most = max(len(unit.parts(name)) for name in train.obs[column].astype(str).unique())
    slots = [f"_part{i}" for i in range(max([most, *(len(unit.parts(one["perturbation"])) for one in asked)]))]

    def described(obs: pd.DataFrame, perturbations) -> pd.DataFrame:
        parts = [[part for part in unit.parts(name) if part != unit.schema["control"]] for name in perturbations]
        for i, slot in enumerate(slots):
            obs[slot] = pd.Categorical([some[i] if i < len(some) else nothing for some in parts], [*singles, nothing])
        return obs

    for adata in (train, source):
        adata.obsm["X_pca"] = pca.transform(adata.X).astype(np.float32)
        adata.obs["_control"] = unit.is_control(adata)
        adata.obs["_context"] = pd.Categorical(unit.contexts(adata).astype(str))
        adata.obs = described(adata.obs, adata.obs[column].astype(str))
    centres = pd.DataFrame(train.obsm["X_pca"][train.obs["_control"]])
    centres = centres.groupby(train.obs["_context"].astype(str).to_numpy()[train.obs["_control"]]).mean()
    hot = np.eye(len(singles), dtype=np.float32)
    embeddings = {name: hot[i] for i, name in enumerate(singles)} | {nothing: np.zeros(len(singles), np.float32)}
    contexts = {name: row.to_numpy(np.float32) for name, row in centres.iterrows()}
    for adata in (train, source):
        adata.uns["parts"], adata.uns["contexts"] = embeddings, contexts
    arms = train.obs.groupby("_context", observed=True)["_control"].transform("nunique").to_numpy()
    train = train[arms == 2].copy()  # it flows from controls to treated cells of the same context and takes no others
    model = cellflow.model.CellFlow(train, solver="otfm")
    model.prepare_data(
        sample_rep="X_pca",
        control_key="_control",
        perturbation_covariates={"parts": slots},
        perturbation_covariate_reps={"parts": "parts"},
        sample_covariates=["_context"],
        sample_covariate_reps={"_context": "contexts"},
        split_covariates=["_context"],
        max_combination_length=len(slots),
        null_value=0.0,
    )
    own = args.width == 2048
    widths = (args.width,) * 3
    model.prepare_model(
        time_encoder_dims=widths,
        hidden_dims=widths,
        decoder_dims=(2 * args.width,) * 3,
        optimizer=optax.MultiSteps(optax.adam(5e-5), 20) if own else optax.adam(1e-3),
    )
    model.train(num_iterations=args.iterations, batch_size=256)
    unit.trained()
    made = []
    for condition in asked:
        for context in source.obs["_context"].unique():
            here = source[(source.obs["_context"] == context).to_numpy()].copy()
            request = described(pd.DataFrame({"_context": [context], "_control": [False]}), [condition["perturbation"]])
            moved = model.predict(here, sample_rep="X_pca", covariate_data=request)
            x = pca.inverse_transform(np.asarray(next(iter(moved.values()))))
            made.append(unit.cells(here, x, condition))
    for cells in made:
        cells.obs = cells.obs.drop(columns=[*slots, "_control", "_context"])
    return made


if __name__ == "__main__":
    run(predict, package="cellflow-tools", iterations=300, width=256)
