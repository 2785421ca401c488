"""The markets that a sale can sell into: country, currency and the language that its shoppers read.

A market is named by its ISO 3166-1 alpha-2 country code and has one currency, which never changes during a sale.
"""

from typing import NamedTuple


class Market(NamedTuple):
    """`code` ISO 3166-1 alpha-2, `country` in English, `currency` ISO 4217, `locale` BCP 47 (language first)."""

    code: str
    country: str
    currency: str
    locale: str


MARKETS: dict[str, Market] = {
    market.code: market
    for market in (
        # South-East Asia
        Market("SG", "Singapore", "SGD", "en-SG"),
        Market("MY", "Malaysia", "MYR", "ms-MY"),
        Market("TH", "Thailand", "THB", "th-TH"),
        Market("PH", "Philippines", "PHP", "en-PH"),
        Market("VN", "Vietnam", "VND", "vi-VN"),
        Market("ID", "Indonesia", "IDR", "id-ID"),
        Market("KH", "Cambodia", "KHR", "km-KH"),
        Market("BN", "Brunei", "BND", "ms-BN"),
        # East Asia
        Market("CN", "China", "CNY", "zh-CN"),
        Market("HK", "Hong Kong", "HKD", "zh-HK"),
        Market("MO", "Macao", "MOP", "zh-MO"),
        Market("TW", "Taiwan", "TWD", "zh-TW"),
        Market("JP", "Japan", "JPY", "ja-JP"),
        Market("KR", "South Korea", "KRW", "ko-KR"),
        # South and Central Asia
        Market("IN", "India", "INR", "en-IN"),
        Market("PK", "Pakistan", "PKR", "en-PK"),
        Market("BD", "Bangladesh", "BDT", "bn-BD"),
        Market("LK", "Sri Lanka", "LKR", "si-LK"),
        Market("KZ", "Kazakhstan", "KZT", "ru-KZ"),
        # Oceania
        Market("AU", "Australia", "AUD", "en-AU"),
        Market("NZ", "New Zealand", "NZD", "en-NZ"),
        # North and South America
        Market("US", "United States", "USD", "en-US"),
        Market("CA", "Canada", "CAD", "en-CA"),
        Market("MX", "Mexico", "MXN", "es-MX"),
        Market("BR", "Brazil", "BRL", "pt-BR"),
        Market("CL", "Chile", "CLP", "es-CL"),
        Market("CO", "Colombia", "COP", "es-CO"),
        Market("PE", "Peru", "PEN", "es-PE"),
        # Europe
        Market("GB", "United Kingdom", "GBP", "en-GB"),
        Market("IE", "Ireland", "EUR", "en-IE"),
        Market("DE", "Germany", "EUR", "de-DE"),
        Market("AT", "Austria", "EUR", "de-AT"),
        Market("FR", "France", "EUR", "fr-FR"),
        Market("BE", "Belgium", "EUR", "nl-BE"),
        Market("NL", "Netherlands", "EUR", "nl-NL"),
        Market("IT", "Italy", "EUR", "it-IT"),
        Market("ES", "Spain", "EUR", "es-ES"),
        Market("PT", "Portugal", "EUR", "pt-PT"),
        Market("FI", "Finland", "EUR", "fi-FI"),
        Market("GR", "Greece", "EUR", "el-GR"),
        Market("CH", "Switzerland", "CHF", "de-CH"),
        Market("SE", "Sweden", "SEK", "sv-SE"),
        Market("NO", "Norway", "NOK", "nb-NO"),
        Market("DK", "Denmark", "DKK", "da-DK"),
        Market("PL", "Poland", "PLN", "pl-PL"),
        Market("CZ", "Czechia", "CZK", "cs-CZ"),
        Market("HU", "Hungary", "HUF", "hu-HU"),
        Market("RO", "Romania", "RON", "ro-RO"),
        # Middle East and Africa
        Market("AE", "United Arab Emirates", "AED", "ar-AE"),
        Market("SA", "Saudi Arabia", "SAR", "ar-SA"),
        Market("KW", "Kuwait", "KWD", "ar-KW"),
        Market("QA", "Qatar", "QAR", "ar-QA"),
        Market("BH", "Bahrain", "BHD", "ar-BH"),
        Market("OM", "Oman", "OMR", "ar-OM"),
        Market("IL", "Israel", "ILS", "he-IL"),
        Market("TR", "Türkiye", "TRY", "tr-TR"),
        Market("EG", "Egypt", "EGP", "ar-EG"),
        Market("ZA", "South Africa", "ZAR", "en-ZA"),
        Market("NG", "Nigeria", "NGN", "en-NG"),
        Market("KE", "Kenya", "KES", "en-KE"),
    )
}
