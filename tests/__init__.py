import tellme.golden  # noqa: F401 - before NumPy, so that the BLAS leaves the cores to golden
