"""A parcel's waybill as a PDF of 100 x 150 mm, the usual label: who gets it, what lies in it, its number as Code 128.

Chinese, Japanese and Korean are set in the fonts that PDF readers bring (CID fonts), so no font is embedded. What
those and Helvetica can't write (Thai, Vietnamese accents) is written in Latin letters, which a courier anywhere can
read; an empty box can be read by nobody.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import groupby

from anyascii import anyascii
from reportlab.graphics.barcode.code128 import Code128
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen.canvas import Canvas

WIDTH, HEIGHT, MARGIN = 100 * mm, 150 * mm, 6 * mm
LATIN, BOLD = "Helvetica", "Helvetica-Bold"
CHINESE, TRADITIONAL, JAPANESE, KOREAN = "STSong-Light", "MSung-Light", "HeiseiMin-W3", "HYSMyeongJo-Medium"
TRADITIONAL_IN = frozenset({"HK", "MO", "TW"})
LEADING = 1.3  # of a line's size, from one to the next
SMALLEST = 5.5  # points: a long line is set smaller, down to this, and then cut

_KANA = re.compile("[\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f]")
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")
_HAN = re.compile("[\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff60]")

for _font in (CHINESE, TRADITIONAL, JAPANESE, KOREAN):
    pdfmetrics.registerFont(UnicodeCIDFont(_font))


@dataclass(frozen=True, slots=True)
class Waybill:
    """What is written. `to` and `contents` are lines of text, `facts` pairs of a name and a value."""

    tracking: str
    carrier: str
    country: str
    to: Sequence[str]
    facts: Sequence[tuple[str, str]] = ()
    contents: Sequence[str] = field(default=())


def drawn(waybill: Waybill) -> bytes:
    """The PDF. The same waybill is the same bytes."""
    page = BytesIO()
    canvas = Canvas(page, pagesize=(WIDTH, HEIGHT), invariant=1, pageCompression=1)
    canvas.setTitle(f"Waybill {waybill.tracking}")
    canvas.setAuthor("flashsale")
    top = HEIGHT - MARGIN
    top = _text(canvas, waybill.carrier, top, 12, waybill.country, BOLD)
    canvas.setFont(BOLD, 34)
    canvas.drawRightString(WIDTH - MARGIN, HEIGHT - MARGIN - 26, waybill.country)
    top = _bars(canvas, waybill.tracking, top - 16)
    top = _rule(canvas, top - 4)
    for line in waybill.to:
        top = _text(canvas, line, top, 11, waybill.country)
    top = _rule(canvas, top - 4)
    for name, value in waybill.facts:
        top = _text(canvas, f"{name}: {value}", top, 8, waybill.country)
    top = _rule(canvas, top - 4)
    room = int((top - MARGIN) / (8 * LEADING))  # lines; what finds none is counted in the last
    shown = len(waybill.contents) if len(waybill.contents) <= room else max(room - 1, 0)
    for line in waybill.contents[:shown]:
        top = _text(canvas, line, top, 8, waybill.country)
    if shown < len(waybill.contents):
        _text(canvas, f"and {len(waybill.contents) - shown} more", top, 8, waybill.country)
    canvas.showPage()
    canvas.save()
    return page.getvalue()


def _bars(canvas: Canvas, tracking: str, top: float) -> float:
    """The tracking number as bars and as text, across the label."""
    bars = Code128(tracking, barHeight=20 * mm, barWidth=0.33 * mm, quiet=0)
    bars.drawOn(canvas, (WIDTH - bars.width) / 2, top - 20 * mm)
    top -= 20 * mm + 14
    canvas.setFont(BOLD, 12)
    canvas.drawCentredString(WIDTH / 2, top, tracking)
    return top


def _rule(canvas: Canvas, top: float) -> float:
    canvas.setLineWidth(0.6)
    canvas.line(MARGIN, top, WIDTH - MARGIN, top)
    return top


def _text(canvas: Canvas, text: str, top: float, size: float, country: str, latin: str = LATIN) -> float:
    """One line below `top`, set smaller if it is long; answers where it ends."""
    top -= size * LEADING
    pieces = list(runs(text, country, latin))
    width = sum(pdfmetrics.stringWidth(run, font, size) for font, run in pieces)
    size = max(SMALLEST, min(size, size * (WIDTH - 2 * MARGIN) / width if width else size))
    place = MARGIN
    for font, run in pieces:
        for character in run:
            end = place + pdfmetrics.stringWidth(character, font, size)
            if end > WIDTH - MARGIN + 0.01:  # the sum of widths is not exact
                return top
            canvas.setFont(font, size)
            canvas.drawString(place, top, character)
            place = end
    return top


def runs(text: str, country: str = "", latin: str = LATIN) -> Iterator[tuple[str, str]]:
    """The text as pieces of one font each, every character one that its font can write."""
    chinese = TRADITIONAL if country in TRADITIONAL_IN else CHINESE
    japanese = _KANA.search(text) is not None  # one text is of one language: its Han characters are too

    def font_of(character: str) -> str:
        if _KANA.match(character):
            return JAPANESE
        if _HANGUL.match(character):
            return KOREAN
        if _HAN.match(character):
            return JAPANESE if japanese else chinese
        return latin

    legible = "".join(each if font_of(each) != latin else _latin(each) for each in text if each.isprintable())
    for font, run in groupby(legible, font_of):
        yield font, "".join(run)


def _latin(character: str) -> str:
    try:
        character.encode("cp1252")  # what Helvetica writes
    except UnicodeEncodeError:
        return anyascii(character)
    return character
