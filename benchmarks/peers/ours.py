"""scIDiff as one of these tools: the same files in and out, and what it costs, counted in the same way.

    python benchmarks/peers/ours.py EXPORT ours.h5ad

In the environment that scidiff is installed in, with its own default settings. From few source cells several are drawn
each, as in `scidiff benchmark`.
"""

from __future__ import annotations

from exchange import Unit, run


def predict(unit: Unit, args) -> list:
    """Return the predicted cells of one unit."""
    from scidiff.benchmarking.predict import drawn_again, fit
    from scidiff.data.schema import Schema
    from scidiff.errors import InputError
    from scidiff.training import TrainConfig

    seed = int(unit.source.obs["held_out"].iloc[0].rsplit(", seed ", 1)[1])
    model = fit(unit.train, Schema.from_dict(unit.schema), TrainConfig(seed=seed), None, lambda *told: None)
    unit.trained()
    made = []
    for condition in unit.known():
        try:
            made.append(model.predict(drawn_again(unit.source), condition))
        except InputError as refusal:
            print(refusal, flush=True)
    return made


if __name__ == "__main__":
    run(predict, package="scidiff")
