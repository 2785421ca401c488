"""Waybills: every character in a font that can write it, the bars legible, the same bytes for the same parcel."""

from __future__ import annotations

import re
import zlib
from base64 import a85decode

import pypdfium2
import pytest
import zxingcpp
from hypothesis import given
from hypothesis import strategies as st

from flashsale.front import waybill
from flashsale.front.waybill import CHINESE, JAPANESE, KOREAN, LATIN, TRADITIONAL, Waybill, drawn, runs
from flashsale.ledger.fulfilment import tracking_of


@given(st.text(max_size=60), st.sampled_from(["SG", "HK", "TW", "JP", ""]))
def test_whatever_is_written_is_in_a_font_that_has_it(text: str, country: str) -> None:
    for font, run in runs(text, country):
        assert run.isprintable()
        if font == LATIN:
            run.encode("cp1252")
        else:
            assert font in (CHINESE, TRADITIONAL, JAPANESE, KOREAN)
            run.encode("utf-16-be")


@pytest.mark.parametrize(
    ("text", "country", "expected"),
    [
        ("王小明", "CN", [(CHINESE, "王小明")]),
        ("陳大文 Flat 3", "HK", [(TRADITIONAL, "陳大文"), (LATIN, " Flat 3")]),
        ("山田さくら", "JP", [(JAPANESE, "山田さくら")]),
        ("김철수", "KR", [(KOREAN, "김철수")]),
        ("Müller Straße", "DE", [(LATIN, "Müller Straße")]),
        ("Nguyễn Văn Đạt", "VN", [(LATIN, "Nguyen Van Dat")]),
        ("Москва", "RU", [(LATIN, "Moskva")]),
        ("a\nb\x1b[31m", "SG", [(LATIN, "ab[31m")]),
    ],
)
def test_a_script_has_its_font_and_what_has_none_is_latin(
    text: str, country: str, expected: list[tuple[str, str]]
) -> None:
    assert list(runs(text, country)) == expected


def test_thai_is_legible_to_every_courier() -> None:
    ((font, run),) = runs("สมชาย", "TH")
    assert (font, bool(re.fullmatch("[A-Za-z]+", run))) == (LATIN, True)


def test_the_page_holds_the_text_in_its_own_script() -> None:
    page = drawn(Waybill("FS0000000000018", "lane", "CN", ["王小明"]))
    streams = re.findall(rb"stream\r?\n(.*?)endstream", page, re.DOTALL)
    drawings = b"".join(zlib.decompress(a85decode(stream.strip(), adobe=False)) for stream in map(_inner, streams))
    for character in "王小明":
        escaped = "".join(chr(byte) if 33 <= byte < 127 else f"\\{byte:03o}" for byte in character.encode("utf-16-be"))
        assert escaped.encode() in drawings


def _inner(stream: bytes) -> bytes:
    return stream.strip().removesuffix(b"~>")


@given(st.integers(1, 10**12 - 1))
def test_a_tracking_number_notices_one_wrong_digit(number: int) -> None:
    tracking = tracking_of(number)
    assert re.fullmatch(r"FS\d{13}", tracking)
    assert int(tracking[2:-1]) == number
    assert _luhn(tracking[2:])
    for place in range(2, len(tracking)):
        wrong = f"{tracking[:place]}{(int(tracking[place]) + 1) % 10}{tracking[place + 1 :]}"
        assert not _luhn(wrong[2:])


def _luhn(digits: str) -> bool:
    doubled = {digit: 2 * digit if digit < 5 else 2 * digit - 9 for digit in range(10)}
    values = [int(digit) for digit in reversed(digits)]
    return (sum(values[::2]) + sum(doubled[value] for value in values[1::2])) % 10 == 0


@pytest.mark.parametrize("number", [1, 42, 999_999_999_999])
def test_the_bars_are_the_tracking_number_and_lie_on_the_page(number: int) -> None:
    tracking = tracking_of(number)
    pdf = drawn(
        Waybill(tracking, "lane", "SG", ["somebody " * 40] * 8, [("A", "b")] * 6, ["xxxx item " + "y" * 30] * 20)
    )
    assert pdf == drawn(
        Waybill(tracking, "lane", "SG", ["somebody " * 40] * 8, [("A", "b")] * 6, ["xxxx item " + "y" * 30] * 20)
    )
    (page,) = pypdfium2.PdfDocument(pdf)
    assert [round(side / waybill.mm) for side in page.get_size()] == [100, 150]
    found = zxingcpp.read_barcodes(page.render(scale=4).to_pil())
    assert [(str(bars.format), bars.text) for bars in found] == [("Code 128", tracking)]
    text = page.get_textpage()
    written = text.get_text_bounded()
    shown = written.count("xxxx item")
    assert shown > 3
    assert f"and {20 - shown} more" in written
    boxes = [text.get_charbox(place) for place in range(text.count_chars())]
    assert min(bottom for _, bottom, _, _ in boxes) > 0
    assert max(right for _, _, right, _ in boxes) <= page.get_width()
