"""`uvmsim validate` with ``engine = "llama.cpp"``: predicted, then llama.cpp itself runs every cell."""
