"""Languages: their tags, their English names, and the instruction prefix P(l) of the paper's section 3.

A tag is the lower-case ISO 639-1 code, or the ISO 639-3 code if there is none. A script or a region may follow, as in
``zh-hant`` and ``es-mx``. The prefix uses the English name.
"""

import difflib

from crosspref.errors import DataError, shown

ENGLISH = "en"

CROSSLINGUAL_PREFIX = (
    "Please answer the following instruction using only {language}, "
    "unless explicitly instructed to respond in a different language.\n\n"
)
"""P(l) of Eq. 8 (section 3 of the paper), with the comma of the paper's appendix and released scripts."""

Prefix = str | dict[str, str] | None
"""Another text for P(l), in which ``{language}`` stands for the language's name, or one per language (the others have
the paper's). None is the paper's."""

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
    "de-at": "Austrian German",
    "de-ch": "Swiss High German",
    "dv": "Dhivehi",
    "ee": "Ewe",
    "el": "Greek",
    "en": "English",
    "en-au": "Australian English",
    "en-ca": "Canadian English",
    "en-gb": "British English",
    "en-in": "Indian English",
    "en-us": "American English",
    "eo": "Esperanto",
    "es": "Spanish",
    "es-419": "Latin American Spanish",
    "es-es": "European Spanish",
    "es-mx": "Mexican Spanish",
    "et": "Estonian",
    "eu": "Basque",
    "fa": "Persian",
    "ff": "Fula",
    "fi": "Finnish",
    "fil": "Filipino",
    "fo": "Faroese",
    "fr": "French",
    "fr-ca": "Canadian French",
    "fr-ch": "Swiss French",
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

_WRITTEN_AS = {"zh-cn": "zh-hans", "zh-sg": "zh-hans", "zh-hk": "zh-hant", "zh-mo": "zh-hant", "zh-tw": "zh-hant"}
"""Regions that stand for a script."""

_CODES = """
arab armn beng cyrl deva ethi geor grek gujr guru hang hans hant hebr jpan khmr knda kore laoo latn mlym mtei mymr
olck orya sinh taml telu tfng thai tibt 001 150 419 ad ae af ag ai al am ao ar as at au aw ax az ba bb bd be bf bg
bh bi bj bl bm bn bo bq br bs bt bw by bz ca cc cd cf cg ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz
ec ee eg eh er es et fi fj fk fm fo fr ga gb gd ge gf gg gh gi gl gm gn gp gq gr gt gu gw gy hk hn hr ht hu id ie il
im in io iq ir is it je jm jo jp ke kg kh ki km kn kp kr kw ky kz la lb lc li lk lr ls lt lu lv ly ma mc md me mf mg
mh mk ml mm mn mo mp mq mr ms mt mu mv mw mx my mz na nc ne nf ng ni nl no np nr nu nz om pa pe pf pg ph pk pl pm pn
pr ps pt pw py qa re ro rs ru rw sa sb sc sd se sg sh si sj sk sl sm sn so sr ss st sv sx sy sz tc td tg th tj tk tl
tm tn to tr tt tv tw tz ua ug us uy uz va vc ve vg vi vn vu wf ws xk ye yt za zm zw
"""
_SUBTAGS = frozenset(_CODES.split())
"""Scripts of ISO 15924 and regions of ISO 3166-1, so that a misspelt tag is not taken for one of a region."""

_LONGEST_TAG = 50


def as_tag(name: str) -> str:
    """Return the spelling of a tag, of which there is one: ``pt_BR`` becomes ``pt-br``."""
    return name.strip().lower().replace("_", "-")


def is_language(tag: str) -> bool:
    """Tell whether a tag has a name."""
    return _name(tag) is not None


def _name(tag: str) -> str | None:
    """Return the name of a tag, or else of the tag without its last parts if these are scripts or regions."""
    tag = _WRITTEN_AS.get(tag, tag)
    while tag not in LANGUAGES:
        before, _, last = tag.rpartition("-")
        if last not in _SUBTAGS:
            return None
        tag = _WRITTEN_AS.get(before, before)
    return LANGUAGES[tag]


def language_name(language: str) -> str:
    """Return the English name of a language tag; a script or region without a name of its own does not change it.

    Raises:
        DataError: the tag has no name. The message lists similar tags.
    """
    name = _name(language)
    if name is not None:
        return name
    tags = {tag: tag for tag in LANGUAGES} | {name.lower(): tag for tag, name in LANGUAGES.items()}
    wanted = language.strip().lower()[:_LONGEST_TAG]
    near = dict.fromkeys(tags[match] for match in difflib.get_close_matches(wanted, tags, n=5))
    similar = ", ".join(f"{tag} ({LANGUAGES[tag]})" for tag in near)
    hint = f"did you mean {similar}?" if near else "tags are ISO 639 codes such as en, es, zh; see crosspref.languages."
    raise DataError(f"unknown language {shown(language)}: {hint}")


def crosslingual_prefix(language: str, prefix: Prefix = None) -> str:
    """Return P(l) of Eq. 8, which is empty for English.

    Raises:
        DataError: the language has no name.
    """
    if language == ENGLISH:
        return ""
    text = prefix.get(language) if isinstance(prefix, dict) else prefix
    return (CROSSLINGUAL_PREFIX if text is None else text).replace("{language}", language_name(language))


def crosslingual_instruction(
    english: str | list[dict[str, str]], language: str, prefix: Prefix = None
) -> str | list[dict[str, str]]:
    """Return G(x) of Eq. 8: the English instruction with P(l) before it; in a conversation, before its last message.

    Raises:
        DataError: the language has no name.
    """
    before = crosslingual_prefix(language, prefix)
    if isinstance(english, str):
        return before + english
    *earlier, last = english
    return [*earlier, {**last, "content": before + last["content"]}]


def translation_instruction(text: str, language: str) -> str:
    """Return the prompt that asks for the translation of a text into a language (Eq. 14).

    Raises:
        DataError: the language has no name.
    """
    return TRANSLATION_PROMPT.format(language=language_name(language), text=text)
