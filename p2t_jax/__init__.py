"""Train neural networks by permuting their weights (Qiu & Suda, 2020)."""
