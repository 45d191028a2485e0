"""CPA (Lotfollahi et al. 2023): an adversarial autoencoder whose latent is a sum of cell, context and perturbations.

    python benchmarks/peers/cpa.py EXPORT cpa.h5ad [--epochs 500]

Settings of its tutorial on interferon in blood cells (negative binomial, 64 latent, adversary of weight 20), or, where
perturbations are combined, of that on Norman et al. (128 latent, weight 50, mixup). At most 500 epochs, batches of 512,
and early stopping after 10 looks at a tenth of the training cells. A prediction is what the decoder says of source
cells under the asked perturbations, one dose of each, dealt as molecules (Poisson) at the depth of the source cell: the
logarithm of a mean is no mean of logarithms, and with means in the place of cells the energy distance on interferon is
30 instead of 5. cpa-tools 0.8 needs Python 3.9 or 3.10.
"""

from __future__ import annotations

from exchange import Unit, in_environment, run

# its ray uses what pyarrow 21 removed; scvi-tools is what a resolver arrives at, which takes pip very long
in_environment("cpa", "cpa-tools==0.8.8", "scvi-tools==0.20.3", "pyarrow<16", "setuptools<81", python="python3.10")

MODEL = {
    "n_latent": 64,
    "recon_loss": "nb",
    "doser_type": "linear",
    "n_hidden_encoder": 128,
    "n_layers_encoder": 2,
    "n_hidden_decoder": 512,
    "n_layers_decoder": 2,
    "use_batch_norm_encoder": True,
    "use_layer_norm_encoder": False,
    "use_batch_norm_decoder": False,
    "use_layer_norm_decoder": True,
    "dropout_rate_encoder": 0.0,
    "dropout_rate_decoder": 0.1,
    "variational": False,
}
TRAINING = {
    "n_epochs_pretrain_ae": 30,
    "n_epochs_adv_warmup": 50,
    "n_epochs_mixup_warmup": 0,
    "mixup_alpha": 0.0,
    "n_hidden_adv": 64,
    "n_layers_adv": 3,
    "dropout_rate_adv": 0.3,
    "reg_adv": 20.0,
    "pen_adv": 5.0,
    "lr": 3e-4,
    "wd": 4e-7,
    "adv_lr": 3e-4,
    "adv_wd": 4e-7,
    "adv_loss": "cce",
    "doser_lr": 3e-4,
    "doser_wd": 4e-7,
    "do_clip_grad": True,
    "gradient_clip_value": 1.0,
    "step_size_lr": 10,
}

#: what the tutorial on combinations has otherwise
COMBINED_MODEL = {
    "n_latent": 128,
    "n_hidden_encoder": 512,
    "n_hidden_decoder": 256,
    "use_layer_norm_decoder": False,
    "dropout_rate_decoder": 0.2,
}
COMBINED_TRAINING = {
    "n_epochs_adv_warmup": 100,
    "n_epochs_mixup_warmup": 10,
    "mixup_alpha": 0.2,
    "adv_steps": 2,
    "n_hidden_adv": 128,
    "n_layers_adv": 2,
    "dropout_rate_adv": 0.2,
    "reg_adv": 50.0,
    "pen_adv": 1.0,
    "do_clip_grad": False,
    "gradient_clip_value": 5.0,
    "step_size_lr": 45,
}


def predict(unit: Unit, args) -> list:
    """Return the predicted cells of one unit."""
    import anndata
    import cpa
    import numpy as np

    column, control, asked = unit.schema["perturbation"], unit.schema["control"], unit.known()
    rng = np.random.default_rng(0)
    train = unit.train.copy()
    train.obs["_split"] = np.where(rng.random(train.n_obs) < 0.1, "valid", "train")
    queries = []
    for i, condition in enumerate(asked):  # their counts are those of control cells: nothing held out is in here
        query = unit.source.copy()
        query.obs[column] = condition["perturbation"]
        query.obs["_split"], query.obs["_query"] = "ood", str(i)
        query.obs_names = [f"query{i}-{name}" for name in query.obs_names]
        queries.append(query)
    both = anndata.concat([train, *queries], join="outer")
    both.obs["_context"] = unit.contexts(both).astype(str).to_numpy()
    parts = [unit.parts(name) for name in both.obs[column].astype(str)]
    both.obs[column] = ["+".join(some) for some in parts]
    both.obs["_dose"] = ["+".join("1.0" for _ in some) for some in parts]
    most = max(map(len, parts))
    cpa.CPA.pert_encoder = cpa.CPA.covars_encoder = None  # the class remembers those of the unit before
    cpa.CPA.setup_anndata(
        both,
        perturbation_key=column,
        control_group=control,
        dosage_key="_dose",
        categorical_covariate_keys=["_context"],
        is_count_data=True,
        max_comb_len=most,
    )
    splits = {"split_key": "_split", "train_split": "train", "valid_split": "valid", "test_split": "ood"}
    more, training = (COMBINED_MODEL, COMBINED_TRAINING) if most > 1 else ({}, {})
    model = cpa.CPA(adata=both, **splits, **(MODEL | more), seed=0)
    model.train(
        max_epochs=args.epochs,
        use_gpu=False,
        batch_size=512,
        plan_kwargs=TRAINING | training,
        early_stopping_patience=10,
        check_val_every_n_epoch=5,
        save_path=False,
    )
    unit.trained()
    model.predict(both, batch_size=1024)
    depth = np.asarray(unit.source.X.sum(axis=1)).ravel()
    made = []
    for i, condition in enumerate(asked):
        means = np.asarray(both.obsm["CPA_pred"])[(both.obs["_query"] == str(i)).to_numpy()]
        made += unit.dealt(depth[:, None] * means / np.maximum(means.sum(axis=1, keepdims=True), 1e-9), condition)
    return made


if __name__ == "__main__":
    run(predict, package="cpa-tools", epochs=500)
