"""What merchants bring: catalogues as CSV, read row by row. Pure."""
