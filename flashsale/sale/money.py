"""Money: an integer in minor units with its ISO 4217 code, and the way between that and what people write.

Never a float, never a rounding: text that doesn't fit its currency exactly is refused.
"""

import re

# An order is ≤ 20 lines of ≤ 10,000 units, so a total stays below 2 * 10**17 and fits a signed 64-bit integer, which is
# what PostgreSQL's int8 and MessagePack hold. One price of 10**12 VND is 40 million US dollars.
AMOUNT_MAX_MINOR = 10**12

_CODES_BY_EXPONENT = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF",
    2: (
        "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY"
        " COP CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF"
        " IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR"
        " MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG"
        " SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VES WST"
        " XCD YER ZAR ZMW ZWG"
    ),
    3: "BHD IQD JOD KWD LYD OMR TND",
}

# ISO 4217's minor-unit column: how many decimals a currency has.
EXPONENTS: dict[str, int] = {code: exponent for exponent, codes in _CODES_BY_EXPONENT.items() for code in codes.split()}

_AMOUNT = re.compile(r"(0|[1-9][0-9]{0,15})(?:\.([0-9]{1,4}))?")


def parse_amount(text: str, currency: str) -> int:
    """A decimal in the currency's major unit as minor units: ("899.00", "SGD") -> 89900, ("18990", "THB") -> 1899000.

    Takes plain ASCII digits with at most one point: no sign, exponent, grouping or space. Raises ValueError, whose text
    says what is wrong, for anything else, for more decimals than the currency has, for an amount above
    AMOUNT_MAX_MINOR, and for a currency that ISO 4217 doesn't know.
    """
    exponent = EXPONENTS.get(currency)
    if exponent is None:
        raise ValueError(f"{currency[:8]!r} is not an ISO 4217 currency")
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:32]!r} is not a decimal amount such as {_example(exponent)!r}")
    whole, decimals = match[1], match[2] or ""
    if len(decimals) > exponent:
        raise ValueError(f"{text!r} has {len(decimals)} decimals; {currency} has {exponent or 'none'}")
    amount_minor = int(whole + decimals.ljust(exponent, "0"))
    if amount_minor > AMOUNT_MAX_MINOR:
        raise ValueError(f"{text!r} is above {format_amount(AMOUNT_MAX_MINOR, currency)} {currency}")
    return amount_minor


def format_amount(amount_minor: int, currency: str) -> str:
    """Minor units as a decimal in the major unit, with all of the currency's decimals: (89900, "SGD") -> "899.00".

    Negative amounts (a refund, a difference) keep their sign. Raises KeyError for an unknown currency.
    """
    exponent = EXPONENTS[currency]
    sign = "-" if amount_minor < 0 else ""
    digits = str(abs(amount_minor))
    if exponent == 0:
        return sign + digits
    digits = digits.rjust(exponent + 1, "0")
    return f"{sign}{digits[:-exponent]}.{digits[-exponent:]}"


def _example(exponent: int) -> str:
    return "899" if exponent == 0 else "899." + "0" * exponent
