"""scGen (Lotfollahi et al. 2019) of pertpy: a variational autoencoder, the effect a vector between latent means.

    python benchmarks/peers/scgen.py EXPORT scgen.h5ad [--epochs 100]

Settings of pertpy's tutorial: 2 layers of 800, 100 latent, batches of 32, early stopping after 25 epochs; log1p(CP10k)
in and out. The vector is that of all contexts which have controls and treated cells, each with the same weight: a
context of which only controls are known would bend it. Perturbations that training cells do not have are left out.
scGen has one vector for one perturbation: combinations that were not measured are refused.
"""

from __future__ import annotations

from exchange import Unit, in_environment, logged, run

# statsmodels 0.15 lacks what pertpy 1.0 imports; filelock is not among its requirements, but imported
in_environment("scgen", "pertpy==1.0.3", "scvi-tools[jax]", "statsmodels<0.15", "filelock")


def predict(unit: Unit, args) -> list:
    """Return the predicted cells of one unit."""
    for name in (condition["perturbation"] for condition in unit.asked):
        if len(unit.parts(name)) > 1:
            raise SystemExit(f"scGen predicts no combinations of perturbations, and {name} is asked for: use cpa.py")
    import pertpy
    import scvi

    scvi.settings.seed = 0
    column, control = unit.schema["perturbation"], unit.schema["control"]
    train, source = logged(unit.train), logged(unit.source)
    for adata in (train, source):
        adata.obs["_context"] = unit.contexts(adata).astype(str)
        adata.obs[column] = adata.obs[column].astype(str)
    pertpy.tl.Scgen.setup_anndata(train, batch_key=column, labels_key="_context")
    model = pertpy.tl.Scgen(train)
    model.train(max_epochs=args.epochs, batch_size=32, early_stopping=True, early_stopping_patience=25)
    unit.trained()
    made = []
    for condition in unit.known():
        arms = train.obs[train.obs[column].isin([control, condition["perturbation"]])]
        arms = arms.groupby("_context")[column].nunique()
        cells, _ = model.predict(
            ctrl_key=control,
            stim_key=condition["perturbation"],
            adata_to_predict=source,
            restrict_arithmetic_to={"_context": list(arms.index[arms == 2])},
        )
        made.append(unit.cells(unit.source, cells.X, condition))
    return made


if __name__ == "__main__":
    run(predict, package="pertpy", epochs=100)
