"""How an encoder is read: extraction, dense features, intermediate layers, attention, PCA, spectra."""
