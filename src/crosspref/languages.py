"""Languages: their tags, their English names, and the instruction prefix P(l) of the paper's section 3.

A tag is the lower-case ISO 639-1 code, or the ISO 639-3 code if there is none. A few regional forms have a hyphen. The
prefix uses the English name.
"""

import difflib

from crosspref.errors import DataError

ENGLISH = "en"

CROSSLINGUAL_PREFIX = (
    "Please answer the following instruction using only {language}, "
    "unless explicitly instructed to respond in a different language.\n\n"
)
"""P(l) of Eq. 8 (section 3 of the paper), with the comma of the paper's appendix and released scripts."""

TRANSLATION_PROMPT = (
    "Please translate the following sentences into {language}. "
    "The input sentences are wrapped by <sentence> and </sentence>:\n\n<sentence>\n{text}\n</sentence>"
)
"""The prompt of LLM-Translate(y) in Eq. 14 (section E.2 of the paper)."""

LANGUAGES: dict[str, str] = {
    "af": "Afrikaans",
    "am": "Amharic",
    "ar": "Arabic",
    "as": "Assamese",
    "ast": "Asturian",
    "ay": "Aymara",
    "az": "Azerbaijani",
    "ba": "Bashkir",
    "be": "Belarusian",
    "bg": "Bulgarian",
    "bho": "Bhojpuri",
    "bm": "Bambara",
    "bn": "Bengali",
    "bo": "Tibetan",
    "br": "Breton",
    "bs": "Bosnian",
    "ca": "Catalan",
    "ceb": "Cebuano",
    "ckb": "Central Kurdish",
    "cs": "Czech",
    "cv": "Chuvash",
    "cy": "Welsh",
    "da": "Danish",
    "de": "German",
    "dv": "Dhivehi",
    "ee": "Ewe",
    "el": "Greek",
    "en": "English",
    "eo": "Esperanto",
    "es": "Spanish",
    "et": "Estonian",
    "eu": "Basque",
    "fa": "Persian",
    "ff": "Fula",
    "fi": "Finnish",
    "fil": "Filipino",
    "fo": "Faroese",
    "fr": "French",
    "fy": "West Frisian",
    "ga": "Irish",
    "gd": "Scottish Gaelic",
    "gl": "Galician",
    "gn": "Guarani",
    "gu": "Gujarati",
    "ha": "Hausa",
    "haw": "Hawaiian",
    "he": "Hebrew",
    "hi": "Hindi",
    "hr": "Croatian",
    "ht": "Haitian Creole",
    "hu": "Hungarian",
    "hy": "Armenian",
    "id": "Indonesian",
    "ig": "Igbo",
    "ilo": "Ilocano",
    "is": "Icelandic",
    "it": "Italian",
    "ja": "Japanese",
    "jv": "Javanese",
    "ka": "Georgian",
    "kk": "Kazakh",
    "km": "Khmer",
    "kn": "Kannada",
    "ko": "Korean",
    "ku": "Kurdish",
    "ky": "Kyrgyz",
    "la": "Latin",
    "lb": "Luxembourgish",
    "lg": "Ganda",
    "ln": "Lingala",
    "lo": "Lao",
    "lt": "Lithuanian",
    "luo": "Luo",
    "lv": "Latvian",
    "mai": "Maithili",
    "mg": "Malagasy",
    "mi": "Maori",
    "mk": "Macedonian",
    "ml": "Malayalam",
    "mn": "Mongolian",
    "mr": "Marathi",
    "ms": "Malay",
    "mt": "Maltese",
    "my": "Burmese",
    "nb": "Norwegian Bokmål",
    "ne": "Nepali",
    "nl": "Dutch",
    "nn": "Norwegian Nynorsk",
    "no": "Norwegian",
    "nso": "Northern Sotho",
    "ny": "Chichewa",
    "oc": "Occitan",
    "om": "Oromo",
    "or": "Odia",
    "pa": "Punjabi",
    "pl": "Polish",
    "ps": "Pashto",
    "pt": "Portuguese",
    "pt-br": "Brazilian Portuguese",
    "pt-pt": "European Portuguese",
    "qu": "Quechua",
    "rm": "Romansh",
    "rn": "Kirundi",
    "ro": "Romanian",
    "ru": "Russian",
    "rw": "Kinyarwanda",
    "sa": "Sanskrit",
    "sd": "Sindhi",
    "si": "Sinhala",
    "sk": "Slovak",
    "sl": "Slovenian",
    "sm": "Samoan",
    "sn": "Shona",
    "so": "Somali",
    "sq": "Albanian",
    "sr": "Serbian",
    "ss": "Swati",
    "st": "Southern Sotho",
    "su": "Sundanese",
    "sv": "Swedish",
    "sw": "Swahili",
    "ta": "Tamil",
    "te": "Telugu",
    "tg": "Tajik",
    "th": "Thai",
    "ti": "Tigrinya",
    "tk": "Turkmen",
    "tl": "Tagalog",
    "tn": "Tswana",
    "to": "Tongan",
    "tr": "Turkish",
    "ts": "Tsonga",
    "tt": "Tatar",
    "tw": "Twi",
    "ug": "Uyghur",
    "uk": "Ukrainian",
    "ur": "Urdu",
    "uz": "Uzbek",
    "vi": "Vietnamese",
    "war": "Waray",
    "wo": "Wolof",
    "xh": "Xhosa",
    "yi": "Yiddish",
    "yo": "Yoruba",
    "yue": "Cantonese",
    "zh": "Chinese",
    "zh-hans": "Simplified Chinese",
    "zh-hant": "Traditional Chinese",
    "zu": "Zulu",
}


def language_name(language: str) -> str:
    """Return the English name of a language tag.

    Raises:
        DataError: the tag is not in `LANGUAGES`. The message lists similar tags.
    """
    if language in LANGUAGES:
        return LANGUAGES[language]
    tags = {tag: tag for tag in LANGUAGES} | {name.lower(): tag for tag, name in LANGUAGES.items()}
    near = dict.fromkeys(tags[match] for match in difflib.get_close_matches(language.strip().lower(), tags, n=5))
    shown = ", ".join(f"{tag} ({LANGUAGES[tag]})" for tag in near)
    hint = f"did you mean {shown}?" if near else "tags are ISO 639 codes such as en, es, zh; see crosspref.languages."
    raise DataError(f"unknown language {language!r}: {hint}")


def crosslingual_instruction(english_instruction: str, language: str) -> str:
    """Return G(x) of Eq. 8: the English instruction, after the prefix P(l) unless the language is English.

    Raises:
        DataError: the language is not in `LANGUAGES`.
    """
    if language == ENGLISH:
        return english_instruction
    return CROSSLINGUAL_PREFIX.format(language=language_name(language)) + english_instruction


def translation_instruction(text: str, language: str) -> str:
    """Return the prompt that asks for the translation of a text into a language (Eq. 14).

    Raises:
        DataError: the language is not in `LANGUAGES`.
    """
    return TRANSLATION_PROMPT.format(language=language_name(language), text=text)
