"""flashsale: a flash-sale order-processing engine. The design is in README.md; start at `front/hotpath.py`."""
