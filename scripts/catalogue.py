#!/usr/bin/env python3
"""Writes a catalogue of many rows to try imports with: Shopify's columns, HS code and origin.

    scripts/catalogue.py FILE [--rows 100000] [--faulty 0]

Every product has four variants; every tenth row is a picture's. `--faulty N` puts a fault into each of N rows.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

HEADER = (
    "Handle", "Title", "Vendor", "Option1 Name", "Option1 Value", "Variant SKU", "Variant Grams",
    "Variant Inventory Qty", "Variant Price", "Variant Barcode", "Image Src", "HS Code", "Country of Origin",
)  # fmt: skip
VARIANTS = 4
FAULTS = (
    ("Variant Price", "1,234"),
    ("Variant Inventory Qty", "many"),
    ("HS Code", "84"),
    ("Country of Origin", "China"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--faulty", type=int, default=0)
    asked = parser.parse_args()
    every = asked.rows // asked.faulty if asked.faulty else 0
    faulty = 0
    with asked.file.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, HEADER)
        rows.writeheader()
        for number in range(asked.rows):
            product, variant = divmod(number, VARIANTS)
            row = {"Handle": f"lamp-{product:06d}", "Image Src": f"https://example.com/{number}.jpg"}
            if variant == 0:
                row |= {"Title": f"Desk lamp, model {product}", "Vendor": f"Brand {product % 97}"}
            picture = number % 10 == 9 and variant != 0
            if not picture:
                row |= {
                    "Option1 Name": "Colour" if variant == 0 else "", "Option1 Value": f"shade {variant}",
                    "Variant SKU": "" if number % 50 == 0 else f"LAMP-{number:07d}", "Variant Grams": 400 + variant,
                    "Variant Inventory Qty": number % 500, "Variant Price": f"{5 + number % 90}.{number % 100:02d}",
                    "Variant Barcode": f"{4_000_000_000_000 + number}", "HS Code": "9405.21", "Country of Origin": "CN",
                }  # fmt: skip
                if every and faulty < asked.faulty and number >= faulty * every:
                    column, text = FAULTS[faulty % len(FAULTS)]
                    row[column] = text
                    faulty += 1
            rows.writerow(row)


if __name__ == "__main__":
    main()
