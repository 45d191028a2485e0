"""The catalog: folder, then cache, then network; originals are renamed; without network one clear line."""

from __future__ import annotations

import gc
import http.server
import threading
import warnings
from functools import partial
from types import MappingProxyType

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from scidiff.data import catalog
from scidiff.data.catalog import Dataset, available, load, schema_of
from scidiff.data.schema import Schema
from scidiff.errors import DataWarning, InputError

SCHEMA = Schema(perturbation="condition", control="control", context="cell_type")


def original(n: int = 6) -> ad.AnnData:
    obs = pd.DataFrame(
        {"label": pd.Categorical(["ctrl", "stim"] * (n // 2)), "cell_type": ["B cells", "NK cells"] * (n // 2)},
        index=[f"cell{i}" for i in range(n)],
    )
    return ad.AnnData(np.ones((n, 3), np.float32), obs=obs)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An empty folder, an empty cache, and a server of nothing, used by the catalog."""
    made = {}
    for name in ("folder", "cache", "server"):
        made[name] = tmp_path / name
        made[name].mkdir()
    monkeypatch.setenv("SCIDIFF_DATA", str(made["folder"]))
    monkeypatch.setattr(catalog, "_cache", lambda: made["cache"])
    return made


@pytest.fixture
def served(places, monkeypatch):
    """The entry 'toy', whose original is served on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(places["server"])))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    entry = Dataset(
        title="toy",
        citation="",
        source="",
        schema=SCHEMA,
        original="toy.h5ad",
        url=f"http://127.0.0.1:{server.server_port}/toy.h5ad",
        excerpt="small.h5ad",
        rename=catalog.CATALOG["kang18"].rename,
        values=catalog.CATALOG["kang18"].values,
    )
    monkeypatch.setattr(catalog, "CATALOG", MappingProxyType({"toy": entry}))
    yield places
    server.shutdown()
    server.server_close()
    with warnings.catch_warnings():  # the download library leaves a refused connection to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_original_is_downloaded_once_and_renamed(served):
    original().write_h5ad(served["server"] / "toy.h5ad")
    assert available().loc["toy", "where"] == "network"
    adata = load("toy", progress=False)
    SCHEMA.validate(adata)
    assert adata.obs["condition"].tolist() == ["control", "IFN-beta"] * 3
    assert adata.obs["cell_type"].tolist() == ["B", "NK"] * 3
    (served["server"] / "toy.h5ad").unlink()
    assert available().loc["toy", "where"] == "cache"
    assert load("toy", progress=False).shape == adata.shape


def test_folder_comes_before_cache_and_excerpt_before_original(served):
    for place, file, n in (("cache", "toy.h5ad", 2), ("folder", "toy.h5ad", 4), ("folder", "small.h5ad", 8)):
        original(n).write_h5ad(served[place] / file)
        assert load("toy").n_obs == n


def test_nothing_there_is_one_clear_line(served):
    with pytest.raises(
        InputError, match=r"cannot download 'toy' .*HTTPError.* put small.h5ad into .* SCIDIFF_DATA"
    ) as e:
        load("toy", progress=False)
    assert "\n" not in str(e.value)
    assert not list(served["cache"].glob("*.h5ad"))  # nothing half-written


def test_damaged_file(served):
    (served["folder"] / "toy.h5ad").write_bytes(b"not hdf5")
    with pytest.raises(InputError, match="cannot be read"):
        load("toy")


def test_cells_without_a_perturbation_are_left_out_with_a_warning(served):
    adata = original()
    adata.obs.loc["cell1", "label"] = None
    adata.write_h5ad(served["folder"] / "toy.h5ad")
    with pytest.warns(DataWarning, match="1 cells without a perturbation"):
        assert load("toy").n_obs == 5


def test_an_original_with_other_columns_warns(served):
    adata = original()
    del adata.obs["cell_type"]
    adata.write_h5ad(served["folder"] / "toy.h5ad")
    with pytest.warns(DataWarning, match=r"no obs column 'cell_type', which schema_of\('toy'\) names"):
        load("toy")


def test_rna_of_a_multimodal_original(places):
    adata = original()
    adata.obs = adata.obs.rename(columns={"label": "gene_target"}).assign(perturbation="x", replicate="rep1")
    adata.obs["gene_target"] = ["NT", "STAT1"] * 3
    with h5py.File(places["cache"] / "papalexi_2021.h5mu", "w") as file:
        ad.io.write_elem(file, "mod/rna", adata)
    loaded = load("papalexi21")
    schema_of("papalexi21").validate(loaded)
    assert loaded.obs["perturbation"].tolist() == ["control", "STAT1"] * 3
    assert set(loaded.obs["replicate"]) == {"rep_1"}


def test_excerpt_that_differs_warns(places):
    adata = original()
    adata.obs = adata.obs.rename(columns={"label": "condition"})
    adata.write_h5ad(places["folder"] / "kang2018_pbmc_ifnb_2k.h5ad")
    with pytest.warns(DataWarning, match="differs from the excerpt"):
        load("kang18")


def test_names(places):
    with pytest.raises(InputError, match=r"no data set 'kang'.*nearest: 'kang18'"):
        load("kang")
    with pytest.raises(InputError, match="no single file to download"):
        load("lincs_a375")
    table = available()
    assert list(table.index) == [
        "kang18",
        "norman19",
        "papalexi21",
        "zhao21",
        "weinreb20",
        "pancreas",
        "lincs_a375",
        "sciplex3",
    ]
    assert not table.isna().any().any()
