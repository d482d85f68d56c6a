"""Is a notebook's prose English? By the words that every text of a language holds; good enough to reject by."""

from __future__ import annotations

import re

_COMMON = {
    "english": "the of and to in is that for it with as this are on be by we from an or which can will not you have",
    "spanish": "de la que el en los del se las por un para con una su al es lo como más pero sus le ya este esta son",
    "portuguese": "de que do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das à seu ou",
    "french": "de la le et les des en un du une que est pour qui dans par plus pas au sur ne se ce il sont avec nous",
    "german": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden wir",
    "italian": "di che è la il un a per in una mi sono ho non ma lo ha le si con del della dei nel come da più questo",
    "turkish": "bir ve bu da de için ile olarak olan daha çok en gibi kadar sonra veri ne var değil her biz ama",
    "indonesian": "yang dan di dari untuk dengan ini pada adalah data akan tidak dalam kita ke juga itu atau oleh",
    "vietnamese": "và của là các có cho trong được với không một này để những người từ dữ liệu",
    "polish": "w i na z do się jest nie że to o jak po od za przez dla oraz dane są tym",
}
_WORDS = {language: frozenset(words.split()) for language, words in _COMMON.items()}
_WORD = re.compile(r"[^\W\d_]+")
_NOISE = re.compile(r"```.*?```|`[^`]*`|https?://\S+|<[^>]+>|\$[^$]*\$|!?\[[^\]]*\]\([^)]*\)", re.DOTALL)

MIN_WORDS = 30
"""Of less text nothing is said."""


def other_language(text: str) -> str | None:
    """The language a text is in if it is not English; none for English and for too little text."""
    words = [word.lower() for word in _WORD.findall(_NOISE.sub(" ", text))]
    if not words:
        return None
    letters = "".join(words)
    latin = sum(letter < "\u0250" for letter in letters)
    if len(letters) >= MIN_WORDS and latin < 0.7 * len(letters):  # few spaces in Chinese: letters, not words
        return "a script that is not Latin"
    if len(words) < MIN_WORDS:
        return None
    hits = {language: sum(word in common for word in words) for language, common in _WORDS.items()}
    best = max(hits, key=lambda language: hits[language])
    return (
        best if best != "english" and hits[best] > 1.5 * hits["english"] and hits[best] >= 0.08 * len(words) else None
    )
