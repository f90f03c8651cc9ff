"""How several GPUs share a model (docs/several-gpus.md): names alone, so that asking is cheap."""

LAYERS, EXPERTS, POPULARITY, POOL = "layers", "experts", "experts:popularity", "pool"
SPLITS = (LAYERS, EXPERTS, POPULARITY, POOL)
