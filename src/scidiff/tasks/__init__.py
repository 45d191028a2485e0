"""One module per thing a model can be asked: from cells to cells, as AnnData. The sampling itself is elsewhere."""
