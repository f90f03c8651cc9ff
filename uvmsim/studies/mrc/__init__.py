"""Miss-ratio curves: what each pool size would miss."""
