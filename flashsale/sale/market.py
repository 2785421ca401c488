"""The markets that a sale can sell into: country, currency and the language that its shoppers read.

A market is named by its ISO 3166-1 alpha-2 country code and has one currency, which never changes during a sale.
"""

from typing import NamedTuple


class Market(NamedTuple):
    """`code` ISO 3166-1 alpha-2, `country` in English, `currency` ISO 4217, `locale` BCP 47 (language first),
    `zone` the IANA name of the time that its customs and its parcels keep (one, where the country has several)."""

    code: str
    country: str
    currency: str
    locale: str
    zone: str


MARKETS: dict[str, Market] = {
    market.code: market
    for market in (
        # South-East Asia
        Market("SG", "Singapore", "SGD", "en-SG", "Asia/Singapore"),
        Market("MY", "Malaysia", "MYR", "ms-MY", "Asia/Kuala_Lumpur"),
        Market("TH", "Thailand", "THB", "th-TH", "Asia/Bangkok"),
        Market("PH", "Philippines", "PHP", "en-PH", "Asia/Manila"),
        Market("VN", "Vietnam", "VND", "vi-VN", "Asia/Ho_Chi_Minh"),
        Market("ID", "Indonesia", "IDR", "id-ID", "Asia/Jakarta"),
        Market("KH", "Cambodia", "KHR", "km-KH", "Asia/Phnom_Penh"),
        Market("BN", "Brunei", "BND", "ms-BN", "Asia/Brunei"),
        # East Asia
        Market("CN", "China", "CNY", "zh-CN", "Asia/Shanghai"),
        Market("HK", "Hong Kong", "HKD", "zh-HK", "Asia/Hong_Kong"),
        Market("MO", "Macao", "MOP", "zh-MO", "Asia/Macau"),
        Market("TW", "Taiwan", "TWD", "zh-TW", "Asia/Taipei"),
        Market("JP", "Japan", "JPY", "ja-JP", "Asia/Tokyo"),
        Market("KR", "South Korea", "KRW", "ko-KR", "Asia/Seoul"),
        # South and Central Asia
        Market("IN", "India", "INR", "en-IN", "Asia/Kolkata"),
        Market("PK", "Pakistan", "PKR", "en-PK", "Asia/Karachi"),
        Market("BD", "Bangladesh", "BDT", "bn-BD", "Asia/Dhaka"),
        Market("LK", "Sri Lanka", "LKR", "si-LK", "Asia/Colombo"),
        Market("KZ", "Kazakhstan", "KZT", "ru-KZ", "Asia/Almaty"),
        # Oceania
        Market("AU", "Australia", "AUD", "en-AU", "Australia/Sydney"),
        Market("NZ", "New Zealand", "NZD", "en-NZ", "Pacific/Auckland"),
        # North and South America
        Market("US", "United States", "USD", "en-US", "America/New_York"),
        Market("CA", "Canada", "CAD", "en-CA", "America/Toronto"),
        Market("MX", "Mexico", "MXN", "es-MX", "America/Mexico_City"),
        Market("BR", "Brazil", "BRL", "pt-BR", "America/Sao_Paulo"),
        Market("CL", "Chile", "CLP", "es-CL", "America/Santiago"),
        Market("CO", "Colombia", "COP", "es-CO", "America/Bogota"),
        Market("PE", "Peru", "PEN", "es-PE", "America/Lima"),
        # Europe
        Market("GB", "United Kingdom", "GBP", "en-GB", "Europe/London"),
        Market("IE", "Ireland", "EUR", "en-IE", "Europe/Dublin"),
        Market("DE", "Germany", "EUR", "de-DE", "Europe/Berlin"),
        Market("AT", "Austria", "EUR", "de-AT", "Europe/Vienna"),
        Market("FR", "France", "EUR", "fr-FR", "Europe/Paris"),
        Market("BE", "Belgium", "EUR", "nl-BE", "Europe/Brussels"),
        Market("NL", "Netherlands", "EUR", "nl-NL", "Europe/Amsterdam"),
        Market("IT", "Italy", "EUR", "it-IT", "Europe/Rome"),
        Market("ES", "Spain", "EUR", "es-ES", "Europe/Madrid"),
        Market("PT", "Portugal", "EUR", "pt-PT", "Europe/Lisbon"),
        Market("FI", "Finland", "EUR", "fi-FI", "Europe/Helsinki"),
        Market("GR", "Greece", "EUR", "el-GR", "Europe/Athens"),
        Market("CH", "Switzerland", "CHF", "de-CH", "Europe/Zurich"),
        Market("SE", "Sweden", "SEK", "sv-SE", "Europe/Stockholm"),
        Market("NO", "Norway", "NOK", "nb-NO", "Europe/Oslo"),
        Market("DK", "Denmark", "DKK", "da-DK", "Europe/Copenhagen"),
        Market("PL", "Poland", "PLN", "pl-PL", "Europe/Warsaw"),
        Market("CZ", "Czechia", "CZK", "cs-CZ", "Europe/Prague"),
        Market("HU", "Hungary", "HUF", "hu-HU", "Europe/Budapest"),
        Market("RO", "Romania", "RON", "ro-RO", "Europe/Bucharest"),
        # Middle East and Africa
        Market("AE", "United Arab Emirates", "AED", "ar-AE", "Asia/Dubai"),
        Market("SA", "Saudi Arabia", "SAR", "ar-SA", "Asia/Riyadh"),
        Market("KW", "Kuwait", "KWD", "ar-KW", "Asia/Kuwait"),
        Market("QA", "Qatar", "QAR", "ar-QA", "Asia/Qatar"),
        Market("BH", "Bahrain", "BHD", "ar-BH", "Asia/Bahrain"),
        Market("OM", "Oman", "OMR", "ar-OM", "Asia/Muscat"),
        Market("IL", "Israel", "ILS", "he-IL", "Asia/Jerusalem"),
        Market("TR", "Türkiye", "TRY", "tr-TR", "Europe/Istanbul"),
        Market("EG", "Egypt", "EGP", "ar-EG", "Africa/Cairo"),
        Market("ZA", "South Africa", "ZAR", "en-ZA", "Africa/Johannesburg"),
        Market("NG", "Nigeria", "NGN", "en-NG", "Africa/Lagos"),
        Market("KE", "Kenya", "KES", "en-KE", "Africa/Nairobi"),
    )
}
